"""The kinds of accumulators, a file each and a row in `KINDS`."""

from fpsim.accumulation.kinds.compensated import KAHAN, NEUMAIER
from fpsim.accumulation.kinds.kind import Kind
from fpsim.accumulation.kinds.tree import PARTS, TREE
from fpsim.accumulation.kinds.unit import UNIT
from fpsim.accumulation.kinds.whole import EXACT, NATIVE

#: Every kind, by the name that an `Accumulator` is given.
KINDS: dict[str, Kind] = {kind.name: kind for kind in (TREE, PARTS, KAHAN, NEUMAIER, EXACT, NATIVE, UNIT)}


def get_kind(kind: str | Kind) -> Kind:
    """The kind of that name; ValueError, listing what there is, for an unknown one."""
    known_kind = KINDS.get(str(kind))  # there is one of each
    if known_kind is None:
        raise ValueError(f"accumulate: no kind {kind!r}; there are {', '.join(KINDS)}")
    return known_kind
