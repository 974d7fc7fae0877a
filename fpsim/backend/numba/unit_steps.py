"""Units that add a few products at a time, with the addend or before it, where nothing overflows or underflows.

Each model is a function of the sum so far and the factors of one block's terms, a step of a chain. All operands are finite,
and every product, sum and addend is a multiple of some power of two that is normal in float32, none of 2^127 or above: so
float32's own arithmetic is the units', which flush, and what has to be exact is in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import inf
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

from fpsim.backend.numba.compiler import kernel
from fpsim.backend.numba.sums_rounding import sum_error, to_odd
from fpsim.backend.numba.tile_operations import operand_pairs
from fpsim.backend.numba.tiles import (
    EXPONENT,
    Vector,
    data_of,
    in_pairs,
    index,
    larger_power,
    load_tile,
    store_tile,
    tile_of,
    vectors_of,
    zero_tile,
)

Pairs = list[tuple[Vector, Vector]]  # the factors of each term; or the powers of two below them

_BIAS, _STORED = 1023, 52  # of float64
_LEAST_TOP, _LEAST_OWN = 2.0**-600, 2.0**-126  # what a zero counts as: among the products, as the addend
_FLOOR, _SUM_FLOOR = 24, 32  # of an addend, and of a sum of products, binades below the largest power


def _sum_of_two(left: tuple[Vector, Vector], right: tuple[Vector, Vector]) -> Vector:
    """The sum of two exact products, rounded once."""
    return left[0].times_plus(left[1], right[0] * right[1])


def _chain(pairs: Pairs) -> Vector:
    total = pairs[0][0] * pairs[0][1] + 0.0
    for left, right in pairs[1:]:
        total = left.times_plus(right, total)
    return total


def _even_and_odd(total: Vector, pairs: Pairs, powers: Pairs, fraction: int) -> Vector:
    return total + (_chain(pairs[::2]) + _chain(pairs[1::2]))


def _odd(left: Vector, right: Vector) -> Vector:
    return to_odd(left + right, sum_error(left, right))


def _odd_pairs(total: Vector, pairs: Pairs, powers: Pairs, fraction: int) -> Vector:
    left, right = (left * right for left, right in pairs)
    return _odd(total, _odd(left, right))


def _fused_pairs(total: Vector, pairs: Pairs, powers: Pairs, fraction: int) -> Vector:
    return total + _sum_of_two(*pairs)


def _quads(total: Vector, pairs: Pairs, powers: Pairs, fraction: int) -> Vector:
    return total + (_sum_of_two(*pairs[:2]) + _sum_of_two(*pairs[2:]))


def _exact(total: Vector, pairs: Pairs, powers: Pairs, fraction: int) -> Vector:
    """Rounded once, by way of float64 to odd: it has 2 bits more than float32 and one for the other half of an ulp."""
    terms = [left * right for left, right in pairs]
    errors = []
    for term in terms:
        errors.append(sum_error(total, term))
        total = total + term
    rest = in_pairs(Vector.__add__, errors)  # exact: the errors lie 52 binades lower than the sums
    return to_odd(total + rest, sum_error(total, rest)).halved().doubled()


def _shifted(power: Vector, binades: int) -> Vector:
    """2^binades / power, a power of two."""
    return ((power.ints() ^ -1) + (((2 * _BIAS + binades) << _STORED) + 1)).floats()


def _floored(x: Vector, scale: Vector, unit: Vector) -> Vector:
    """x floored to a multiple of `unit`, one over `scale`."""
    return (x * scale).call(f"llvm.floor.v{x.lanes}f64") * unit


def _truncated_sum(pairs: Pairs, powers: Pairs, fraction: int) -> tuple[Vector, Vector]:
    """The exact sum of products truncated so many binades below their largest power, and that power."""
    tops = [left * right for left, right in powers]
    top = larger_power(in_pairs(larger_power, tops), _like(tops[0], _LEAST_TOP))
    scale = _shifted(top, fraction)
    terms = [(left * right * scale).call(f"llvm.trunc.v{top.lanes}f64") for left, right in pairs]
    return in_pairs(Vector.__add__, terms) * (top * 2.0**-fraction), top


def _like(vector: Vector, number: float) -> Vector:
    return Vector(vector.builder, ir.Constant(vector.type, [number] * vector.lanes))


def _power(x: Vector) -> Vector:
    return larger_power((x.ints() & EXPONENT[64]).floats(), _like(x, _LEAST_OWN))


def _with_addend(dot: Vector, top: Vector, addend: Vector, drops: bool) -> Vector:
    """The sum of products and the addend, rounded to float32."""
    addend_power = _power(addend)
    both = larger_power(top, addend_power)
    low = _floored(addend, _shifted(both, _FLOOR), both * 2.0**-_FLOOR)
    if drops:
        low = addend_power.compare("<", both * 2.0 ** -(_FLOOR + 1)).select(_like(low, 0.0), low)
    total = _floored(dot, _shifted(both, _SUM_FLOOR), both * 2.0**-_SUM_FLOOR) + low
    power = _power(total)
    return _floored(total, _shifted(power, _SUM_FLOOR - 1), power * 2.0 ** (1 - _SUM_FLOOR)).halved().doubled()


def _floored_sum(total: Vector, pairs: Pairs, powers: Pairs, fraction: int) -> Vector:
    return _with_addend(*_truncated_sum(pairs, powers, fraction), total, False)


def _floored_halves(total: Vector, pairs: Pairs, powers: Pairs, fraction: int) -> Vector:
    dots = [_truncated_sum(pairs[i::2], powers[i::2], fraction) for i in (0, 1)]
    top = larger_power(dots[0][1], dots[1][1])
    scale, unit = _shifted(top, fraction), top * 2.0**-fraction
    dot = _floored(dots[0][0], scale, unit) + _floored(dots[1][0], scale, unit)
    return _with_addend(dot, top, total, True)


class Model(NamedTuple):
    """A model's carrier and step.

    step         the sum after a block, from the sum before, its factors, their powers and the bits of a fraction
    with_powers  whether it looks at the powers
    binades      how many there may be from what every number is a multiple of to what none reaches
    """

    element: str
    step: Callable[[Vector, Pairs, Pairs, int], Vector]
    with_powers: bool = False
    binades: float = inf


MODELS = {
    "halves": Model("f4", _even_and_odd),
    "odd pairs": Model("f4", _odd_pairs),
    "fused pairs": Model("f4", _fused_pairs),
    "quads": Model("f4", _quads),
    "exact": Model("f8", _exact, binades=100),
    "floored": Model("f8", _floored_sum, with_powers=True),
    "floored halves": Model("f8", _floored_halves, with_powers=True),
}


_NUMBERED = tuple(MODELS.values())  # what a kernel takes as a literal


@intrinsic(prefer_literal=True)
def _add_block(
    typing_context: Any, total: Any, a: Any, a_powers: Any, a_offset: Any, b: Any, b_powers: Any, b_offset: Any, model: Any,
    block: Any, fraction: Any,
) -> Any:  # fmt: skip
    """A tile of sums after one block."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        chosen = _NUMBERED[model.literal_value]
        left, left_powers, right, right_powers = (
            data_of(context, builder, signature.args[i], arguments[i]) for i in (1, 2, 4, 5)
        )

        def terms(factors: Any, others: Any) -> list[Pairs]:
            """The block's factors for each vector of the tile."""
            columns = []
            for k in range(block.literal_value):
                a_start = builder.add(arguments[3], index(k * total.rows))
                b_start = builder.add(arguments[6], index(k * total.vectors * total.lanes))
                columns.append(operand_pairs(builder, total, factors, a_start, others, b_start))
            return [list(pairs) for pairs in zip(*columns, strict=True)]

        pairs = terms(left, right)
        powers = terms(left_powers, right_powers) if chosen.with_powers else pairs
        totals = vectors_of(builder, arguments[0], total.count)
        results = [chosen.step(*parts, fraction.literal_value) for parts in zip(totals, pairs, powers, strict=True)]
        return tile_of(builder, arguments[0].type, results)

    operand_types = (total, a, a_powers, a_offset, b, b_powers, b_offset, model, block, fraction)
    return total(*operand_types), generate


@lru_cache(maxsize=16)
def make_step_product(model: str, rows: int, vectors: int, block: int, fraction: int) -> Any:
    """The kernel for one model, tile, block and number of fraction bits.

    Its arguments: a, b and their powers (flat, packed; the powers of models that need none are not read), out (flat; it holds
    the addends), the leaves, whole blocks, panels, the range of row groups and out's row stride.
    """
    number, element = list(MODELS).index(model), MODELS[model].element
    kind, width = (np.float32, vectors * 16) if element == "f4" else (np.float64, vectors * 8)

    @kernel
    def step_product(
        a: Any, a_powers: Any, b: Any, b_powers: Any, out: Any, leaves: int, panels: int, first: int, last: int, out_stride: int
    ) -> None:
        for panel in range(panels):
            for group in range(first, last):
                a_start, b_start = group * leaves * rows, panel * leaves * width
                place = group * rows * out_stride + panel * width
                total = load_tile(zero_tile(kind, rows, vectors), out, place, out_stride)
                for k in range(0, leaves, block):
                    total = _add_block(
                        total, a, a_powers, a_start + k * rows, b, b_powers, b_start + k * width, number, block, fraction
                    )
                store_tile(total, out, place, out_stride)

    return step_product
