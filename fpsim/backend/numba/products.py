"""Products of matrices: an interpreter walks a tree's program over k while a tile of results stays in registers.

Operands come packed: `a` in groups of `rows` rows, k-major; `b` in panels of columns. A chain, a pairwise tree and a
random one run in the same kernel; only the rounding mode, what leaves are, and the shape of the tile are code.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from fpsim.backend.numba.compiler import kernel
from fpsim.backend.numba.observed import NOTHING, TILE_OPERATIONS
from fpsim.backend.numba.random import element_hash
from fpsim.backend.numba.sums_rounding import (
    TRACK,
    TRACK_SUMS,
    constants_of,
    restore_direction,
    set_direction,
)
from fpsim.backend.numba.tile_operations import BY_ELEMENT, TileOperation
from fpsim.backend.numba.tiles import (
    Stored,
    TileType,
    Vector,
    data_of,
    index,
    largest_of_lanes,
    load_tile,
    load_vector,
    store_tile,
    tile_places,
    vectors_of,
    zero_tile,
)

# Instructions of a compiled program: rows of (operation, leaf, count, stride, first node).
PUSH_ZERO, PUSH_LEAF, ADD, CHAIN = range(4)
LEAF_STEPS = 0x80000000  # the rounding of leaf k draws as step 2^31 + k, that of node i as step i


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
        return work.with_seen(signature, arguments[0].type, vectors, arguments[1])

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
        return work.with_seen(signature, arguments[0].type, vectors, arguments[1])

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
        return work.with_seen(signature, arguments[0].type, vectors, arguments[1])

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
