"""Products of float32 sums, which are seldom swamped: chains run uncounted, and counted where they may be.

A chain runs a few terms at a time. What the largest sum so far and the terms to come bound decides how: no addition is
swamped whose leaf exceeds half an ulp of every sum it may meet, and no sum needs a look that cannot be the largest one.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numba.extending import intrinsic

from fpsim.backend.numba.block_bounds import LANES, SLACK, growth_of, swamped_share, terms_swamped
from fpsim.backend.numba.compiler import inlined
from fpsim.backend.numba.counted import LARGEST, UNCHANGED, CountingTileOperation
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
    Stored,
    Vector,
    in_pairs,
    larger_magnitude,
    largest_of_lanes,
    load_tile,
    store_tile,
    vectors_of,
)

_AHEAD = 32  # blocks at a time: in more, roundings of their sums might amount to more than SLACK


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


@lru_cache(maxsize=16)
def _make_chain(mode: int, flags: int, seeks: bool) -> Any:
    """What runs a chain of a tile: (top, seen) after `count` more terms. With `seeks` the largest sum is kept too.

    `observed` are, of the blocks of LANES terms that a program's chains consist of, the smallest magnitudes of each term's
    factors, flat (group, block, term) and (panel, block, term), and their norms, (group, block) and (panel, block). `done` is
    the number of the chain's first block.
    """
    share, less = swamped_share(mode), np.float32(1 - SLACK)

    @inlined
    def chain(
        top: Any, seen: Any, a: Any, a_offset: int, a_step: int, b: Any, b_offset: int, b_step: int, count: int,
        constants: Any, hashes: Any, observed: Any, tallied: Any, tally: int, group: int, panel: int, done: int,
    ) -> Any:  # fmt: skip
        least_a, least_b, norms_a, norms_b = observed
        blocks, largest = norms_a.shape[1], tally + LARGEST * LANES
        least_largest = largest_lane(load_tile(seen, tallied, largest, 0)) * less if seeks else np.float32(np.inf)
        low = 0
        while low < count:
            reach, ahead = _largest_sum(top), 0
            bound, swamped = reach, 0
            while ahead < _AHEAD and low + ahead * LANES < count:  # the blocks ahead in which no sum needs a look
                block = done + ahead
                bound = reach + growth_of(norms_a[group, block], norms_b[panel, block])
                place_a, place_b = (group * blocks + block) * LANES, (panel * blocks + block) * LANES
                swamped = terms_swamped(bound, share, least_a, place_a, least_b, place_b)
                if swamped != 0 or (seeks and not bound < least_largest):
                    break
                reach = bound
                ahead += 1
            if ahead:
                terms = min(ahead * LANES, count - low)
                for _ in range(terms):
                    top, seen = chain_tile(
                        top, seen, a, a_offset, b, b_offset, constants, hashes, 0, 0, 0, 0, tallied, tally, mode, flags,
                        NOTHING,
                    )  # fmt: skip
                    a_offset += a_step
                    b_offset += b_step
                low += terms
                done += ahead
            else:
                terms = min(LANES, count - low)
                if seeks and not bound < least_largest:
                    best, tried = load_tile(seen, tallied, largest, 0), top
                    for k in range(terms):
                        tried, best = chain_tile(
                            tried, best, a, a_offset + k * a_step, b, b_offset + k * b_step, constants, hashes, 0, 0, 0, 0,
                            tallied, tally, mode, flags, SEEKING,
                        )  # fmt: skip
                    store_tile(best, tallied, largest, 0)
                    least_largest = largest_lane(best) * less
                for k in range(terms):
                    if (swamped >> k) & 1:
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
                low += terms
                done += 1
        return top, seen

    return chain
