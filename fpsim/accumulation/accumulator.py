"""Accumulators: the format, the order and the treatment of products behind ``accumulate=``.

    "<format>[:<order>][:fma | :exact-products][-><format2>]", "exact", "native", "<unit>[:<output format>][:split(k)]"

Left out: "fp32", sequential. `kahan` and `neumaier` stand where the order stands. A string is parsed once; inside there are
objects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from fpsim.accumulation.orders import ORDERS, Order, given, parse_order, sequential
from fpsim.accumulation.trees import Tree
from fpsim.accumulation.units import Unit, find_unit
from fpsim.numbers.formats import Format, get_format

Kind = Literal["tree", "kahan", "neumaier", "exact", "native", "unit"]
Products = Literal["rounded", "exact", "fma"]

_COMPENSATED = ("kahan", "neumaier")
_WHOLE = ("exact", "native")
_PRODUCTS: dict[str, Products] = {"fma": "fma", "exact-products": "exact"}
_PRODUCT_NAMES = {value: key for key, value in _PRODUCTS.items()}
_GRAMMAR = '"<format>[:<order>][:fma | :exact-products][-><format2>]", "exact", "native" or a unit like "h100:split(4)"'


@dataclass(frozen=True)
class Accumulator:
    """How a sum of products is accumulated. Made from parts, or from a string by `get_accumulator`.

    kind      "tree" (a tree of rounded additions in ``order``), "kahan", "neumaier", "exact", "native", "unit"
    format    what every addition rounds to; "exact" rounds once to the result's format, "native" is the library's own
              (both hold fp32 here, which nothing reads); a unit's output format
    order     the order of the additions (an Order, a Tree or a name); sequential for every other kind than "tree"
    products  "rounded": a leaf is the product rounded to ``format``; "exact": leaves are exact and every addition
              rounds the exact sum of its operands once; "fma": the same, for orders made of chains
    promoted  the wider format in which block sums are chained, with blocked(b) only
    unit      the hardware unit of the kind "unit", whose instructions fix order, alignment and rounding; its order may be
              split(k): that many parts, each through the unit from +0, then added one after the other in ``format``

    Raises ValueError for parts that do not go together. ``str`` gives the text that `get_accumulator` reads.
    """

    kind: Kind = "tree"
    format: Format = field(default_factory=lambda: get_format("fp32"))
    order: Order = sequential
    products: Products = "rounded"
    promoted: Format | None = None
    unit: Unit | None = None

    def __post_init__(self) -> None:
        _set = object.__setattr__
        _set(self, "format", get_format(self.format))
        _set(self, "order", _as_order(self.order))
        if self.promoted is not None:
            _set(self, "promoted", get_format(self.promoted))
        self._check()

    def _check(self) -> None:
        kinds = ("tree", *_COMPENSATED, *_WHOLE, "unit")
        if self.kind not in kinds:
            raise ValueError(f"accumulate: no kind {self.kind!r}; there are {', '.join(kinds)}")
        if self.products not in ("rounded", *_PRODUCT_NAMES):
            raise ValueError(f"accumulate: no products {self.products!r}; there are rounded, exact, fma")
        in_order = self.order == sequential or (self.kind == "unit" and self.order.name == "split")
        plain = in_order and self.products == "rounded" and self.promoted is None
        if self.kind != "tree" and not plain:
            raise ValueError(f"accumulate: {self.kind} takes no order, no fma or exact-products and no second format")
        if (self.kind == "unit") != (self.unit is not None):
            raise ValueError("accumulate: the kind 'unit' and a unit go together")
        if self.unit is not None and self.format.name not in self.unit.output_names:
            outputs = ", ".join(self.unit.output_names)
            raise ValueError(f"accumulate: unit {self.unit.name} has no {self.format.name} output; it has {outputs}")
        if not self.format.has_zero:
            raise ValueError(f"accumulate: {self.format.name} has no zero and cannot accumulate")
        if self.products == "fma" and not self.order.is_chains:
            raise ValueError(
                f"accumulate: fma needs an order made of chains, and {_brief(self.order)} is not; "
                "use exact-products, or tree.chains() for a tree whose first two terms of a chain may start from +0"
            )
        if self.promoted is not None:
            self._check_promotion(self.promoted)

    def _check_promotion(self, wide: Format) -> None:
        if self.order.name != "blocked":
            raise ValueError(f"accumulate: '->{wide.name}' needs blocked(b), not {_brief(self.order)}")
        narrow = self.format
        lost = wide.precision < narrow.precision or wide.max_finite < narrow.max_finite
        if lost or wide.min_subnormal > narrow.min_subnormal or not wide.signed:
            raise ValueError(f"accumulate: '->{wide.name}' must hold every value of {narrow.name}, and does not")

    @property
    def for_sums(self) -> Accumulator:
        """What adds terms that are no products: units only multiply, and beside them sums are chains in fp32."""
        return get_accumulator("fp32") if self.kind == "unit" else self

    def require_operands(self, fmt: Format) -> None:
        """Raise ValueError, listing what there is, unless this accumulates products of values of `fmt`."""
        if self.unit is not None:
            self.unit.instruction(fmt, self.format.name)

    def __call__(self, n: int) -> Tree:
        """The tree of a sum of n terms; ValueError for kinds that are no tree."""
        if self.kind != "tree":
            raise ValueError(f"accumulate: {self.kind} is not a tree of rounded additions")
        return self.order(n)

    def __str__(self) -> str:
        if self.kind in _WHOLE:
            return self.kind
        if self.unit is not None:
            usual = self.format.name == self.unit.output_names[0]
            parts = [self.unit.name, *([] if usual else [self.format.name])]
            return ":".join(parts + ([] if self.order == sequential else [str(self.order)]))
        text = self.format.name
        if self.kind in _COMPENSATED:
            return f"{text}:{self.kind}"
        if self.order != sequential:
            text += f":{self.order}"
        if self.products != "rounded":
            text += f":{_PRODUCT_NAMES[self.products]}"
        return text if self.promoted is None else f"{text}->{self.promoted.name}"


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
    if body == "exact":
        return Accumulator(kind="exact")
    if body == "native":
        return Accumulator(kind="native")
    body, arrow, wide = body.partition("->")
    name, *parts = (part.strip() for part in body.split(":"))
    unit = find_unit(name)
    if unit is not None:
        return _with_unit(text, unit, parts + ["->"] * bool(arrow))
    if name in _WHOLE:
        raise ValueError(f"accumulate {text!r}: {name!r} stands alone")
    fields: dict[str, Any] = {"format": _named(text, get_format, name)}
    if parts and parts[-1] in _PRODUCTS:
        fields["products"] = _PRODUCTS[parts.pop()]
    if parts and parts[0] in _COMPENSATED:
        fields["kind"] = parts.pop(0)
    elif parts:
        fields["order"] = _named(text, parse_order, parts.pop(0))
    if parts:
        raise ValueError(f"accumulate {text!r}: {parts[0]!r} is one part too many; the form is {_GRAMMAR}")
    if arrow:
        fields["promoted"] = _named(text, get_format, wide.strip())
    return _named(text, lambda _: Accumulator(**fields), text)


def _with_unit(text: str, unit: Unit, parts: list[str]) -> Accumulator:
    given = list(parts)
    order = _named(text, parse_order, given.pop()) if given and given[-1].startswith("split(") else sequential
    if len(given) > 1 or "->" in given:
        raise ValueError(f"accumulate {text!r}: a unit takes one output format and split(k), no more; the form is {_GRAMMAR}")
    output = _named(text, get_format, given[0] if given else unit.output_names[0])
    return _named(text, lambda _: Accumulator(kind="unit", format=output, unit=unit, order=order), text)


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


def _brief(order: Order) -> str:
    return f"the given tree of {order.parameters[0].leaves} leaves" if order.name == "given" else str(order)
