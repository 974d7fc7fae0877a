"""Matrix products and dot products with any accumulator."""

from __future__ import annotations

from typing import Any

import numpy as np

from fpsim.accumulation.accumulator import Accumulator
from fpsim.numbers.arguments import is_tensor, require_plain
from fpsim.numbers.formats import Format
from fpsim.numbers.operands import as_array_like, operand
from fpsim.running.products import Summed, result_error
from fpsim.sums.joined import Products
from fpsim.sums.observers.counters import Counters
from fpsim.sums.pairs import pairs_into, together
from fpsim.sums.product import product_into
from fpsim.sums.splitting import pairs_in_parts
from fpsim.sums.task import Draws, read_settings
from fpsim.theory.deviations import confidence_of


def matmul(
    a: Any,
    b: Any,
    *,
    fmt: Any,
    accumulate: Any = None,
    rounding: Any = "nearest-even",
    seed: int | None = None,
    addend: Any = None,
    counters: Counters | None = None,
    error_bound: bool | float = False,
) -> Any:
    """The matrix product, accumulated as `accumulate` says and rounded once more to `fmt`.

    Parameters
    ----------
    fmt : what `get_system` takes, or "bf16x3", "bf16x6" or "bf16x9": fp32 numbers multiplied in bf16 parts.
    a, b : NumPy arrays (float16, float32, float64) or torch tensors on the CPU of values of `fmt`, shapes (..., m, k) and
        (..., k, n) with any strides. Leading dimensions broadcast; a 1-D `a` counts as a row, a 1-D `b` as a column,
        as in `numpy.matmul`.
    accumulate : what `get_accumulator` takes; left out, "fp32".
    rounding, seed : of every rounding; "stochastic" needs a seed. Element i of the result, in row-major order, draws from
        (seed, i) and the number of the step alone.
    addend : what broadcasts to the result's shape, values of `fmt`: added to the accumulator after the sum, in the
        accumulator's format ("exact": within the exact sum), before the rounding to `fmt`.
    counters : a `Counters`, to which what the roundings do is added: for accumulators that are trees of additions.
    error_bound : True returns (result, bound): |result - exact| <= bound for every element, exact being the sum of a @ b and
        the addend in real numbers. A probability such as 0.999 returns smaller bounds that each element keeps with it: a
        theorem for "stochastic", a model for rounding to nearest. See `fpsim.bounds`.

    Returns
    -------
    What `a` is, of its type; float64 if either is float64. k = 0 gives +0. NaN, infinities, signed zeros and overflow follow
    IEEE 754-2019 at every step. A bound is float64, and inf where anything overflowed or may have saturated.

    Raises
    ------
    ValueError : shapes that do not fit, an element that is no value of `fmt` (round it first), a given tree with another
        number of leaves than k, a format too wide to compute in, unknown names, counters for "exact", "native" and
        compensated sums.
    TypeError : arrays of integers, booleans or complex numbers, counters that are no `Counters`.
    """
    task, key = read_settings(fmt, accumulate, rounding, seed, multiplies=True)
    require_countable(task.accumulator, counters)
    left, wrap_left = operand(a, task.operand, "a")
    right, wrap_right = operand(b, task.operand, "b")
    wrap = wrap_right if right.itemsize > left.itemsize else wrap_left
    batch, left_matrix, right_matrix = _matrices(left, right)
    rows, columns = left_matrix.shape[-2], right_matrix.shape[-1]
    result = np.empty((*batch, rows, columns), dtype=np.result_type(left, right))
    bounds = np.empty(result.shape) if error_bound is not False else None
    confidence = None if bounds is None else confidence_of(error_bound)
    shape = (*batch, *((rows,) if left.ndim > 1 else ()), *((columns,) if right.ndim > 1 else ()))
    extra = None if addend is None else _addend(addend, task.operand, shape).reshape(result.shape)
    if extra is None and bounds is None and batch:
        lefts, rights = (x.reshape(-1, *x.shape[-2:]) for x in (left_matrix, right_matrix))
        made_of, lefts, rights = pairs_in_parts(task, lefts, rights)
        products = Products(made_of, key, counters)
        if together(products, lefts, rights):
            pairs_into(products, lefts, rights, result.reshape(-1, rows, columns))
            return wrap(result.reshape(shape))
    for number, place in enumerate(np.ndindex(*batch) if batch else [()]):
        pair, draws = (left_matrix[place], right_matrix[place]), Draws(key, number * rows * columns, columns)
        term = None if extra is None else extra[place]
        product_into(task, *pair, result[place], draws, () if term is None else (term,), counters)
        if bounds is not None:
            bounds[place] = result_error(Summed(task, *pair, draws, confidence=confidence), result[place], term)
    product = wrap(result.reshape(shape))
    return product if bounds is None else (product, as_array_like(product, bounds.reshape(shape)))


def dot(
    a: Any,
    b: Any,
    *,
    fmt: Any,
    accumulate: Any = None,
    rounding: Any = "nearest-even",
    seed: int | None = None,
    addend: Any = None,
    counters: Counters | None = None,
    error_bound: bool | float = False,
) -> Any:
    """The inner product of two vectors of one length: a scalar of a's type. In everything else as `matmul`.

    Raises
    ------
    ValueError : an argument that is no vector, or two lengths; and what `matmul` raises.
    """
    for name, value in (("a", a), ("b", b)):
        require_plain(value, name)
        if not isinstance(value, np.ndarray) and not is_tensor(value):
            raise TypeError(f"{name} must be a vector, a NumPy array or a torch tensor, got {type(value).__name__}")
        if np.ndim(value) != 1:
            raise ValueError(f"{name} must be a vector, got {np.ndim(value)} dimensions; matmul takes matrices")
    if len(a) != len(b):
        raise ValueError(f"a and b must have one length, got {len(a)} and {len(b)}")
    result = matmul(
        a, b, fmt=fmt, accumulate=accumulate, rounding=rounding, seed=seed, addend=addend, counters=counters,
        error_bound=error_bound,
    )  # fmt: skip
    return tuple(map(scalar_of, result)) if isinstance(result, tuple) else scalar_of(result)


def scalar_of(x: Any) -> Any:
    """A NumPy array without axes as a scalar, as NumPy's own reductions give it; anything else as it is."""
    return x[()] if isinstance(x, np.ndarray) else x


def _matrices(left: np.ndarray, right: np.ndarray) -> tuple[tuple[int, ...], np.ndarray, np.ndarray]:
    """The batch shape, and both operands as (*batch, m, k) and (*batch, k, n) views."""
    for name, array in (("a", left), ("b", right)):
        if array.ndim == 0:
            raise ValueError(f"{name} must have at least one dimension, got a scalar")
    matrix = left[None] if left.ndim == 1 else left
    other = right[:, None] if right.ndim == 1 else right
    if matrix.shape[-1] != other.shape[-2]:
        raise ValueError(
            f"a and b do not fit: a {tuple(left.shape)} has {matrix.shape[-1]} columns, "
            f"b {tuple(right.shape)} has {other.shape[-2]} rows"
        )
    if matrix.ndim == other.ndim == 2:
        return (), matrix, other
    try:
        batch = np.broadcast_shapes(matrix.shape[:-2], other.shape[:-2])
    except ValueError:
        raise ValueError(
            f"a and b do not fit: leading dimensions {matrix.shape[:-2]} and {other.shape[:-2]} do not broadcast"
        ) from None
    return (
        tuple(batch),
        np.broadcast_to(matrix, (*batch, *matrix.shape[-2:])),
        np.broadcast_to(other, (*batch, *other.shape[-2:])),
    )


def _addend(addend: Any, target: Format, shape: tuple[int, ...]) -> np.ndarray:
    array, _ = operand(addend, target, "addend")
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        raise ValueError(f"addend {array.shape} does not broadcast to the product's shape {shape}") from None


def require_countable(accumulator: Accumulator, counters: Any) -> None:
    """Raise TypeError for counters that are no `Counters`, ValueError for an accumulator that is no tree of additions."""
    if counters is None:
        return
    if not isinstance(counters, Counters):
        raise TypeError(f"counters must be a Counters or None, got {type(counters).__name__}")
    reason = accumulator.kind.uncounted
    if reason is not None:
        raise ValueError(f"counters count the additions of a tree, and accumulate = {str(accumulator)!r} is none: {reason}")
