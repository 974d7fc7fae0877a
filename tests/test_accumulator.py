"""The grammar of `accumulate`, and what may go together."""

import pytest
from hypothesis import given, strategies as st

from fpsim.accumulation import Accumulator, Tree, blocked, get_accumulator, lanes, orders, pairwise, sequential
from fpsim.numbers.formats import FORMATS, get_format

ORDER_TEXTS = ["sequential", "pairwise", "blocked(3)", "lanes(8)", "lanes(4,pairwise)", "split(2)", "given(((0,1),2))"]


@pytest.mark.parametrize(
    "text",
    [
        "fp32", "fp16", "fp16:fma", "bf16:pairwise", "fp16:pairwise:exact-products", "fp16:blocked(64)->fp32",
        "fp32:split(4)->bf16", "fp16:lanes(2):fma->float8_e5m2",
        "float8_e5m2:blocked(16):fma->fp32", "fp16:kahan", "tf32:neumaier", "exact", "native", "e5m7:lanes(8,pairwise)",
        "fp16:given(((0,1),2))", "fp16:given([-2,-3,-4]):fma",
    ],
)  # fmt: skip
def test_text_round_trips(text):
    accumulator = get_accumulator(text)
    assert str(accumulator) == text
    assert get_accumulator(str(accumulator)) == accumulator
    assert hash(get_accumulator(str(accumulator))) == hash(accumulator)


@given(
    st.sampled_from([name for name, fmt in FORMATS.items() if fmt.has_zero]),
    st.sampled_from(ORDER_TEXTS),
    st.sampled_from(["", ":fma", ":exact-products"]),
    st.booleans(),
)
def test_every_combination_round_trips_or_is_refused(fmt, order, products, promoted):
    text = f"{fmt}:{order}{products}" + "->fp64" * promoted
    refused = (promoted and (not order.startswith(("blocked", "lanes", "split")) or "pairwise" in order)) or (
        products == ":fma" and order.startswith(("pairwise", "given"))
    )
    if refused:
        with pytest.raises(ValueError) as raised:
            get_accumulator(text)
        assert text in str(raised.value)
    else:
        accumulator = get_accumulator(text)
        assert accumulator.format == get_format(fmt) and str(accumulator.order) == order
        assert get_accumulator(str(accumulator)) == accumulator
        assert get_accumulator(text) is accumulator  # parsed once


def test_meanings():
    assert get_accumulator() == get_accumulator("fp32") == Accumulator(format="fp32", order=sequential)
    assert get_accumulator("half:sequential") == get_accumulator("fp16")
    assert get_accumulator(" fp16 : lanes(4, pairwise) ").order == lanes(4, "pairwise")
    assert get_accumulator("fp16:blocked(64)->fp32") == Accumulator(format="fp16", order=blocked(64), promoted="fp32")
    assert get_accumulator("bf16:fma").products == "fma"
    assert get_accumulator("fp16:kahan").kind == "kahan"
    assert get_accumulator(get_format("bf16")) == get_accumulator("bf16")
    assert get_accumulator(pairwise) == get_accumulator("fp32:pairwise")
    accumulator = get_accumulator("exact")
    assert get_accumulator(accumulator) is accumulator


def test_trees_as_accumulators():
    tree = Tree.from_nested(((0, 1), (2, 3)))
    assert get_accumulator(tree) == Accumulator(order=tree) == get_accumulator("fp32:given(((0,1),(2,3)))")
    assert Accumulator(format="fp16", order=((0, 1), (2, 3)))(4) == tree
    assert Accumulator(format="fp16", order=tree.chains(), products="fma").order == orders.given(tree.chains())
    with pytest.raises(ValueError, match="has 4 leaves, the sum has 5 terms"):
        get_accumulator(tree)(5)
    with pytest.raises(ValueError, match="fma needs an order made of chains"):
        Accumulator(order=tree, products="fma")


@pytest.mark.parametrize(
    "text, message",
    [
        ("fp17", "unknown format 'fp17'"),
        ("", "unknown format ''"),
        ("fp16:zigzag", "unknown order 'zigzag'"),
        ("fp16:pairwise:fma", "fma needs an order made of chains, and pairwise is not"),
        ("fp16:blocked(0)", "at least 1, got 0"),
        ("fp16:blocked(-2)", "at least 1, got -2"),
        ("fp16:blocked(1.5)", "takes one whole number"),
        ("fp16:lanes(x)", "takes one whole number"),
        ("fp16:kahan:fma", "kahan takes no order"),
        ("fp16:neumaier->fp32", "neumaier takes no order"),
        ("fp16:pairwise:kahan", "one part too many"),
        ("fp16:fma:pairwise", "'pairwise'|one part too many|unknown order 'fma'"),
        ("fp16->fp32", "needs blocked"),
        ("fp32:pairwise->fp16", "needs blocked"),
        ("fp32:lanes(4,pairwise)->fp16", "needs blocked"),
        ("fp16:blocked(4)->e8m0fnu", "has no zero"),
        ("fp16:blocked(4)->fp99", "unknown format 'fp99'"),
        ("exact:fma", "'exact' stands alone"),
        ("native:pairwise", "'native' stands alone"),
        ("e8m0fnu", "has no zero and cannot accumulate"),
        ("h100:bf16", "unit h100 has no bf16 output; it has fp32, fp16"),
        ("h100:fp16:fma", "a unit takes one output format"),
        ("h100->fp32", "a unit takes one output format"),
        ("h100:fp99", "unknown format 'fp99'"),
        ("fp16:given((0,2))", "leaf 1 is missing"),
        ("fp16:given((0,1,1))", "leaf 1 is used more than once"),
    ],
)
def test_bad_text(text, message):
    with pytest.raises(ValueError, match=message) as raised:
        get_accumulator(text)
    assert repr(text) in str(raised.value)
    assert "<format>[:<order>]" in str(raised.value) or "stands alone" in str(raised.value)


def test_bad_parts():
    with pytest.raises(TypeError, match="accumulate must be"):
        get_accumulator(16)
    with pytest.raises(ValueError, match="no kind 'magic'; there are tree, parts, kahan"):
        Accumulator(kind="magic")
    with pytest.raises(ValueError, match="no products 'many'"):
        Accumulator(products="many")
    with pytest.raises(ValueError, match="exact takes no order"):
        Accumulator(kind="exact", order=pairwise)
    with pytest.raises(ValueError, match="kahan is not a tree"):
        get_accumulator("fp16:kahan")(4)
