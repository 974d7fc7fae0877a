"""Products that count what their roundings did."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from fpsim.accumulation.orders import sequential
from fpsim.accumulation.trees import Tree
from fpsim.numbers.formats import FP32, FP64, Format
from fpsim.numbers.rounding import Rounding, round_into
from fpsim.sums.observers.counters import Counters
from fpsim.sums.observers.counting_tiles import CountingJob, RareJob
from fpsim.sums.plan import Plan, Scheme, careful_scheme, is_like, plan, program
from fpsim.sums.tiles import Draws, add_rounded, extents_of_products
from fpsim.sums.trees import choose_flags, promoted_programs


def counted_tree_product(
    a: np.ndarray, b: np.ndarray, operand: Format, target: Format, rounding: Rounding, tree: Tree, exact_products: bool,
    draws: Draws, counters: Counters,
) -> np.ndarray:  # fmt: skip
    """`tree_product`, counted."""
    programs = [program(tree)]
    return next(_products(a, b, operand, target, rounding, tree, exact_products, draws, programs, counters))


def counted_promoted_product(
    a: np.ndarray, b: np.ndarray, operand: Format, narrow: Format, wide: Format, rounding: Rounding, size: int,
    exact_products: bool, draws: Draws, counters: Counters,
) -> np.ndarray:  # fmt: skip
    """`promoted_product`, counted: the blocks' additions and those of their sums."""
    leaves = a.shape[1]
    programs = promoted_programs(leaves, size)
    dtype = np.float32 if is_like(wide, FP32) else np.float64
    total: np.ndarray = np.zeros((a.shape[0], b.shape[1]), dtype=dtype)
    blocks = _products(a, b, operand, narrow, rounding, sequential(leaves), exact_products, draws, programs, counters)
    for lines, block in zip(programs, blocks, strict=True):
        total = counted_add(total, block, wide, rounding, draws, int(lines[1, 2] + lines[1, 4]), counters)
    return total


def _products(
    a: np.ndarray, b: np.ndarray, operand: Format, target: Format, rounding: Rounding, tree: Tree, exact_products: bool,
    draws: Draws, programs: list[np.ndarray], counters: Counters,
) -> Iterator[np.ndarray]:  # fmt: skip
    """As `_product_runs._products`, counted: what a product does is added to the counters before it is yielded."""
    from fpsim.backend.numba.counted import EVERYTHING, OVERFLOWS, SUMS, UNCHANGED, UNDERFLOWS
    from fpsim.backend.numba.sums_rounding import CAREFUL, NATIVE

    (rows, leaves), columns = a.shape, b.shape[1]
    if columns < 32 and rows > columns:
        swapped = Draws(draws.key, draws.first, draws.column_step, draws.row_step)
        for part in _products(b.T, a.T, operand, target, rounding, tree, exact_products, swapped, programs, counters):
            yield part.T
        return
    largest, smallest = extents_of_products(a.ravel(order="K"), [b.ravel(order="K")])
    known = _plan(largest, operand, target, rounding, tree, exact_products)
    chosen, shape = known.scheme, (rows, columns, leaves)
    job = CountingJob(chosen.element, shape, tree.depth + 1, rounding, draws, EVERYTHING)
    left, right = job.pack(a, b)
    simple = rounding is not Rounding.STOCHASTIC and not chosen.flags & CAREFUL
    if is_like(target, FP64):  # which the careful kernel does not serve: nothing may overflow, and every product is exact
        simple = simple and 2 * operand.precision <= 53 and largest * (leaves + 1) < 2.0**1000
    if simple and largest < np.inf:
        # Exact products that the carrier holds are multiples of its smallest number, so that no sum of them underflows.
        underflows_only_in_leaves = not exact_products or (chosen.flags & NATIVE and smallest > 2.0**-100)
        if underflows_only_in_leaves or tree.is_chains:
            job.what = SUMS
        if underflows_only_in_leaves and chosen.flags & NATIVE and chosen.element == "f4" and tree.is_chains and leaves:
            rare = RareJob(shape, tree.depth + 1, rounding, draws)
            job = rare if rare.suits(left, right, programs[0]) else job
    # Where nothing is watched, an overflow shows in what it gives.
    most = target.max_finite if chosen.flags & NATIVE else np.inf
    flags = choose_flags(known, leaves, rows, lambda: (largest, smallest))
    careful = careful_scheme(target, rounding, exact_products)
    vanishing = (0.0, 0.0) if exact_products else _vanishing(target, rounding)
    vanished = None
    for lines in programs:
        job.counts, job.largest = [0, 0, 0], 0.0
        out = job.run(left, right, lines, flags, chosen.row, chosen.limit)
        counted = job
        if job.passed or (job.what != EVERYTHING and not job.largest < most):
            counted, out = _again(job, a, b, lines, careful, out)
        elif job.what == SUMS or (job.what != EVERYTHING and smallest <= max(vanishing)):
            if vanished is None:
                vanished = _zero_leaves(a, b, vanishing)
            _leave_out_zero_leaves(job, *vanished, lines)
        counters.swamped += counted.counts[UNCHANGED]
        counters.underflows += counted.counts[UNDERFLOWS]
        counters.overflows += counted.counts[OVERFLOWS]
        counters.largest = max(counters.largest, counted.largest)
        counters.additions += rows * columns * _additions(lines)
        yield out


def _plan(
    largest: float, operand: Format, target: Format, rounding: Rounding, tree: Tree, exact_products: bool
) -> Plan:
    """The plan of a kernel that can count products up to a magnitude."""
    from fpsim.backend.numba.counted import MOST_LEAVES
    from fpsim.backend.numba.sums_rounding import NATIVE

    known = plan(tree, operand, target, rounding, exact_products)
    hides = bool(known.scheme.flags & NATIVE) and rounding is not Rounding.NEAREST_EVEN  # a leaf's overflow, being finite
    is_hidden = hides and not (tree.is_chains and largest < target.max_finite)
    if is_hidden or (known.scheme.element == "f4" and tree.leaves > MOST_LEAVES):
        return replace(known, scheme=careful_scheme(target, rounding, exact_products))
    return known


def _vanishing(target: Format, rounding: Rounding) -> tuple[float, float]:
    """Up to which magnitude a positive product becomes zero, and a negative one."""
    quantum = target.min_subnormal
    below = float(np.nextafter(quantum, 0.0))
    match rounding:
        case Rounding.NEAREST_EVEN:
            return quantum / 2, quantum / 2
        case Rounding.NEAREST_AWAY:
            return below / 2, below / 2
        case Rounding.TOWARD_ZERO:
            return below, below
        case Rounding.UP:
            return 0.0, below
        case Rounding.DOWN:
            return below, 0.0
    return 0.0, 0.0  # to odd: the smallest number


def _zero_leaves(a: np.ndarray, b: np.ndarray, least: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """For each term, how many products are zero where positive and negative ones up to `least` become zero, and how many of
    those have no zero factor.
    """
    from fpsim.backend.numba.zero_leaves import count_zero_leaves

    zeros, underflows = (np.zeros(a.shape[1], dtype=np.int64) for _ in range(2))
    bits = [np.ascontiguousarray(x).view(f"u{x.itemsize}") for x in (a, b)]
    count_zero_leaves(np.empty(1, b.dtype), *bits, *least, zeros, underflows)
    return zeros, underflows


def _leave_out_zero_leaves(job: CountingJob, zeros: np.ndarray, underflows: np.ndarray, lines: np.ndarray) -> None:
    """Count the leaves that underflowed, and take the chain steps of zero leaves from those that left a sum as it was."""
    from fpsim.backend.numba.counted import SUMS, UNCHANGED, UNDERFLOWS
    from fpsim.backend.numba.products import CHAIN, PUSH_LEAF

    padding = job.groups * job.tile_rows * (-(-job.columns // job.width) * job.width) - job.rows * job.columns
    in_chains, pushed = np.zeros(job.leaves, dtype=bool), np.zeros(job.leaves, dtype=bool)
    for _, leaf, count, stride, _ in lines[lines[:, 0] == CHAIN].tolist():
        stop = leaf + stride * count
        in_chains[leaf : None if stop < 0 else stop : stride] = True
    pushed[lines[lines[:, 0] == PUSH_LEAF, 1]] = True
    job.counts[UNDERFLOWS] += int(underflows[in_chains | pushed].sum())
    if job.what == SUMS:
        job.counts[UNCHANGED] -= int(zeros[in_chains].sum()) + padding * int(in_chains.sum())


def _again(
    job: CountingJob, a: np.ndarray, b: np.ndarray, lines: np.ndarray, careful: Scheme, out: np.ndarray
) -> tuple[CountingJob, np.ndarray]:
    """The tiles that overflowed counted once more, with care; all of them where tallies or draws run through tiles."""
    from fpsim.backend.numba.counted import EVERYTHING

    if job.what == EVERYTHING and job.rounding is not Rounding.STOCHASTIC:
        job.redo(a, b, lines, careful, out)
        return job, out
    whole = CountingJob("f8", (job.rows, job.columns, job.leaves), job.depth, job.rounding, job.draws, EVERYTHING)
    result = whole.run(*whole.pack(a, b), lines, careful.flags, careful.row, careful.limit)
    return whole, result


def _additions(lines: np.ndarray) -> int:
    from fpsim.backend.numba.products import ADD, CHAIN

    return int(lines[lines[:, 0] == CHAIN, 2].sum() + np.count_nonzero(lines[:, 0] == ADD))


def counted_add(
    x: np.ndarray, y: np.ndarray, target: Format, rounding: Rounding, draws: Draws, node: int, counters: Counters,
    addend_only: bool = False,
) -> np.ndarray:  # fmt: skip
    """`add_rounded`, counted; with `addend_only` only y can be swamped."""
    from fpsim.backend.numba.counted import count_sums

    result = add_rounded(x, y, target, rounding, draws, node)
    counts = np.zeros(3, dtype=np.int64)
    flat = (np.ascontiguousarray(values).reshape(-1) for values in np.broadcast_arrays(x, y, result))
    largest = count_sums(*flat, addend_only, target.max_finite, counts)
    lost, underflows, reaching = counts.tolist()
    counters.additions += result.size
    counters.swamped += lost
    counters.underflows += underflows
    counters.largest = max(counters.largest, float(largest))
    if reaching:
        finite = np.isfinite(x) & np.isfinite(y)
        beyond = add_rounded(x, y, _beyond(target), rounding, draws, node)
        counters.overflows += int(np.count_nonzero(finite & (np.abs(beyond) > target.max_finite)))
    return result


def counted_rounding(x: np.ndarray, result: np.ndarray, fmt: Format, rounding: Rounding, key: int, first: int,
                     counters: Counters) -> None:  # fmt: skip
    """Count what rounding x to `fmt` did, given the result."""
    from fpsim.backend.numba.counted import count_roundings

    counts = np.zeros(2, dtype=np.int64)
    count_roundings(*(np.ascontiguousarray(values).reshape(-1) for values in (x, result)), fmt.max_finite, counts)
    underflows, reaching = counts.tolist()
    counters.underflows += underflows
    if reaching:
        beyond = np.ascontiguousarray(x, dtype=np.float64)
        wider = np.empty_like(beyond)
        round_into(beyond, wider, _beyond(fmt), rounding, key, first)
        counters.overflows += int(np.count_nonzero(np.isfinite(x) & (np.abs(wider) > fmt.max_finite)))


def _beyond(fmt: Format) -> Format:
    """The format with one more exponent at the top, where overflow has not happened yet."""
    return fmt.replace(name=f"beyond {fmt.name}", emax=fmt.emax + 1, specials="ieee", saturate=False)
