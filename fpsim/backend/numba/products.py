"""Products of matrices: an interpreter walks a tree's program over k while a tile of results stays in registers.

Operands come packed: `a` in groups of `rows` rows, k-major; `b` in panels of columns. A chain, a pairwise tree and a
random one run in the same kernel; only the rounding mode, what leaves are, and the shape of the tile are code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fpsim.backend.numba.compiler import kernel
from fpsim.backend.numba.observed import NOTHING, TILE_OPERATIONS, observes
from fpsim.backend.numba.random import element_hash
from fpsim.backend.numba.sums_rounding import (
    BY_BITS,
    CAREFUL,
    EXACT_PRODUCTS,
    EXACT_SUMS,
    FORMAT_IS_CARRIER,
    LENGTH,
    STOCHASTIC,
    TRACK,
    TRACK_SUMS,
    Arithmetic,
    constants_of,
    restore_direction,
    set_direction,
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
    largest_of_lanes,
    load_scalar,
    load_tile,
    load_vector,
    splat,
    store_tile,
    tile_of,
    tile_places,
    together,
    vectors_of,
    zero_tile,
)

# Instructions of a compiled program: rows of (operation, leaf, count, stride, first node).
PUSH_ZERO, PUSH_LEAF, ADD, CHAIN = range(4)
BY_ELEMENT = -1  # a tally for each element of a tile, in the place of a number of vectors
LEAF_STEPS = 0x80000000  # the rounding of leaf k draws as step 2^31 + k, that of node i as step i

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


def _operation(context: Any, builder: Any, tile: TileType, codes: tuple[Any, ...], constants: Any, tallied: Any, offset: Any,
               stride: Any) -> TileOperation:  # fmt: skip
    """The operation of a mode, flags and observer; `tallied` is (array type, array)."""
    mode, flags, observer = (code.literal_value for code in codes)
    operation: TileOperation = TILE_OPERATIONS[observer](context, builder, tile, mode, flags, constants)
    if operation.tallies:
        by_element = [] if operation.tallies != BY_ELEMENT else tile_places(builder, tile, offset, stride)
        places = by_element or [builder.add(offset, index(i * tile.lanes)) for i in range(operation.tallies)]
        operation.keep(Stored(builder, data_of(context, builder, *tallied), places, tile.lanes), observer)
    return operation


@intrinsic(prefer_literal=True)
def leaf_tile(
    typing_context: Any, total: Any, seen: Any, a: Any, a_offset: Any, b: Any, b_offset: Any, constants: Any,
    hashes: Any, place: Any, stride: Any, step: Any, tallied: Any, tally: Any, mode: Any, flags: Any, observer: Any,
) -> Any:  # fmt: skip
    """(leaf, seen)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, _, _, a_start, _, b_start, row, _, first, step_stride, number, _, tally_start, *_ = arguments
        work = _operation(
            context, builder, total, (mode, flags, observer), row, (tallied, arguments[11]), tally_start, step_stride
        )
        a_data, b_data = data_of(context, builder, a, arguments[2]), data_of(context, builder, b, arguments[4])
        pairs = work.operands(a_data, a_start, b_data, b_start)
        draws = work.draws((hashes, arguments[7], first, step_stride), number)
        vectors = work.each(work.leaf, *zip(*pairs, strict=True), draws)
        result = [tile_of(builder, arguments[0].type, vectors), work.tracked(arguments[1])]
        return context.make_tuple(builder, signature.return_type, result)

    operand_types = (total, seen, a, a_offset, b, b_offset, constants, hashes, place, stride, step, tallied, tally)
    return types.Tuple([total, seen])(*operand_types, mode, flags, observer), generate


@intrinsic(prefer_literal=True)
def add_tile(
    typing_context: Any, right: Any, seen: Any, stack: Any, left: Any, width: Any, constants: Any, hashes: Any,
    place: Any, stride: Any, step: Any, tallied: Any, tally: Any, mode: Any, flags: Any, observer: Any,
) -> Any:  # fmt: skip
    """(rounded(left + right), seen), with left at that place of the stack."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, _, _, start, row_length, row, _, first, step_stride, number, _, tally_start, *_ = arguments
        work = _operation(
            context, builder, right, (mode, flags, observer), row, (tallied, arguments[10]), tally_start, step_stride
        )
        draws = work.draws((hashes, arguments[6], first, step_stride), number)
        data = data_of(context, builder, stack, arguments[2])
        lefts = [
            partial(load_vector, builder, data, at, right.lanes) for at in tile_places(builder, right, start, row_length)
        ]
        vectors = work.each(work.add, lefts, vectors_of(builder, arguments[0], right.count), draws)
        result = [tile_of(builder, arguments[0].type, vectors), work.tracked(arguments[1])]
        return context.make_tuple(builder, signature.return_type, result)

    operand_types = (right, seen, stack, left, width, constants, hashes, place, stride, step, tallied, tally)
    return types.Tuple([right, seen])(*operand_types, mode, flags, observer), generate


@intrinsic(prefer_literal=True)
def chain_tile(
    typing_context: Any, total: Any, seen: Any, a: Any, a_offset: Any, b: Any, b_offset: Any, constants: Any,
    hashes: Any, place: Any, stride: Any, leaf_step: Any, step: Any, tallied: Any, tally: Any, mode: Any, flags: Any,
    observer: Any,
) -> Any:  # fmt: skip
    """(rounded(total + leaf), seen)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, _, _, a_start, _, b_start, row, _, first, step_stride, leaf_number, number, _, tally_start, *_ = arguments
        work = _operation(
            context, builder, total, (mode, flags, observer), row, (tallied, arguments[12]), tally_start, step_stride
        )
        a_data, b_data = data_of(context, builder, a, arguments[2]), data_of(context, builder, b, arguments[4])
        pairs = work.operands(a_data, a_start, b_data, b_start)
        where = (hashes, arguments[7], first, step_stride)
        leaf_draws, draws = work.draws(where, leaf_number), work.draws(where, number)
        totals = vectors_of(builder, arguments[0], total.count)
        vectors = work.chains(totals, pairs, leaf_draws, draws)
        result = [tile_of(builder, arguments[0].type, vectors), work.tracked(arguments[1])]
        return context.make_tuple(builder, signature.return_type, result)

    operand_types = (total, seen, a, a_offset, b, b_offset, constants, hashes, place, stride, leaf_step, step, tallied, tally)
    return types.Tuple([total, seen])(*operand_types, mode, flags, observer), generate


@intrinsic
def largest_lane(typing_context: Any, seen: Any) -> Any:
    """The largest lane of a tile of one vector."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return largest_of_lanes(Vector(builder, builder.extract_value(arguments[0], 0)))

    return seen.element(seen), generate


@lru_cache(maxsize=256)
def make_product(element: str, rows: int, vectors: int, mode: int, flags: int, observer: int = NOTHING) -> Any:
    """The kernel for one carrier ("f4" or "f8"), tile, mode and set of flags for one observer.

    Its arguments: a, b, out (flat), leaves, panels, b's strides from panel to panel and from k to k, the range of row
    groups, out's row stride, the program, a stack of tiles, the row of constants, hashes laid out as out (stochastic),
    the limit on magnitudes, an array (panel, group) that receives 1 where the limit was reached, and a flat array for
    tallies: vectors of each tile in the order of `overflowed`, or a number for each element, laid out as out. Where chains
    are run apart, what that takes comes instead, and the tallies of all tiles are the last vectors of `stack`, zeros before.
    """
    kind, lanes = (np.float32, 16) if element == "f4" else (np.float64, 8)
    width = vectors * lanes
    size = rows * width
    track = flags & (TRACK | TRACK_SUMS)
    kept = TILE_OPERATIONS[observer].tallies
    by_element = kept == BY_ELEMENT
    make_chain = TILE_OPERATIONS[observer].make_chain
    has_own_chain = make_chain is not None
    run_chain: Any = make_chain(mode, flags) if make_chain else None
    kept_rows, kept_vectors = (rows, vectors) if by_element else (1, kept)

    @kernel
    def product(
        a: Any, b: Any, out: Any, leaves: int, panels: int, panel_stride: int, leaf_stride: int, first: int, last: int,
        out_stride: int, program: Any, stack: Any, row: Any, hashes: Any, limit: float, overflowed: Any, *observed: Any,
    ) -> None:  # fmt: skip
        tallied = stack if has_own_chain else observed[0]
        previous = set_direction(mode, flags)
        constants = constants_of(row)
        for panel in range(panels):
            for group in range(first, last):
                a_start = group * leaves * rows
                b_start = panel * panel_stride
                place = group * rows * out_stride + panel * width
                tally = place if by_element else (panel * overflowed.shape[1] + group) * kept * lanes
                if has_own_chain:  # from tile to tile
                    tally = stack.size - kept * lanes
                elif kept:
                    store_tile(zero_tile(kind, kept_rows, kept_vectors), tallied, tally, out_stride)
                top = zero_tile(kind, rows, vectors)
                seen = zero_tile(kind, 1, 1)
                height = 0
                blocks = 0
                for line in range(program.shape[0]):
                    operation = program[line, 0]
                    leaf = program[line, 1]
                    count = program[line, 2]
                    stride = program[line, 3]
                    node = program[line, 4]
                    if operation == CHAIN:
                        a_offset = a_start + leaf * rows
                        b_offset = b_start + leaf * leaf_stride
                        leaf_step = leaf + LEAF_STEPS
                        if has_own_chain:
                            top, seen = run_chain(
                                top, seen, a, a_offset, stride * rows, b, b_offset, stride * leaf_stride, count, constants,
                                hashes, observed, tallied, tally, group, panel, blocks,
                            )  # fmt: skip
                            blocks += (count + lanes - 1) // lanes
                            continue
                        for _ in range(count):
                            top, seen = chain_tile(
                                top, seen, a, a_offset, b, b_offset, constants, hashes, place, out_stride, leaf_step,
                                node, tallied, tally, mode, flags, observer,
                            )  # fmt: skip
                            a_offset += stride * rows
                            b_offset += stride * leaf_stride
                            leaf_step += stride
                            node += 1
                    elif operation == ADD:
                        height -= 1
                        top, seen = add_tile(
                            top, seen, stack, (height - 1) * size, width, constants, hashes, place, out_stride, node,
                            tallied, tally, mode, flags, observer,
                        )  # fmt: skip
                    else:
                        if height > 0:
                            store_tile(top, stack, (height - 1) * size, width)
                        height += 1
                        if operation == PUSH_LEAF:
                            top, seen = leaf_tile(
                                top, seen, a, a_start + leaf * rows, b, b_start + leaf * leaf_stride, constants, hashes,
                                place, out_stride, leaf + LEAF_STEPS, tallied, tally, mode, flags, observer,
                            )  # fmt: skip
                        else:
                            top = zero_tile(kind, rows, vectors)
                store_tile(top, out, place, out_stride)
                if track:
                    if not largest_lane(seen) < limit:
                        overflowed[panel, group] = 1
        restore_direction(previous, mode, flags)

    return product


@kernel
def fill_hashes(hashes: Any, key: Any, first: int, row_step: int, column_step: int) -> None:
    """The strong hash of each element, whose row-major number is first + i * row_step + j * column_step."""
    for i in range(hashes.shape[0]):
        for j in range(hashes.shape[1]):
            hashes[i, j] = element_hash(key, np.int64(first + i * row_step + j * column_step))


@lru_cache(maxsize=16)
def make_add(mode: int, flags: int) -> Any:
    """The kernel `(x, y, row, hashes, node) -> None`: x = rounded(x + y), flat float64 arrays in whole vectors."""

    @kernel
    def add(x: Any, y: Any, row: Any, hashes: Any, node: int) -> None:
        previous = set_direction(mode, flags)
        constants = constants_of(row)
        like = zero_tile(np.float64, 1, 1)
        for i in range(0, x.size, 8):
            right = load_tile(like, y, i, 0)
            total, _ = add_tile(right, like, x, i, 0, constants, hashes, i, 0, node, x, 0, mode, flags, NOTHING)
            store_tile(total, x, i, 0)
        restore_direction(previous, mode, flags)

    return add
