"""Numbers of fp16 that NumPy's float16 computes with as the oracle, and the tensors that hold them for a machine of fp16."""

import numpy as np
import torch

HALF = np.float16


def halves(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(HALF)


def tensor_of(x):
    return torch.from_numpy(np.asarray(x, np.float32))
