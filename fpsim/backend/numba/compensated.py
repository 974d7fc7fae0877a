"""Products accumulated with Kahan's and Neumaier's compensated summation, every operation rounded."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from fpsim.backend.numba.compiler import kernel
from fpsim.backend.numba.products import LEAF_STEPS, largest_lane
from fpsim.backend.numba.sums_rounding import TRACK, TRACK_SUMS, Arithmetic, constants_of, restore_direction, set_direction
from fpsim.backend.numba.tile_operations import TileOperation
from fpsim.backend.numba.tiles import Vector, data_of, index, store_tile, tile_of, vectors_of, zero_tile

OPERATIONS = 4  # rounded operations for each leaf, which is how its steps are numbered


def _kahan(
    work: Arithmetic, total: Vector, lost: Vector, leaf: Vector, draws: Sequence[Vector | None]
) -> tuple[Vector, Vector]:
    # While leaves and totals stay below 2^emax nothing else overflows, so that only they are watched.
    wanted = work.add(leaf, lost.negative(), draws[0], track=False)
    new = work.add(total, wanted, draws[1])
    gained = work.add(new, total.negative(), draws[2], track=False)
    return new, work.add(gained, wanted.negative(), draws[3], track=False)


def _neumaier(
    work: Arithmetic, total: Vector, lost: Vector, leaf: Vector, draws: Sequence[Vector | None]
) -> tuple[Vector, Vector]:
    new = work.add(total, leaf, draws[0])
    kept = total.absolute().compare(">=", leaf.absolute())
    high, low = kept.select(total, leaf), kept.select(leaf, total)
    error = work.add(work.add(high, new.negative(), draws[1], track=False), low, draws[2], track=False)
    return new, work.add(lost, error, draws[3])


@intrinsic(prefer_literal=True)
def step_tile(
    typing_context: Any, total: Any, lost: Any, seen: Any, a: Any, a_offset: Any, b: Any, b_offset: Any,
    constants: Any, hashes: Any, place: Any, stride: Any, leaf_step: Any, step: Any, mode: Any, flags: Any,
    neumaier: Any,
) -> Any:  # fmt: skip
    """(total, lost, seen) after one more leaf."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        work = TileOperation(context, builder, total, mode.literal_value, flags.literal_value, arguments[7])
        a_data, b_data = data_of(context, builder, a, arguments[3]), data_of(context, builder, b, arguments[5])
        pairs = work.operands(a_data, arguments[4], b_data, arguments[6])
        where = (hashes, arguments[8], arguments[9], arguments[10])
        leaf_draws = work.draws(where, arguments[11])
        draws = [work.draws(where, builder.add(arguments[12], index(i))) for i in range(OPERATIONS)]
        advance = _neumaier if neumaier.literal_value else _kahan
        losses: list[Vector] = []

        def advanced(total: Vector, lost: Vector, left: Vector, right: Vector, *draws: Vector | None) -> Vector:
            leaf = work.arithmetic.leaf(left, right, draws[0])
            total, lost = advance(work.arithmetic, total, lost, leaf, draws[1:])
            losses.extend(lost.split())
            return total

        olds = (vectors_of(builder, arguments[i], total.count) for i in (0, 1))
        totals = work.each(advanced, *olds, *zip(*pairs, strict=True), leaf_draws, *draws)
        result = [tile_of(builder, arguments[0].type, vectors) for vectors in (totals, losses)]
        return context.make_tuple(builder, signature.return_type, [*result, work.tracked(arguments[2])])

    operand_types = (total, lost, seen, a, a_offset, b, b_offset, constants, hashes, place, stride, leaf_step, step)
    return types.Tuple([total, lost, seen])(*operand_types, mode, flags, neumaier), generate


@intrinsic(prefer_literal=True)
def finish_tile(
    typing_context: Any, total: Any, lost: Any, seen: Any, constants: Any, hashes: Any, place: Any, stride: Any,
    step: Any, mode: Any, flags: Any,
) -> Any:  # fmt: skip
    """(rounded(total + lost), seen), Neumaier's last addition."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        work = TileOperation(context, builder, total, mode.literal_value, flags.literal_value, arguments[3])
        draws = work.draws((hashes, arguments[4], arguments[5], arguments[6]), arguments[7])
        terms = (vectors_of(builder, arguments[i], total.count) for i in (0, 1))
        vectors = work.each(work.arithmetic.add, *terms, draws)
        return work.with_seen(signature, arguments[0].type, vectors, arguments[2])

    operand_types = (total, lost, seen, constants, hashes, place, stride, step, mode, flags)
    return types.Tuple([total, seen])(*operand_types), generate


@lru_cache(maxsize=256)
def make_compensated(element: str, rows: int, vectors: int, mode: int, flags: int, neumaier: int) -> Any:
    """The kernel for one carrier, tile, mode and set of flags; its arguments are those of `make_product`'s.

    The program and the stack are not used: leaves are taken in ascending order.
    """
    kind, lanes = (np.float32, 16) if element == "f4" else (np.float64, 8)
    width = vectors * lanes
    track = flags & (TRACK | TRACK_SUMS)

    @kernel
    def compensated(
        a: Any, b: Any, out: Any, leaves: int, panels: int, panel_stride: int, leaf_stride: int, first: int, last: int,
        out_stride: int, program: Any, stack: Any, row: Any, hashes: Any, limit: float, overflowed: Any,
    ) -> None:  # fmt: skip
        previous = set_direction(mode, flags)
        constants = constants_of(row)
        for panel in range(panels):
            for group in range(first, last):
                a_offset = group * leaves * rows
                b_offset = panel * panel_stride
                place = group * rows * out_stride + panel * width
                total = zero_tile(kind, rows, vectors)
                lost = zero_tile(kind, rows, vectors)
                seen = zero_tile(kind, 1, 1)
                for k in range(leaves):
                    total, lost, seen = step_tile(
                        total, lost, seen, a, a_offset, b, b_offset, constants, hashes, place, out_stride,
                        k + LEAF_STEPS, k * OPERATIONS, mode, flags, neumaier,
                    )  # fmt: skip
                    a_offset += rows
                    b_offset += leaf_stride
                if neumaier:
                    total, seen = finish_tile(
                        total, lost, seen, constants, hashes, place, out_stride, leaves * OPERATIONS, mode, flags
                    )
                store_tile(total, out, place, out_stride)
                if track and not largest_lane(seen) < limit:
                    overflowed[panel, group] = 1
        restore_direction(previous, mode, flags)

    return compensated
