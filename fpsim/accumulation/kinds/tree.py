"""Trees of rounded additions, and parts of sums that are chained in a second format."""

from __future__ import annotations

from fpsim.accumulation.kinds.kind import Asked, Kind
from fpsim.accumulation.orders import sequential
from fpsim.numbers.formats import Format
from fpsim.numbers.modes import Rounding

_SUFFIXES = {"rounded": "", "exact": ":exact-products", "fma": ":fma"}


class Tree(Kind):
    """A tree of additions in ``order``, each rounded to ``format``."""

    name = "tree"
    widens = True
    uncounted = None

    def check(self, accumulator: Asked) -> None:
        if accumulator.products == "fma" and not accumulator.order.is_chains:
            raise ValueError(
                f"accumulate: fma needs an order made of chains, and {accumulator.order.brief} is not; "
                "use exact-products, or tree.chains() for a tree whose first two terms of a chain may start from +0"
            )

    def text(self, accumulator: Asked) -> str:
        order = "" if accumulator.order == sequential else f":{accumulator.order}"
        return accumulator.format.name + order + _SUFFIXES[accumulator.products]


class Parts(Tree):
    """Blocks whose terms are chained in ``format``, and their sums in the wider format ``promoted``."""

    name = "parts"

    def check(self, accumulator: Asked) -> None:
        super().check(accumulator)
        narrow, wide = accumulator.format, accumulator.promoted
        if wide is None:
            raise ValueError("accumulate: the kind 'parts' needs a second format")
        if accumulator.order.name != "blocked":
            raise ValueError(f"accumulate: '->{wide.name}' needs blocked(b), not {accumulator.order.brief}")
        lost = wide.precision < narrow.precision or wide.max_finite < narrow.max_finite
        if lost or wide.min_subnormal > narrow.min_subnormal or not wide.signed:
            raise ValueError(f"accumulate: '->{wide.name}' must hold every value of {narrow.name}, and does not")

    def held(self, accumulator: Asked) -> Format | None:
        return accumulator.promoted

    def computing_formats(self, accumulator: Asked, rounding: Rounding) -> tuple[Format, ...]:
        assert accumulator.promoted is not None
        return accumulator.format, accumulator.promoted

    def text(self, accumulator: Asked) -> str:
        return f"{super().text(accumulator)}->{accumulator.promoted}"


TREE, PARTS = Tree(), Parts()
