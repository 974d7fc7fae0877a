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
    """Parts whose terms are chained in ``format``; their sums, rounded to ``promoted``, are chained in it."""

    name = "parts"

    def check(self, accumulator: Asked) -> None:
        super().check(accumulator)
        second = accumulator.promoted
        if second is None:
            raise ValueError("accumulate: the kind 'parts' needs a second format")
        if not accumulator.order.has_parts:
            orders = f"blocked(b), lanes(l) or split(k), not {accumulator.order.brief}"
            raise ValueError(f"accumulate: '->{second.name}' needs {orders}")
        if not (second.has_zero and second.signed):
            raise ValueError(f"accumulate: {second.name} has no zero or no sign, and cannot accumulate")

    def held(self, accumulator: Asked) -> Format | None:
        return accumulator.promoted

    def computing_formats(self, accumulator: Asked, rounding: Rounding) -> tuple[Format, ...]:
        assert accumulator.promoted is not None
        return accumulator.format, accumulator.promoted

    def text(self, accumulator: Asked) -> str:
        return f"{super().text(accumulator)}->{accumulator.promoted}"


TREE, PARTS = Tree(), Parts()
