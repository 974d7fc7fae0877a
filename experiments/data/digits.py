"""scikit-learn's 1797 handwritten digits, 8 x 8."""

from __future__ import annotations

import functools

import numpy as np

from experiments.data.dataset import Dataset
from experiments.draws import Draws

TEST = 600


@functools.cache
def load_digits() -> Dataset:
    """(n, 1, 8, 8) with values in sixteenths of [0, 1], exact in every format here; 1197 to train on and 600 to test."""
    from sklearn import datasets

    data = datasets.load_digits()
    order = Draws(0, "digits").permutation(len(data.target))
    images = (data.images[order] / 16).astype(np.float32)[:, None]
    labels = data.target[order].astype(np.int64)
    return Dataset(images[TEST:], labels[TEST:], images[:TEST], labels[:TEST], 10)
