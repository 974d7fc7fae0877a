"""Sums along an axis, rounded to nearest even at every addition: tree programs over blocks of columns.

Additions of two values of a format are rounded right through a carrier of at least 2p + 2 bits, so that the carrier's
own addition and one rounding of its bits suffice here; other modes and accumulators go through matrix products.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fpsim.backend.numba.compiler import inlined, kernel
from fpsim.backend.numba.intrinsics import as_bits, as_float, int_add, int_min, prefer_wide_vectors, uninitialized, zeroed
from fpsim.backend.numba.products import ADD, CHAIN, PUSH_LEAF
from fpsim.backend.numba.rounding import NEAREST_EVEN, load, round_bits
from fpsim.backend.numba.transposition import LINE_BYTES, TILE_BYTES, transpose_tile

BLOCK = 1024  # columns whose partial sums are in the cache together


@inlined
def _rounded(value: Any, c: Any) -> Any:
    return as_float(round_bits(as_bits(value), c, NEAREST_EVEN, True))


@inlined
def _run(
    x: Any, image: int, start: int, stop: int, stack: Any, program: Any, chain_row: Any, add_row: Any,
    round_leaves: bool,
) -> None:  # fmt: skip
    """stack[0, j] = the sum of x[image, :, start + j] along the program.

    Chain steps round by one row of constants, additions of two parts by the other.
    """
    chain, add = load(chain_row), load(add_row)
    height = 0
    columns = stop - start
    for line in range(program.shape[0]):
        operation, leaf, count, stride = program[line, 0], program[line, 1], program[line, 2], program[line, 3]
        if operation == CHAIN:
            top = stack[height - 1, :columns]
            if not round_leaves:
                for _ in range(count // 4):  # four at a time: partial sums stay in registers meanwhile
                    first = x[image, leaf, start:stop]
                    second = x[image, leaf + stride, start:stop]
                    third = x[image, leaf + 2 * stride, start:stop]
                    fourth = x[image, leaf + 3 * stride, start:stop]
                    for j in range(first.size):
                        total = _rounded(top[j] + first[j], chain)
                        total = _rounded(total + second[j], chain)
                        total = _rounded(total + third[j], chain)
                        top[j] = _rounded(total + fourth[j], chain)
                    leaf += 4 * stride
                count %= 4
            for _ in range(count):
                terms = x[image, leaf, start:stop]
                if round_leaves:
                    for j in range(terms.size):
                        top[j] = _rounded(top[j] + _rounded(terms[j], chain), chain)
                else:
                    for j in range(terms.size):
                        top[j] = _rounded(top[j] + terms[j], chain)
                leaf += stride
        elif operation == ADD:
            height -= 1
            top, right = stack[height - 1, :columns], stack[height, :columns]
            for j in range(top.size):
                top[j] = _rounded(top[j] + right[j], add)
        else:
            top = stack[height, :columns]
            height += 1
            if operation == PUSH_LEAF:
                terms = x[image, leaf, start:stop]
                for j in range(terms.size):
                    top[j] = _rounded(terms[j], chain)  # exact where terms need no rounding
            else:
                for j in range(top.size):
                    top[j] = 0


@kernel
def sum_columns(
    x: Any, out: Any, first: int, last: int, program: Any, depth: int, chain_row: Any, add_row: Any, round_leaves: bool
) -> None:
    """out[a, j] = the sum of x[a, :, j], for the blocks of columns numbered first ... last - 1 through all a."""
    prefer_wide_vectors()
    columns = x.shape[2]
    blocks = (columns + BLOCK - 1) // BLOCK
    stack = uninitialized((depth, BLOCK), x.dtype)
    for item in range(first, last):
        start = item % blocks * BLOCK
        stop = int_min(start + BLOCK, columns)
        _run(x, item // blocks, start, stop, stack, program, chain_row, add_row, round_leaves)
        target = out[item // blocks, start:stop]
        for j in range(target.size):
            target[j] = stack[0, j]


@kernel
def count_chains(x: Any, out: Any, swamped: Any, first: int, last: int, chain_row: Any) -> None:
    """`sum_columns` along one chain from +0 through all terms in their order; swamped[item] is how many nonzero terms left
    their sum as it was.
    """
    prefer_wide_vectors()
    chain = load(chain_row)
    terms, columns = x.shape[1], x.shape[2]
    blocks = (columns + BLOCK - 1) // BLOCK
    sums, counts = uninitialized(BLOCK, x.dtype), uninitialized(BLOCK, np.int32)
    for item in range(first, last):
        start = item % blocks * BLOCK
        stop = int_min(start + BLOCK, columns)
        top, lost = sums[: stop - start], counts[: stop - start]
        for j in range(top.size):
            top[j], lost[j] = 0, 0
        for leaf in range(terms):
            line = x[item // blocks, leaf, start:stop]
            for j in range(line.size):
                total = _rounded(top[j] + line[j], chain)
                lost[j] = int_add(lost[j], np.int32((total == top[j]) & (line[j] != 0)))
                top[j] = total
        target, swamped[item] = out[item // blocks, start:stop], 0
        for j in range(target.size):
            target[j] = top[j]
            swamped[item] += lost[j]


@kernel
def sum_rows(
    line: Any, row_stride: int, rows: int, leaves: int, out: Any, first: int, last: int, lanes: int, program: Any,
    depth: int, chain_row: Any, add_row: Any, round_leaves: bool,
) -> None:  # fmt: skip
    """out[i] = the sum of line[i * row_stride + k] over k, for the groups of `lanes` rows numbered first ... last - 1.

    A group is transposed into columns; `lanes` is a multiple of a tile's side.
    """
    prefer_wide_vectors()
    side = TILE_BYTES // line.itemsize
    columns = zeroed((1, leaves, lanes), line.dtype)
    flat = columns.reshape(-1)
    stack = uninitialized((depth, lanes), line.dtype)
    origin = np.int64(0)  # no literal, which would make another specialization of `_run`
    for group in range(first, last):
        begin = group * lanes
        count = int_min(lanes, rows - begin)
        for row in range(0, count, side):
            whole = leaves // side * side if row + side <= count else 0
            source = (begin + row) * row_stride
            for k in range(0, whole, side):
                transpose_tile(line, source + k, row_stride, flat, k * lanes + row, lanes)
            for i in range(row, int_min(row + side, count)):
                terms = line[(begin + i) * row_stride : (begin + i) * row_stride + leaves]
                for k in range(whole, leaves):
                    columns[0, k, i] = terms[k]
        _run(columns, origin, origin, lanes, stack, program, chain_row, add_row, round_leaves)
        for i in range(count):
            out[begin + i] = stack[0, i]


@kernel
def prefix_sums(
    x: Any, out: Any, first: int, last: int, chain_row: Any, final_row: Any, round_leaves: bool
) -> None:
    """out[a, k, j] = the chain from +0 over x[a, 0 ... k, j], rounded once more to the final format.

    For the blocks of columns numbered first ... last - 1 through all a.
    """
    prefer_wide_vectors()
    chain, final = load(chain_row), load(final_row)
    columns = x.shape[2]
    blocks = (columns + BLOCK - 1) // BLOCK
    total = uninitialized(BLOCK, x.dtype)
    for item in range(first, last):
        image, start = item // blocks, item % blocks * BLOCK
        stop = int_min(start + BLOCK, columns)
        top = total[: stop - start]
        for j in range(top.size):
            top[j] = 0
        for k in range(x.shape[1]):
            terms, target = x[image, k, start:stop], out[image, k, start:stop]
            if round_leaves:
                for j in range(top.size):
                    top[j] = _rounded(top[j] + _rounded(terms[j], chain), chain)
            else:
                for j in range(top.size):
                    top[j] = _rounded(top[j] + terms[j], chain)
            for j in range(top.size):
                target[j] = _rounded(top[j], final)


@kernel
def prefix_rows(
    line: Any, leaves: int, rows: int, out: Any, first: int, last: int, lanes: int, chain_row: Any, final_row: Any,
    round_leaves: bool,
) -> None:  # fmt: skip
    """out[i, k] = the chain from +0 over line[i, 0 ... k], rounded to the final format; both flat, of `rows` rows.

    For the groups of `lanes` rows numbered first ... last - 1: some terms of a group are transposed into columns, summed
    there, and transposed back. `lanes` is a multiple of a tile's side.
    """
    prefer_wide_vectors()
    chain, final = load(chain_row), load(final_row)
    side = TILE_BYTES // line.itemsize
    step = LINE_BYTES // line.itemsize
    columns, total = zeroed(step * lanes, line.dtype), uninitialized(lanes, line.dtype)
    for group in range(first, last):
        count = int_min(lanes, rows - group * lanes)
        start = group * lanes * leaves
        total[:] = 0
        for low in range(0, leaves, step):
            terms = int_min(step, leaves - low)
            full = count // side * side if terms == step else 0
            for row in range(0, full, side):
                for k in range(0, step, side):
                    transpose_tile(line, start + row * leaves + low + k, leaves, columns, k * lanes + row, lanes)
            for row in range(full, count):
                for k in range(terms):
                    columns[k * lanes + row] = line[start + row * leaves + low + k]
            for k in range(terms):
                part = columns[k * lanes : (k + 1) * lanes]
                if round_leaves:
                    for j in range(part.size):
                        part[j] = _rounded(part[j], chain)
                for j in range(part.size):
                    total[j] = _rounded(total[j] + part[j], chain)
                    part[j] = _rounded(total[j], final)
            for row in range(0, full, side):
                for k in range(0, step, side):
                    transpose_tile(columns, k * lanes + row, lanes, out, start + row * leaves + low + k, leaves)
            for row in range(full, count):
                for k in range(terms):
                    out[start + row * leaves + low + k] = columns[k * lanes + row]
