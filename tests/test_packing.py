"""Packed operands hold every element in its place, and zeros beyond the last column, however the matrix lies in memory."""

import numpy as np
import pytest

from fpsim.sums import packing

LAYOUTS = {
    "rows": lambda x: np.ascontiguousarray(x),
    "columns": lambda x: np.asfortranarray(x),
    "part of longer rows": lambda x: np.pad(x, ((0, 0), (3, 2)), constant_values=np.nan)[:, 3:-2],
    "every other row": lambda x: np.repeat(x, 2, axis=0)[::2],
    "every other column": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "one row for all": lambda x: np.broadcast_to(x[:1], x.shape),
    "backwards": lambda x: np.ascontiguousarray(x[::-1])[::-1],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("rows, leaves", [(1, 1), (3, 31), (4, 5), (18, 33), (64, 700)])
def test_groups_hold_the_rows(rows, leaves, dtype, layout):
    matrix = LAYOUTS[layout](np.random.default_rng(rows).normal(size=(rows, leaves)).astype(dtype))
    for size in (1, 2, 4):
        for packed_as in ("f4", "f8"):
            packed = packing.pack_rows(matrix, np.dtype(packed_as), size).reshape(-1, leaves, size)
            lines = packed.transpose(0, 2, 1).reshape(-1, leaves)
            assert np.array_equal(lines[:rows], matrix.astype(packed_as)) and not lines[rows:].any()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("leaves, columns", [(1, 1), (3, 31), (5, 32), (17, 33), (40, 64), (64, 130), (700, 47)])
def test_panels_hold_the_columns(leaves, columns, dtype, layout):
    matrix = LAYOUTS[layout](np.random.default_rng(columns).normal(size=(leaves, columns)).astype(dtype))
    for width in (16, 32, 48, 64):
        for packed_as in ("f4", "f8"):
            whole = np.full((leaves, columns), np.nan)
            for panels in packing.pack_columns(matrix, np.dtype(packed_as), width, 100):
                count = -(-panels.columns // width)
                for panel, j in np.ndindex(count, width):
                    column = panels.data[panel * panels.panel_stride + j + panels.leaf_stride * np.arange(leaves)]
                    place = panel * width + j
                    if place < panels.columns:
                        whole[:, panels.first_column + place] = column
                    else:
                        assert not column.any()
            assert np.array_equal(whole, matrix.astype(packed_as))
