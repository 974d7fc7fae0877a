"""Ten kinds of figures in color and noise: 32 x 32 x 3, made by integer steps alone, so the same everywhere."""

from __future__ import annotations

import functools

import numpy as np

from experiments.data.dataset import Dataset
from experiments.draws import Draws

SIDE, TRAIN, TEST = 32, 2000, 1000
#: The figure is this much brighter or darker than the ground, on average, and noise is up to that much either way.
CONTRAST, NOISE = 64, 40


@functools.cache
def load_shapes(train: int = TRAIN, test: int = TEST) -> Dataset:
    """(n, 3, 32, 32) with values in 128ths of [-1, 1), exact in every format of 8 bits and more.

    A figure's kind is its class; place, size, colors and noise are drawn.
    """
    count = train + test
    draws = Draws(0, "shapes")
    labels = draws.integers(10, count)
    images = np.empty((count, 3, SIDE, SIDE), np.float32)
    for index, label in enumerate(labels):
        images[index] = (_image(draws, int(label)) - 128) / 128
    return Dataset(images[:train], labels[:train], images[train:], labels[train:], 10)


def _image(draws: Draws, label: int) -> np.ndarray:
    """One image of integers from 0 to 255."""
    row, column, size, period, *colors = draws.integers(2**20, 10)
    radius = 8 + size % 5
    center = [SIDE // 2 - 4 + place % 8 for place in (row, column)]
    y, x = np.arange(SIDE)[:, None] - center[0], np.arange(SIDE)[None] - center[1]
    inside = _figure(label, x, y, int(radius), 3 + int(period % 3))
    ground = 64 + np.array([color % 128 for color in colors[:3]])
    sign = np.array([1 if color % 3 else -1 for color in colors[3:]])
    lit = ground[:, None, None] + CONTRAST * sign[:, None, None] * inside
    noise = draws.integers(2 * NOISE + 1, 3, SIDE, SIDE) - NOISE
    return np.clip(lit + noise, 0, 255)


def _figure(label: int, x: np.ndarray, y: np.ndarray, radius: int, period: int) -> np.ndarray:
    """Which pixels are of the figure, (32, 32)."""
    square, distance = np.maximum(abs(x), abs(y)) <= radius, x * x + y * y
    thin = max(radius // 3, 1)
    return (
        lambda: distance <= radius * radius,
        lambda: (distance <= radius * radius) & (distance >= (radius - thin) * (radius - thin)),
        lambda: square,
        lambda: square & (np.maximum(abs(x), abs(y)) > radius - thin),
        lambda: square & (np.minimum(abs(x), abs(y)) < thin),
        lambda: square & (np.minimum(abs(x - y), abs(x + y)) < thin + 1),
        lambda: square & (2 * abs(x) <= y + radius),
        lambda: square & (y % period < (period + 1) // 2) & (x == x),
        lambda: square & (x % period < (period + 1) // 2) & (y == y),
        lambda: square & ((x // period + y // period) % 2 == 0),
    )[label]()
