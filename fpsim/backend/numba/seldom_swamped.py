"""Products of float32 sums, which are seldom swamped: chains run uncounted, and counted where they may be.

A chain runs a few terms at a time. What the largest sum so far and the terms to come bound decides how: no addition is
swamped whose leaf exceeds half an ulp of every sum it may meet, and no sum needs a look that cannot be the largest one.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fpsim.backend.numba.block_bounds import LANES, LEAST, SLACK, swamped_share
from fpsim.backend.numba.compiler import inlined
from fpsim.backend.numba.counted import LARGEST, UNCHANGED, CountingTileOperation
from fpsim.backend.numba.intrinsics import as_bits, as_float, int_and
from fpsim.backend.numba.observed import (
    NOTHING,
    RECOUNTING,
    SEEKING,
    SELDOM_SWAMPED as SELDOM_SWAMPED,
    SWAMPED_ALONE as SWAMPED_ALONE,
    observes,
)
from fpsim.backend.numba.products import chain_tile, largest_lane
from fpsim.backend.numba.tiles import (
    EXPONENT,
    Stored,
    Vector,
    any_unset,
    data_of,
    in_pairs,
    larger_magnitude,
    largest_of_lanes,
    load_tile,
    load_vector,
    splat,
    store_tile,
    vectors_of,
)


@observes(SELDOM_SWAMPED)
class _SeldomSwamped(CountingTileOperation):
    """What lies outside chains is counted as everywhere."""

    @staticmethod
    def make_chain(mode: int, flags: int) -> Any:
        return _make_chain(mode, flags, True)


@observes(SWAMPED_ALONE)
class _SwampedAlone(CountingTileOperation):
    """The same, and the largest sum is not asked for."""

    @staticmethod
    def make_chain(mode: int, flags: int) -> Any:
        return _make_chain(mode, flags, False)


@observes(SEEKING)
class _Seeking(CountingTileOperation):
    """Keeps the largest magnitude, in the register for what is seen."""

    def keep(self, tallied: Stored, observer: int) -> None:
        super().keep(tallied, observer)
        self.met: list[Vector] = []

    def chain(self, old: Vector, left: Vector, right: Vector, *draws: Vector | None) -> Vector:
        new = self.arithmetic.chain(old, left, right, (draws[0], draws[1]))
        self.met += new.split()
        return new

    def tracked(self, seen: Any) -> Any:
        before = Vector(self.builder, self.builder.extract_value(seen, 0))
        return self.builder.insert_value(seen, in_pairs(larger_magnitude, [*self.met, before]).value, 0)


@observes(RECOUNTING)
class _Recounting(CountingTileOperation):
    """Counts the nonzero leaves that leave their sum as it was."""

    def chain(self, old: Vector, left: Vector, right: Vector, *draws: Vector | None) -> Vector:
        arithmetic = self.arithmetic
        new = arithmetic.chain(old, left, right, (draws[0], draws[1]))
        nonzero = left.compare("!=", 0.0) & right.compare("!=", 0.0)
        if not arithmetic.exact_products:
            assert arithmetic.last_leaf is not None
            nonzero = arithmetic.last_leaf.compare("!=", 0.0)
        self.tally(UNCHANGED, nonzero & new.compare("==", old))
        return new


@intrinsic
def _largest_sum(typing_context: Any, tile: Any) -> Any:
    """The largest magnitude in a tile."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return largest_of_lanes(in_pairs(larger_magnitude, vectors_of(builder, arguments[0], tile.count)))

    return tile.element(tile), generate


@intrinsic
def _is_below(typing_context: Any, tile: Any, limit: Any) -> Any:
    """Whether every magnitude in a tile is below the limit."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        largest = in_pairs(larger_magnitude, vectors_of(builder, arguments[0], tile.count))
        return builder.not_(any_unset(largest.compare("<", splat(builder, arguments[1], tile.lanes))))

    return types.boolean(tile, limit), generate


@intrinsic
def _at_most(typing_context: Any, left: Any, left_offset: Any, right: Any, right_offset: Any, limit: Any) -> Any:
    """A bit for each lane: whether the product of two arrays' elements there is at most the limit."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, y = (
            load_vector(builder, data_of(context, builder, array, arguments[i]), arguments[i + 1], LANES)
            for i, array in ((0, left), (2, right))
        )
        small = (x * y).compare("<=", splat(builder, arguments[4], LANES))
        return builder.zext(builder.bitcast(small.value, ir.IntType(LANES)), ir.IntType(64))

    return types.int64(left, left_offset, right, right_offset, limit), generate


@lru_cache(maxsize=16)
def _make_chain(mode: int, flags: int, seeks: bool) -> Any:
    """What runs a chain of a tile: (top, seen) after `count` more terms. With `seeks` the largest sum is kept too.

    `observed` are, of the blocks of LANES terms that a program's chains consist of, the smallest magnitudes of each term's
    factors, flat (group, block, term) and (panel, block, term), and what `block_bounds.bounds_of_tiles` makes. `done` is the
    number of the chain's first block.
    """
    share, exponent = swamped_share(mode), np.int32(EXPONENT[32])
    less, more = np.float32(1 - SLACK), np.float32(1 + SLACK)

    @inlined
    def chain(
        top: Any, seen: Any, a: Any, a_offset: int, a_step: int, b: Any, b_offset: int, b_step: int, count: int,
        constants: Any, hashes: Any, observed: Any, tallied: Any, tally: int, group: int, panel: int, done: int,
    ) -> Any:  # fmt: skip
        least_a, least_b, ceilings, growths = observed
        blocks, largest = growths.shape[2], tally + LARGEST * LANES
        least_largest = largest_lane(load_tile(seen, tallied, largest, 0)) * less if seeks else np.float32(np.inf)
        for low in range(0, count, LANES):
            terms = min(LANES, count - low)
            growth = growths[panel, group, done]
            if _is_below(top, min(ceilings[panel, group, done], least_largest - growth)):
                for _ in range(terms):
                    top, seen = chain_tile(
                        top, seen, a, a_offset, b, b_offset, constants, hashes, 0, 0, 0, 0, tallied, tally, mode, flags,
                        NOTHING,
                    )  # fmt: skip
                    a_offset += a_step
                    b_offset += b_step
            else:
                bound = _largest_sum(top) + growth
                if seeks and not bound < least_largest:
                    best, ahead = load_tile(seen, tallied, largest, 0), top
                    for k in range(terms):
                        ahead, best = chain_tile(
                            ahead, best, a, a_offset + k * a_step, b, b_offset + k * b_step, constants, hashes, 0, 0, 0, 0,
                            tallied, tally, mode, flags, SEEKING,
                        )  # fmt: skip
                    store_tile(best, tallied, largest, 0)
                    least_largest = largest_lane(best) * less
                place_a, place_b = (group * blocks + done) * LANES, (panel * blocks + done) * LANES
                power = as_float(int_and(as_bits(bound * more), exponent))
                small = _at_most(least_a, place_a, least_b, place_b, power * share * more + LEAST)
                for k in range(terms):
                    if (small >> k) & 1:
                        top, seen = chain_tile(
                            top, seen, a, a_offset, b, b_offset, constants, hashes, 0, 0, 0, 0, tallied, tally, mode, flags,
                            RECOUNTING,
                        )  # fmt: skip
                    else:
                        top, seen = chain_tile(
                            top, seen, a, a_offset, b, b_offset, constants, hashes, 0, 0, 0, 0, tallied, tally, mode, flags,
                            NOTHING,
                        )  # fmt: skip
                    a_offset += a_step
                    b_offset += b_step
            done += 1
        return top, seen

    return chain
