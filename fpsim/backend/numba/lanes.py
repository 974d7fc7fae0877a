"""Sums of products lane by lane: both factors are vectors, so that every lane has factors of its own.

A slot is a vector of sums, that of a block and a row. Its k-th factors lie at ``block * stride + rows[row] + steps[k]`` of
either operand, so that operands are read where they lie: the taps of a convolution over channels, which are the lanes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from fpsim.backend.numba.compensated import OPERATIONS, finish_tile, step_tile
from fpsim.backend.numba.compiler import inlined, kernel
from fpsim.backend.numba.intrinsics import uninitialized
from fpsim.backend.numba.observed import NOTHING, TILE_OPERATIONS
from fpsim.backend.numba.products import (
    ADD,
    CHAIN,
    LEAF_STEPS,
    PUSH_LEAF,
    add_tile,
    chain_tile,
    largest_lane,
    leaf_tile,
)
from fpsim.backend.numba.random import element_hash
from fpsim.backend.numba.sums_rounding import TRACK, TRACK_SUMS, constants_of, restore_direction, set_direction
from fpsim.backend.numba.tiles import store_tile, zero_tile

LANES = 16  # sums of a slot
SLOTS = 8  # vectors of a tile: chains enough to hide how long each takes


@inlined
def _slots_of(tile: int, parts: int, lanes: int, rows: Any, stride: int, slots: int, beyond: int, places: Any) -> Any:
    """Where the slots of a tile begin, a slot being `parts` vectors of as many lanes; those after the last are `beyond`."""
    slot, part = tile * SLOTS // parts, 0
    block, row = slot // rows.size, slot % rows.size
    for i in range(SLOTS):
        places[i] = block * stride + rows[row] + part * lanes if slot < slots else beyond
        part += 1
        if part == parts:
            part = 0
            slot += 1
            row += 1
            if row == rows.size:
                row = 0
                block += 1
    return (places[0], places[1], places[2], places[3], places[4], places[5], places[6], places[7])


@inlined
def _moved(places: Any, step: int) -> Any:
    return (
        places[0] + step, places[1] + step, places[2] + step, places[3] + step, places[4] + step, places[5] + step,
        places[6] + step, places[7] + step,
    )  # fmt: skip


@lru_cache(maxsize=128)
def make_lanes(element: str, mode: int, flags: int, observer: int = NOTHING, compensation: str = "") -> Any:
    """The kernel for one carrier ("f4" or "f8"), mode and set of flags for one observer.

    Its arguments: a and b (flat), out (flat, SLOTS vectors for each tile), for a and for b what rows, leaves and a block add
    to a place, how many slots there are and where in a there are zeros for those beyond, which tiles to compute, the range of
    them, the program and a stack of tiles (as `products.make_product`'s), the row of constants, hashes laid out as out
    (stochastic), the limit on magnitudes, an array (tile) that receives 1 where the limit was reached, and a flat array for
    tallies, vectors of each tile.

    With "kahan" or "neumaier" as compensation it takes the leaves in ascending order, and observes nothing: the program, the
    stack and the tallies are not used.
    """
    kind, lanes = (np.float32, 16) if element == "f4" else (np.float64, 8)
    size, parts = SLOTS * lanes, LANES // lanes
    track = flags & (TRACK | TRACK_SUMS)
    kept = TILE_OPERATIONS[observer].tallies
    is_compensated, neumaier = bool(compensation), int(compensation == "neumaier")

    @kernel
    def lane_sums(
        a: Any, b: Any, out: Any, a_rows: Any, b_rows: Any, a_steps: Any, b_steps: Any, a_stride: int, b_stride: int,
        slots: int, zeros: int, tiles: Any, first: int, last: int, program: Any, stack: Any, row: Any, hashes: Any,
        limit: float, overflowed: Any, tallied: Any,
    ) -> None:  # fmt: skip
        previous = set_direction(mode, flags)
        constants = constants_of(row)
        places = uninitialized(SLOTS, np.int64)
        for tile in range(first, last):
            a_places = _slots_of(tiles[tile], parts, lanes, a_rows, a_stride, slots, zeros, places)
            b_places = _slots_of(tiles[tile], parts, lanes, b_rows, b_stride, slots, 0, places)
            place, tally = tile * size, tile * kept * lanes
            if kept:
                store_tile(zero_tile(kind, 1, kept), tallied, tally, 0)
            top, seen = zero_tile(kind, 1, SLOTS), zero_tile(kind, 1, 1)
            if is_compensated:
                lost = zero_tile(kind, 1, SLOTS)
                for k in range(a_steps.size):
                    top, lost, seen = step_tile(
                        top, lost, seen, a, _moved(a_places, a_steps[k]), b, _moved(b_places, b_steps[k]), constants, hashes,
                        place, 0, k + LEAF_STEPS, k * OPERATIONS, mode, flags, neumaier,
                    )  # fmt: skip
                if neumaier:
                    top, seen = finish_tile(
                        top, lost, seen, constants, hashes, place, 0, a_steps.size * OPERATIONS, mode, flags
                    )
            else:
                height = 0
                for line in range(program.shape[0]):
                    operation = program[line, 0]
                    leaf, count, stride, node = program[line, 1], program[line, 2], program[line, 3], program[line, 4]
                    if operation == CHAIN:
                        for _ in range(count):
                            top, seen = chain_tile(
                                top, seen, a, _moved(a_places, a_steps[leaf]), b, _moved(b_places, b_steps[leaf]), constants,
                                hashes, place, 0, leaf + LEAF_STEPS, node, tallied, tally, mode, flags, observer,
                            )  # fmt: skip
                            leaf += stride
                            node += 1
                    elif operation == ADD:
                        height -= 1
                        top, seen = add_tile(
                            top, seen, stack, (height - 1) * size, 0, constants, hashes, place, 0, node, tallied, tally, mode,
                            flags, observer,
                        )  # fmt: skip
                    else:
                        if height > 0:
                            store_tile(top, stack, (height - 1) * size, 0)
                        height += 1
                        if operation == PUSH_LEAF:
                            top, seen = leaf_tile(
                                top, seen, a, _moved(a_places, a_steps[leaf]), b, _moved(b_places, b_steps[leaf]), constants,
                                hashes, place, 0, leaf + LEAF_STEPS, tallied, tally, mode, flags, observer,
                            )  # fmt: skip
                        else:
                            top = zero_tile(kind, 1, SLOTS)
            store_tile(top, out, place, 0)
            if track and not largest_lane(seen) < limit:
                overflowed[tile] = 1
        restore_direction(previous, mode, flags)

    return lane_sums


@kernel
def hash_elements(rows: Any, stride: int, step: int, parts: int, tiles: Any, key: Any, out: Any) -> None:
    """The strong hash of each element, (tile, SLOTS vectors): of number block * stride + rows[row] + lane * step."""
    lanes = out.shape[2]
    for tile in range(out.shape[0]):
        for i in range(SLOTS):
            slot, part = divmod(tiles[tile] * SLOTS + i, parts)
            number = slot // rows.size * stride + rows[slot % rows.size] + part * lanes * step
            for lane in range(lanes):
                out[tile, i, lane] = element_hash(key, np.int64(number + lane * step))
