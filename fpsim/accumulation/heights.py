"""How often the terms of a tree are rounded, run by run of its chain steps: long sums have millions of those."""

from __future__ import annotations

import numpy as np

from fpsim.accumulation.program import ADD, CHAIN, FUSED, ZERO, Program

_EMPTY = -1  # the count of a bare +0


def most_roundings(tree: Program, leaves_are_values: bool) -> int:
    """The largest number of additions that round between a leaf and the result, which is (+0) + tree.

    An addition to +0 rounds nothing but a leaf that is no value of the format.
    """
    alone = int(not leaves_are_values)  # what it costs a leaf to meet +0
    steps = tree.steps
    chain = (steps <= CHAIN) & (steps > FUSED)
    starts = np.flatnonzero(~chain | ~np.concatenate([[False], chain[:-1]]))
    lengths = np.diff(starts, append=steps.size)
    counts: list[int] = []
    pushed: list[bool] = []  # whether an entry is a bare leaf
    for step, length in zip(steps[starts].tolist(), lengths.tolist(), strict=True):
        if step >= 0 or step == ZERO:
            counts.append(0 if step >= 0 else _EMPTY)
            pushed.append(step >= 0)
            continue
        if step == ADD or step <= FUSED:
            members = 2 if step == ADD else FUSED - step
            terms = [(count, bare) for count, bare in zip(counts[-members:], pushed[-members:], strict=True) if count >= 0]
            del counts[-members:], pushed[-members:]
            most = max((count for count, _ in terms), default=_EMPTY)
            counts.append(most + (1 if len(terms) > 1 else alone * any(bare for _, bare in terms)))
            pushed.append(False)
            continue
        counts[-1] += length + (alone if counts[-1] == _EMPTY else 0)  # from +0 the first step adds the first leaf alone
        pushed[-1] = False
    return max(0, counts[0] + alone * pushed[0])
