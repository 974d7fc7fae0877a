"""Attention by its definition, one element at a time: rationals for every sum and rounding, float64 for the softmax."""

import math
from fractions import Fraction

import numpy as np

import fpsim
from fpsim.numbers.rounding import Rounding
from tests.oracles import round_exact
from tests.units_oracle import blocks

EVEN = Rounding.NEAREST_EVEN
FP16, FP32 = fpsim.get_format("fp16"), fpsim.get_format("fp32")


def rounded(value, fmt):
    return round_exact(Fraction(value), fmt, EVEN)


def chain(terms, fmt):
    total = 0.0
    for term in terms:
        total = rounded(Fraction(total) + Fraction(term), fmt)
    return total


def pairwise(terms, fmt):
    while len(terms) > 1:
        pairs = [rounded(Fraction(a) + Fraction(b), fmt) for a, b in zip(terms[::2], terms[1::2], strict=False)]
        terms = pairs + terms[len(terms) // 2 * 2 :]
    return terms[0] if terms else 0.0


def leaves(a, b, fmt):
    return [rounded(Fraction(x) * Fraction(y), fmt) for x, y in zip(a, b, strict=True)]


def in_blocks(terms, fmt, size):
    return chain([chain(terms[i : i + size], fmt) for i in range(0, len(terms), size)], fmt)


#: accumulate -> (a, b, their format) -> the accumulated sum, as the accumulator has it
ACCUMULATED = {
    "fp32": lambda a, b, fmt: chain(leaves(a, b, FP32), FP32),
    "fp16": lambda a, b, fmt: chain(leaves(a, b, FP16), FP16),
    "fp32:blocked(2)": lambda a, b, fmt: in_blocks(leaves(a, b, FP32), FP32, 2),
    "fp32:pairwise": lambda a, b, fmt: pairwise(leaves(a, b, FP32), FP32),
    "exact": lambda a, b, fmt: sum((Fraction(x) * Fraction(y) for x, y in zip(a, b, strict=True)), Fraction(0)),
    "h100": lambda a, b, fmt: float(
        blocks([Fraction(x) for x in a], [Fraction(x) for x in b], Fraction(0), fmt, 16, 25, FP32, Rounding.TOWARD_ZERO)
    ),
}


def matmul(a, b, fmt, accumulate, store=None, factor=1.0):
    """Accumulated sums (float64 of an exact one), or those times the factor rounded once to `store`."""
    out = np.empty((len(a), b.shape[1]))
    for i, j in np.ndindex(out.shape):
        total = ACCUMULATED[accumulate](a[i].tolist(), b[:, j].tolist(), fmt)
        out[i, j] = float(total) if store is None else rounded(Fraction(total) * Fraction(factor), store)
    return out


def softmax(row):
    top = max(row, default=-math.inf)
    if top == -math.inf:
        return np.zeros(len(row))
    powers = np.exp(np.array(row) - top)
    return powers / math.fsum(powers)


def each(function, x):
    return np.array([function(value) for value in x.ravel()]).reshape(x.shape)


class Head:
    """One head of queries; `mask` is what is added to the scaled scores, `noise` what probabilities are multiplied by."""

    def __init__(self, query, key, value, mask, noise, scale, fmt, accumulate, wide):
        self.query, self.key, self.value, self.noise = query, key, value, noise
        self.fmt, self.accumulate, self.wide = fmt, accumulate, wide
        self.scale = float(np.float32(scale))
        scores = matmul(query, key.T, fmt, accumulate)
        exact = np.stack([softmax(row) for row in scores * self.scale + mask])
        self.probabilities = exact.astype(np.float32).astype(np.float64)
        self.read = self.as_read(self.probabilities * noise if wide else exact * noise)

    def as_read(self, x):
        return x.astype(np.float32).astype(np.float64) if self.wide else each(lambda value: rounded(value, self.fmt), x)

    def product(self, a, b, factor=1.0):
        """What is read times what the tensors hold: fp32 numbers are accumulated in fp32, in the order asked for."""
        accumulate, fmt = self.accumulate, self.fmt
        if self.wide:
            accumulate, fmt = "fp32" if accumulate == "fp16" else accumulate, FP32
        return matmul(a, b, fmt, accumulate, self.fmt, factor)

    def output(self):
        return self.product(self.read, self.value)

    def slopes(self, gradient):
        """Gradients of the masked scores, in float64."""
        change = matmul(gradient, self.value.T, self.fmt, self.accumulate) * self.noise
        p = self.probabilities
        return np.stack([p[i] * (change[i] - math.fsum(p[i] * change[i])) for i in range(len(p))])


def of_heads(heads, gradients):
    """(gradients of every head's queries, of the keys that all of them share, of the values) and of the masked scores."""
    slopes = [head.slopes(gradient) for head, gradient in zip(heads, gradients, strict=True)]
    read = [head.as_read(slope) for head, slope in zip(heads, slopes, strict=True)]
    first = heads[0]
    queries = [head.product(s, head.key, head.scale) for head, s in zip(heads, read, strict=True)]
    of_key = first.product(np.concatenate(read).T, np.concatenate([head.query for head in heads]), first.scale)
    of_value = first.product(np.concatenate([head.read for head in heads]).T, np.concatenate(gradients))
    return queries, of_key, of_value, [each(lambda value: rounded(value, first.fmt), slope) for slope in slopes]


def in_steps(query, key, value, mask, noise, scale, fmt, accumulate):
    """One head of the output where every step rounds."""

    def to_format(x):
        return each(lambda value: rounded(value, fmt) if math.isfinite(value) else value, x)

    root = float(np.float32(math.sqrt(scale)))
    query, key = to_format(query * root), to_format(key * root)
    scores = to_format(matmul(query, key.T, fmt, accumulate, fmt) + mask)
    weights = to_format(np.stack([softmax(row) for row in scores]))
    return matmul(to_format(weights * noise), value, fmt, accumulate, fmt)
