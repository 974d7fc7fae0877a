"""What kernels of sums do with a tile and its operands, vector by vector; what observes them builds on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from fpsim.backend.numba.observed import NOTHING, observes
from fpsim.backend.numba.rounding import STOCHASTIC
from fpsim.backend.numba.sums_rounding import (
    BY_BITS,
    CAREFUL,
    EXACT_PRODUCTS,
    EXACT_SUMS,
    FORMAT_IS_CARRIER,
    LENGTH,
    Arithmetic,
)
from fpsim.backend.numba.tiles import (
    HAS_MASK_REGISTERS,
    Stored,
    TileType,
    Vector,
    data_of,
    in_pairs,
    index,
    larger_power,
    load_scalar,
    load_vector,
    splat,
    tile_of,
    together,
)

BY_ELEMENT = -1  # a tally for each element of a tile, in the place of a number of vectors

_MIX = ((16, 0x21F0AAAD), (15, 0xD35A2D97))


def _draws(builder: Any, bits: Vector, step: Any) -> Vector:
    """2^32 - 1 - draw, with draw as `random.step_draw` makes it from the elements' hashes."""
    word = ir.IntType(32)
    mixed = builder.trunc(step, word)
    for count, factor in _MIX:
        mixed = builder.mul(builder.xor(mixed, builder.lshr(mixed, word(count))), word(factor))
    mixed = builder.xor(mixed, builder.lshr(mixed, word(15)))
    bits = bits + splat(builder, mixed, bits.lanes)
    bits = (bits ^ (bits >> 16)) * _MIX[0][1]
    return bits ^ (bits >> 15)


def operand_pairs(
    builder: Any, tile: TileType, a: Any, a_offset: Any, b: Any, b_offset: Any
) -> list[tuple[Vector, Vector]]:
    """The pairs of factors, one for each vector of the tile: a factor for each row by vectors of columns or, where offsets are
    tuples of one for each vector, vectors by vectors."""
    if isinstance(a_offset.type, ir.ArrayType):
        places = ([builder.extract_value(offset, i) for i in range(tile.count)] for offset in (a_offset, b_offset))
        return [
            (load_vector(builder, a, left, tile.lanes), load_vector(builder, b, right, tile.lanes))
            for left, right in zip(*places, strict=True)
        ]
    columns = [
        load_vector(builder, b, builder.add(b_offset, index(tile.lanes * vector)), tile.lanes)
        for vector in range(tile.vectors)
    ]
    pairs = []
    for row in range(tile.rows):
        factor = load_scalar(builder, a, builder.add(a_offset, index(row)), tile.lanes)
        pairs += [(factor, column) for column in columns]
    return pairs


class TileOperation:
    """What the tile operations share: unpacked arguments, and a loop over the vectors of a tile."""

    arithmetic_type = Arithmetic
    tallies = 0  # vectors that are kept for a tile, or BY_ELEMENT
    stages = False  # whether a step of a chain may be `leaf` and then `grow`
    make_chain: Callable[..., Any] | None = None  # of a mode and flags, of what runs chains instead

    def __init__(self, context: Any, builder: Any, tile: TileType, mode: int, flags: int, constants: Any):
        self.context, self.builder, self.tile = context, builder, tile
        scalars = [builder.extract_value(constants, i) for i in range(LENGTH)]
        self.arithmetic = self.arithmetic_type(builder, tile.lanes, scalars, mode, flags)
        self.stochastic = mode == STOCHASTIC

    def keep(self, tallied: Stored, observer: int) -> None:
        """Where tallies lie, and who observes."""

    @property
    def has_room(self) -> bool:
        """Whether registers are left for many vectors at once: there are 32, and no branch for the unlikely needs some."""
        simple = not self.arithmetic.flags & (CAREFUL | EXACT_PRODUCTS | FORMAT_IS_CARRIER | BY_BITS | EXACT_SUMS)
        return HAS_MASK_REGISTERS and simple and self.tile.lanes == 16

    def leaf(self, left: Vector, right: Vector, draw: Vector | None) -> Vector:
        return self.arithmetic.leaf(left, right, draw)

    def grow(self, total: Vector, leaf: Vector, draw: Vector | None) -> Vector:
        """total + leaf, as a step of a chain."""
        return self.arithmetic.add(total, leaf, draw)

    def add(self, left: Vector, right: Vector, draw: Vector | None) -> Vector:
        return self.arithmetic.add(left, right, draw)

    def chain(self, total: Vector, left: Vector, right: Vector, *draws: Vector | None) -> Vector:
        return self.arithmetic.chain(total, left, right, (draws[0], draws[1]))

    def draws(self, hashes: Any, step: Any) -> list[Vector | None]:
        """One draw for each vector of the tile; `hashes` is (array type, array, offset, stride)."""
        if not self.stochastic:
            return [None] * self.tile.count
        array_type, array, offset, stride = hashes
        data = data_of(self.context, self.builder, array_type, array)
        lanes = self.tile.lanes
        at_once = 2 if self.tile.vectors % 2 == 0 and lanes == 8 else 1  # as many 32-bit lanes as a register has
        draws: list[Vector | None] = []
        for row in range(self.tile.rows):
            start = self.builder.add(offset, self.builder.mul(stride, index(row)))
            for vector in range(0, self.tile.vectors, at_once):
                place = self.builder.add(start, index(vector * lanes))
                bits = _draws(self.builder, load_vector(self.builder, data, place, lanes * at_once), step)
                if self.arithmetic.by_bits:
                    draws.append(bits)
                    continue
                for part in range(at_once):
                    draws.append(bits.part(part * lanes, lanes).unsigned_to_double())
        return draws

    def operands(self, a: Any, a_offset: Any, b: Any, b_offset: Any) -> list[tuple[Vector, Vector]]:
        return operand_pairs(self.builder, self.tile, a, a_offset, b, b_offset)

    def tracked(self, seen: Any) -> Any:
        """The largest power of two met, merged into the running one."""
        self._merge()
        if not self.arithmetic.seen:
            return seen
        best = Vector(self.builder, self.builder.extract_value(seen, 0))
        return self.builder.insert_value(seen, larger_power(best, self.arithmetic.seen[0]).value, 0)

    def with_seen(self, signature: Any, kind: Any, vectors: list[Vector], seen: Any) -> Any:
        """(tile, seen) as an intrinsic gives them, from the tile's vectors and what was met before."""
        result = [tile_of(self.builder, kind, vectors), self.tracked(seen)]
        return self.context.make_tuple(self.builder, signature.return_type, result)

    def _merge(self) -> None:
        """What was met so far in one register: registers are few."""
        powers = [vector for seen in self.arithmetic.seen for vector in seen.split()]
        self.arithmetic.seen = [in_pairs(larger_power, powers)] if powers else []

    def each(
        self, apply: Callable[..., Vector], *columns: Sequence[Vector | None] | Sequence[Callable[[], Vector]]
    ) -> list[Vector]:
        """`apply` on corresponding vectors of a tile, a few at a time; what is to be loaded is loaded when its turn comes."""
        results: list[Vector] = []
        at_once = 4 if self.has_room else 2
        for start in range(0, self.tile.count, at_once):
            taken = ([x for x in column[start : start + at_once] if x is not None] for column in columns)
            parts = [[x if isinstance(x, Vector) else x() for x in part] for part in taken]
            results += apply(*(together(part) if part else None for part in parts)).split()
            self._merge()
        return results

    def chains(
        self, totals: list[Vector], pairs: list[tuple[Vector, Vector]], leaf_draws: list[Vector | None],
        draws: list[Vector | None],
    ) -> list[Vector]:  # fmt: skip
        """A step of the chain of each vector: where it can be, all leaves first, so that what waits holds up less."""
        if self.stages and self.has_room:
            return self.each(self.grow, totals, self.each(self.leaf, *zip(*pairs, strict=True), leaf_draws), draws)
        return self.each(self.chain, totals, *zip(*pairs, strict=True), leaf_draws, draws)


@observes(NOTHING)
class PlainTileOperation(TileOperation):
    """The operations and nothing else."""

    stages = True
