"""Operands whose sums of products are hard: ties, stagnation, cancellation, underflow, near overflow; and their exact sums."""

import operator
from fractions import Fraction

import numpy as np

import fpsim

KINDS = ("plain", "wide", "cancelling", "ties", "tiny", "huge", "sparse")


def hard_operands(kind, fmt, held, rows, terms, columns, seed):
    """(a, b) of values of `fmt` whose products are hard to add in `held`."""
    rng = np.random.default_rng(seed)
    shapes = (rows, terms), (terms, columns)
    a, b = (rng.standard_normal(shape) for shape in shapes)
    half = (held.emin - held.precision) // 2
    match kind:
        case "wide":
            a, b = (x * 2.0 ** rng.integers(-8, 9, x.shape) for x in (a, b))
        case "cancelling":
            a[:, terms // 2 : terms // 2 * 2] = -a[:, : terms // 2] * (1 + 2.0**-6 * rng.integers(-1, 2))
            b[terms // 2 : terms // 2 * 2] = b[: terms // 2]
        case "ties":  # 1, then half an ulp of it, again and again, with noise in the last bit
            a = rng.choice([1.0, 1.0, 0.5, 1.5], shapes[0])
            a[:, 1:] *= 2.0 ** -rng.integers(held.precision - 1, held.precision + 2)
            b = rng.choice([1.0, 1.0, 1.0, -1.0], shapes[1]) if rng.integers(2) else np.ones(shapes[1])
        case "tiny":
            a, b = (x * 2.0 ** (half + rng.integers(-1, 4)) for x in (a, b))
        case "huge":
            a, b = (np.abs(x) * 2.0 ** ((min(held.emax, 2 * fmt.emax) - terms.bit_length()) // 2 - 1) for x in (a, b))
        case "sparse":
            a, b = np.maximum(a, 0), b * rng.integers(0, 2, shapes[1])
    return tuple(fpsim.round(np.clip(x, -fmt.max_finite, fmt.max_finite), fmt, "toward-zero") for x in (a, b))


def integers(x):
    """(a matrix as lists of whole numbers, what they are parts of)."""
    ratios = [[value.as_integer_ratio() for value in row] for row in x.tolist()]
    whole = max((bottom for row in ratios for _, bottom in row), default=1)  # a power of two, as all are
    return [[top * (whole // bottom) for top, bottom in row] for row in ratios], whole


def exact_sums(a, b):
    """The exact sums of products and of their magnitudes, as lists of (row, column, sum, sum of magnitudes)."""
    (left, one), (right, other) = integers(a), integers(b.T)
    found = []
    for i, row in enumerate(left):
        for j, column in enumerate(right):
            products = list(map(operator.mul, row, column))
            sums = sum(products), sum(map(abs, products))
            found.append((i, j, *(Fraction(total, one * other) for total in sums)))
    return found
