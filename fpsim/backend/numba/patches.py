"""The implicit im2col of convolutions: part of the matrix of taps by positions, gathered into a buffer."""

from __future__ import annotations

from typing import Any

from fpsim.backend.numba.compiler import inlined, kernel
from fpsim.backend.numba.copies import LANES, copy_lanes
from fpsim.backend.numba.intrinsics import int_max, int_min


@inlined
def _source_index(position: Any, tap: Any, size: Any, step: Any, offset: Any, tap_step: Any, divisor: Any) -> Any:
    """Where a position reads along one axis for one tap, or -1 outside the source and between its elements."""
    scaled = position * step + offset + tap * tap_step
    if divisor != 1:
        if scaled < 0 or scaled % divisor != 0:
            return -1
        scaled //= divisor
    return scaled if 0 <= scaled < size else -1


@inlined
def _first_reading(start: Any, step: Any, divisor: Any) -> Any:
    """The least j >= 0 with start + j * step >= 0 that is a multiple of the divisor (step or divisor is 1)."""
    if divisor != 1:
        return -start if start < 0 else (divisor - start % divisor) % divisor
    if start >= 0:
        return 0
    return -start if step == 1 else (step - 1 - start) // step


@kernel
def gather_taps(
    source: Any, strides: Any, sizes: Any, out: Any, first_tap: Any, first_position: Any, grid: Any, taps: Any,
    axes: Any,
) -> None:  # fmt: skip
    """out[t, p] = what tap first_tap + t reads at position first_position + p, and 0 where it reads nothing.

    source     the elements as one line; where element (image, channel, d, h, w) is on it, ``strides`` (>= 0) tell
    sizes      of the source's axes d, h, w
    out        (taps, positions), C-contiguous
    grid       sizes of the three axes of positions, which are numbered by (image, d, h, w)
    taps       sizes of the three kernel axes; taps are numbered by (channel, d, h, w)
    axes       (3, 4): position * step + offset + tap * tap_step = divisor * index in the source, for each axis;
               along the last one step or divisor is 1
    """
    image_stride, channel_stride = strides[0], strides[1]
    d_stride, h_stride, w_stride = strides[2], strides[3], strides[4]
    d_size, h_size, w_size = sizes[0], sizes[1], sizes[2]
    d_step, d_offset, d_tap, d_divisor = axes[0, 0], axes[0, 1], axes[0, 2], axes[0, 3]
    h_step, h_offset, h_tap, h_divisor = axes[1, 0], axes[1, 1], axes[1, 2], axes[1, 3]
    w_step, w_offset, w_tap, w_divisor = axes[2, 0], axes[2, 1], axes[2, 2], axes[2, 3]
    d_grid, h_grid, w_grid = grid[0], grid[1], grid[2]
    count = out.shape[1]
    side_by_side = w_step == 1 and w_divisor == 1 and w_stride == 1
    first_w = first_position % w_grid
    first_h = first_position // w_grid % h_grid
    first_d = first_position // (w_grid * h_grid) % d_grid
    first_image = first_position // (w_grid * h_grid * d_grid)
    for t in range(out.shape[0]):
        tap = first_tap + t
        kw = tap % taps[2]
        kh = tap // taps[2] % taps[1]
        kd = tap // (taps[2] * taps[1]) % taps[0]
        channel = tap // (taps[2] * taps[1] * taps[0])
        w, h, d, image = first_w, first_h, first_d, first_image
        # Along the last axis positions low <= w < high read something, every w_divisor-th of them, w = low first.
        start = w_offset + kw * w_tap
        low = int_min(_first_reading(start, w_step, w_divisor), w_grid)
        index = (start + low * w_step) // w_divisor
        high = low
        if index < w_size:
            high = int_min(w_grid, low + (w_size - 1 - index) // w_step * w_divisor + 1)
        row = out[t]
        filled = 0
        depth = _source_index(d, kd, d_size, d_step, d_offset, d_tap, d_divisor)
        while filled < count:
            run = int_min(w_grid - w, count - filled)
            height = _source_index(h, kh, h_size, h_step, h_offset, h_tap, h_divisor)
            first, last = low - w, high - w  # of this run
            if depth < 0 or height < 0:
                first = last = 0
            line = image * image_stride + channel * channel_stride + depth * d_stride + height * h_stride
            if side_by_side:
                line += start + w
                for j in range(0, run, LANES):
                    copy_lanes(source, line + j, row, filled + j, first - j, last - j, run - j)
            else:
                for j in range(run):
                    row[filled + j] = 0
                skipped = (int_max(0, -first) + w_divisor - 1) // w_divisor  # of those that read
                place = line + (index + skipped * w_step) * w_stride
                for j in range(first + skipped * w_divisor, int_min(last, run), w_divisor):
                    row[filled + j] = source[place]
                    place += w_step * w_stride
            filled += run
            w = 0
            h += 1
            if h == h_grid:
                h = 0
                d += 1
                if d == d_grid:
                    d = 0
                    image += 1
                depth = _source_index(d, kd, d_size, d_step, d_offset, d_tap, d_divisor)
