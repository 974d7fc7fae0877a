"""Trees as programs for the kernels."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from fpsim.accumulation.accumulator import Accumulator
from fpsim.accumulation.orders import parts_of
from fpsim.accumulation.program import ADD, CHAIN, FUSED
from fpsim.accumulation.trees import Tree
from fpsim.backend.numba import products


@lru_cache(maxsize=128)
def program(tree: Tree) -> np.ndarray:
    """A tree's steps as the kernel's program: runs of chain steps become one line.

    Raises ValueError for nodes of more than two terms, which `wide_nodes` adds.
    """
    steps = tree.steps.astype(np.int64)
    if not tree.is_binary:
        raise ValueError("accumulate: the tree has nodes of more than two terms, which have no counters and no kernel")
    chain = (steps <= CHAIN) & (steps > FUSED)
    adds = chain | (steps == ADD)
    node = np.cumsum(adds) - adds
    leaves = np.where(chain, CHAIN - steps, np.maximum(steps, 0))
    gaps = np.diff(leaves)
    starts = np.flatnonzero(_run_starts(chain, gaps))
    lengths = np.diff(starts, append=steps.size)
    table = np.empty((starts.size, 5), dtype=np.int64)
    operations = np.where(steps == ADD, products.ADD, np.where(steps >= 0, products.PUSH_LEAF, products.PUSH_ZERO))
    table[:, 0] = np.where(chain, products.CHAIN, operations)[starts]
    table[:, 1], table[:, 2], table[:, 4] = leaves[starts], lengths, node[starts]
    table[:, 3] = np.where(lengths > 1, np.append(gaps, 1)[starts], 1)
    if int(steps[0]) != -2:  # the sum is (+0) + tree; what starts from +0 has it already
        table = np.concatenate([[(products.PUSH_ZERO, 0, 1, 1, 0)], table, [(products.ADD, 0, 1, 1, tree.nodes)]])
    table.setflags(write=False)
    return table


def _run_starts(chain: np.ndarray, gaps: np.ndarray) -> np.ndarray:
    """Which steps begin a line: all but the chain steps that go on at the stride between the first two of their line."""
    begins = np.ones(chain.size, dtype=bool)
    follows = chain[1:] & chain[:-1]
    begins[1:] = ~follows
    changes = follows[1:] & follows[:-1] & (gaps[1:] != gaps[:-1])
    for place in np.flatnonzero(changes) + 2:  # the second of a line stays, whatever its stride
        begins[place] = not begins[place - 1]
    return begins


def part_programs(accumulator: Accumulator, leaves: int) -> list[np.ndarray]:
    """A program for each part, a chain from +0; the numbers after its last node are those of what its sum meets."""
    programs, node = [], 0
    for start, count, step in parts_of(accumulator.order, leaves):
        lines = np.array([(products.PUSH_ZERO, 0, 1, 1, 0), (products.CHAIN, start, count, step, node)], dtype=np.int64)
        lines.setflags(write=False)
        programs.append(lines)
        node += count + 1 + accumulator.rounds_parts
    return programs


def node_after(lines: np.ndarray) -> int:
    """The number of the node that follows a part's own: its sum's rounding, if any, else its addition to those before."""
    return int(lines[1, 2] + lines[1, 4])


def additions(lines: np.ndarray) -> int:
    """How many a program makes."""
    return int(lines[lines[:, 0] == products.CHAIN, 2].sum() + np.count_nonzero(lines[:, 0] == products.ADD))


def leaves_of(lines: np.ndarray, leaves: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of so many leaves a program's chains add, and which it has at all, as masks."""
    in_chains, pushed = np.zeros(leaves, dtype=bool), np.zeros(leaves, dtype=bool)
    for _, leaf, count, stride, _ in lines[lines[:, 0] == products.CHAIN].tolist():
        stop = leaf + stride * count
        in_chains[leaf : None if stop < 0 else stop : stride] = True
    pushed[lines[lines[:, 0] == products.PUSH_LEAF, 1]] = True
    return in_chains, in_chains | pushed
