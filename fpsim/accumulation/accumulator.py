"""Accumulators: the format, the order and the treatment of products behind ``accumulate=``.

    "<format>[:<order>][:fma | :exact-products][-><format2>]", "exact", "native", "<unit>[:<output format>][:split(k)]"

Left out: "fp32", sequential. `kahan` and `neumaier` stand where the order stands. A string is parsed once; inside there are
objects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

from fpsim.accumulation.instructions import Unit
from fpsim.accumulation.kinds import EXACT, KAHAN, KINDS, NATIVE, NEUMAIER, PARTS, TREE, UNIT, Kind, get_kind
from fpsim.accumulation.orders import ORDERS, Order, given, parse_order, sequential
from fpsim.accumulation.trees import Tree
from fpsim.accumulation.units import find_unit
from fpsim.numbers.formats import FP32, Format
from fpsim.numbers.names import get_float_format

Products = Literal["rounded", "exact", "fma"]

_COMPENSATED = (KAHAN.name, NEUMAIER.name)
_PRODUCTS: dict[str, Products] = {"fma": "fma", "exact-products": "exact"}
_GRAMMAR = '"<format>[:<order>][:fma | :exact-products][-><format2>]", "exact", "native" or a unit like "h100:split(4)"'


@dataclass(frozen=True)
class Accumulator:
    """How a sum of products is accumulated. Made from parts, or from a string by `get_accumulator`.

    kind      a `Kind` or its name: "tree" (a tree of rounded additions in ``order``), "parts" (of a sum, chained in
              ``promoted``), "kahan", "neumaier", "exact", "native", "unit"
    format    what every addition rounds to; "exact" rounds once to the result's format, "native" is the library's own
              (both hold fp32 here, which nothing reads); a unit's output format
    order     the order of the additions (an Order, a Tree or a name); sequential for every other kind than "tree"
    products  "rounded": a leaf is the product rounded to ``format``; "exact": leaves are exact and every addition
              rounds the exact sum of its operands once; "fma": the same, for orders made of chains
    promoted  the format, wider or narrower, that sums of parts are rounded to and chained in: blocked(b), lanes(l), split(k)
    unit      the hardware unit of the kind "unit", whose instructions fix order, alignment and rounding; its order may be
              split(k): that many parts, each through the unit from +0, then added one after the other in ``format``

    Raises ValueError for parts that do not go together. ``str`` gives the text that `get_accumulator` reads.
    """

    kind: Kind = TREE
    format: Format = FP32
    order: Order = sequential
    products: Products = "rounded"
    promoted: Format | None = None
    unit: Unit | None = None

    def __post_init__(self) -> None:
        _set = object.__setattr__
        kind = get_kind(self.kind)
        _set(self, "kind", PARTS if kind == TREE and self.promoted is not None else kind)
        _set(self, "format", _format(self.format))
        _set(self, "order", _as_order(self.order))
        if self.promoted is not None:
            _set(self, "promoted", _format(self.promoted))
        if self.products not in ("rounded", *_PRODUCTS.values()):
            raise ValueError(f"accumulate: no products {self.products!r}; there are rounded, exact, fma")
        if not self.format.has_zero:
            raise ValueError(f"accumulate: {self.format.name} has no zero and cannot accumulate")
        if self.unit is not None and self.kind is not UNIT:
            raise ValueError("accumulate: the kind 'unit' and a unit go together")
        self.kind.check(self)

    @cached_property
    def held(self) -> Format | None:
        """The format whose values its sums are; None where a sum is exact until it is rounded to the result's format."""
        return self.kind.held(self)

    @cached_property
    def rounds_parts(self) -> bool:
        """Whether rounding the sum of a part to `promoted` may change it."""
        first, second = self.format, self.promoted
        if second is None:
            return False
        smaller = second.precision < first.precision or second.max_finite < first.max_finite
        return smaller or second.min_subnormal > first.min_subnormal

    @property
    def rounds_products(self) -> bool:
        """Whether a leaf is the rounded product, not the exact one."""
        return self.products == "rounded"

    @cached_property
    def for_sums(self) -> Accumulator:
        """What adds terms that are no products: units only multiply, and beside them sums are chains in fp32."""
        return self.kind.for_sums(self)

    def widened(self, operands: Format) -> Accumulator:
        """What accumulates values of that format: such as are wider than 11 bits in their own format, in the same order."""
        if operands.precision <= 11 or not self.kind.widens or self.format == operands:
            return self
        kind = TREE if self.kind is PARTS else self.kind
        return Accumulator(kind, operands, self.order, self.products)

    def require_operands(self, fmt: Format) -> None:
        """Raise ValueError, listing what there is, unless this accumulates products of values of `fmt`."""
        if self.unit is not None:
            self.unit.instruction(fmt, self.format.name)

    def __call__(self, n: int) -> Tree:
        """The tree of a sum of n terms; ValueError for kinds that are no tree."""
        if not isinstance(self.kind, type(TREE)):
            raise ValueError(f"accumulate: {self.kind} is not a tree of rounded additions")
        return self.order(n)

    def __str__(self) -> str:
        return self.kind.text(self)


def get_accumulator(accumulate: Any = None) -> Accumulator:
    """The accumulator that a string, an Accumulator, a Format or a Tree means; None means "fp32", sequential.

    A Tree (or an Order) alone means rounded additions in fp32; for another format make
    ``Accumulator(format=..., order=tree)``.
    Raises ValueError repeating the text and listing what there is.
    """
    if accumulate is None:
        return _parse("fp32")
    if isinstance(accumulate, Accumulator):
        return accumulate
    if isinstance(accumulate, str):
        return _parse(accumulate)
    if isinstance(accumulate, Format):
        return Accumulator(format=accumulate)
    if isinstance(accumulate, (Tree, Order)):
        return Accumulator(order=_as_order(accumulate))
    raise TypeError(f"accumulate must be a string, an Accumulator, a Format or a Tree, got {type(accumulate).__name__}")


@lru_cache(maxsize=256)
def _parse(text: str) -> Accumulator:
    body = text.strip()
    alone = KINDS.get(body)
    if alone is not None and alone.stands_alone:
        return Accumulator(kind=alone)
    body, arrow, wide = body.partition("->")
    name, *parts = (part.strip() for part in body.split(":"))
    unit = find_unit(name)
    if unit is not None:
        return _with_unit(text, unit, parts + ["->"] * bool(arrow))
    if name in (EXACT.name, NATIVE.name):
        raise ValueError(f"accumulate {text!r}: {name!r} stands alone")
    fields: dict[str, Any] = {"format": _named(text, _format, name)}
    if parts and parts[-1] in _PRODUCTS:
        fields["products"] = _PRODUCTS[parts.pop()]
    if parts and parts[0] in _COMPENSATED:
        fields["kind"] = KINDS[parts.pop(0)]
    elif parts:
        fields["order"] = _named(text, parse_order, parts.pop(0))
    if parts:
        raise ValueError(f"accumulate {text!r}: {parts[0]!r} is one part too many; the form is {_GRAMMAR}")
    if arrow:
        fields["promoted"] = _named(text, _format, wide.strip())
    return _named(text, lambda _: Accumulator(**fields), text)


def _format(fmt: Any) -> Format:
    return get_float_format(fmt, "accumulate")


def _with_unit(text: str, unit: Unit, parts: list[str]) -> Accumulator:
    words = list(parts)
    order = _named(text, parse_order, words.pop()) if words and words[-1].startswith("split(") else sequential
    if len(words) > 1 or "->" in words:
        raise ValueError(f"accumulate {text!r}: a unit takes one output format and split(k), no more; the form is {_GRAMMAR}")
    output = _named(text, _format, words[0] if words else unit.output_names[0])
    return _named(text, lambda _: Accumulator(kind=UNIT, format=output, unit=unit, order=order), text)


def _named(text: str, read: Callable[[str], Any], part: str) -> Any:
    """``read(part)``, with errors that repeat the whole text and say what there is."""
    try:
        return read(part)
    except ValueError as error:
        orders = ", ".join((*ORDERS, *_COMPENSATED))
        message = str(error).removeprefix("accumulate: ")
        raise ValueError(f"accumulate {text!r}: {message}. The form is {_GRAMMAR}; orders: {orders}") from None


def _as_order(order: Any) -> Order:
    if isinstance(order, Order):
        return order
    if isinstance(order, str):
        return parse_order(order)
    return given(order)

