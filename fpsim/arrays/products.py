"""Matrix products and dot products with any accumulator."""

from __future__ import annotations

from typing import Any

import numpy as np

from fpsim.accumulation.accumulator import Accumulator
from fpsim.numbers.arguments import holds, is_tensor, refuse_flush_to_zero, require_plain
from fpsim.numbers.formats import FP64, Format
from fpsim.numbers.operands import as_array_like, as_read, operand, settings
from fpsim.numbers.rounding import Rounding, round_into
from fpsim.running.products import Sums, result_error
from fpsim.sums.observers.counters import Counters
from fpsim.sums.observers.counting import counted_add, counted_promoted_product, counted_rounding, counted_tree_product
from fpsim.sums.plan import require_arithmetic
from fpsim.sums.tiles import Draws, add_rounded
from fpsim.sums.trees import compensated_product, exact_product, promoted_product, tree_product
from fpsim.sums.units.products import unit_product
from fpsim.theory.deviations import confidence_of

# Keys of roundings outside the tree, so that their draws are independent of its steps'.
_FINAL, _TERM = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F
_EPILOGUE = 2**30  # the number of the first addition after the tree


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
    target, accumulator, mode, key = settings(fmt, accumulate, rounding, seed)
    require_countable(accumulator, counters)
    left, wrap_left = operand(a, target, "a")
    right, wrap_right = operand(b, target, "b")
    wrap = wrap_right if right.itemsize > left.itemsize else wrap_left
    batch, left_matrix, right_matrix = _matrices(left, right)
    rows, columns = left_matrix.shape[-2], right_matrix.shape[-1]
    dtype = np.result_type(left, right)
    result = np.empty((*batch, rows, columns), dtype=dtype)
    bounds = np.empty(result.shape) if error_bound is not False else None
    confidence = None if bounds is None else confidence_of(error_bound)
    shape = (*batch, *((rows,) if left.ndim > 1 else ()), *((columns,) if right.ndim > 1 else ()))
    extra = None if addend is None else _addend(addend, target, shape).reshape(result.shape)
    for number, place in enumerate(np.ndindex(*batch) if batch else [()]):
        matmul_into(
            left_matrix[place], right_matrix[place], result[place], target, accumulator, mode, key,
            addend=None if extra is None else extra[place], counters=counters, first_element=number * rows * columns,
        )  # fmt: skip
        if bounds is not None:
            draws = Draws(key, number * rows * columns, columns, 1)
            sums = Sums(left_matrix[place], right_matrix[place], target, accumulator, mode, draws, True, confidence)
            bounds[place] = result_error(sums, result[place], None if extra is None else extra[place])
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
    how: dict[str, Any] = {"fmt": fmt, "accumulate": accumulate, "rounding": rounding, "seed": seed}
    result = matmul(a, b, addend=addend, counters=counters, error_bound=error_bound, **how)
    both = result if isinstance(result, tuple) else (result,)
    scalars = tuple(x[()] if isinstance(x, np.ndarray) else x for x in both)
    return scalars if isinstance(result, tuple) else scalars[0]


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


def matmul_into(
    a: np.ndarray,
    b: np.ndarray,
    out: np.ndarray,
    fmt: Format,
    accumulator: Accumulator,
    rounding: Rounding,
    key: int = 0,
    addend: np.ndarray | None = None,
    counters: Any = None,
    bias: np.ndarray | None = None,
    first_element: int = 0,
    row_elements: int | None = None,
    result_format: Format | None = None,
    factors: tuple[Format, Format] | None = None,
) -> None:
    """out = a @ b, rounded to `fmt`: 2-D float32 or float64 arrays of values of `fmt`, any strides.

    With `result_format` that is what out is rounded to, once, and `fmt` that of the operands alone: of both, where
    `factors` says that they are values of two formats, which a unit has to know.

    `addend` (of out's shape) and `bias` (one for each column) are added to the accumulator after the sum, in its format,
    in that order; the result is then rounded to `fmt`. `first_element` numbers out[0, 0] for stochastic draws, and
    `row_elements` is how much further each row starts (out's columns if left out). `counters`, a `Counters`,
    receives what the roundings did; a function is called with the accumulated matrix before its rounding to `fmt`, where
    the accumulator's format is another.
    Raises ValueError for formats too wide to compute in and in flush-to-zero mode; operands are not checked.
    """
    counted = counters if isinstance(counters, Counters) else None
    refuse_flush_to_zero()
    require_arithmetic(fmt, rounding, "fmt")
    final = fmt if result_format is None else result_format
    draws = Draws(key, first_element, out.shape[1] if row_elements is None else row_elements, 1)
    if out.size == 0:
        return
    a, b = as_read(a, fmt), as_read(b, fmt)
    addend, bias = (None if term is None else as_read(term, fmt) for term in (addend, bias))
    if accumulator.kind == "exact":
        terms = [np.broadcast_to(np.asarray(term), out.shape) for term in (addend, bias) if term is not None]
        out[...] = exact_product(a, b, fmt, final, rounding, terms, draws)
        return
    if accumulator.kind == "unit":
        start, addend, bias = (addend, None, bias) if addend is not None else (bias, None, None)
        result, held = unit_product(a, b, factors or fmt, accumulator, start), accumulator.format
    else:
        result, held = _accumulate(a, b, fmt, accumulator, rounding, draws, counted)
    node = _EPILOGUE
    for term in (addend, bias):
        if term is not None:
            given = _term(term, out.shape, held, rounding, key ^ _TERM, draws, counted)
            if counted is None:
                result = add_rounded(result, given, held, rounding, draws, node, out=result)
            else:
                result = counted_add(result, given, held, rounding, draws, node, counted, addend_only=True)
            node += 1
    if held is not final and held != final:
        result = np.ascontiguousarray(result)
        if counters is not None and counted is None:
            counters(result)
        _round_rows(result, final, rounding, key ^ _FINAL, draws, counted)
    out[...] = result


def require_countable(accumulator: Accumulator, counters: Any) -> None:
    """Raise TypeError for counters that are no `Counters`, ValueError for an accumulator that is no tree of additions."""
    if counters is None:
        return
    if not isinstance(counters, Counters):
        raise TypeError(f"counters must be a Counters or None, got {type(counters).__name__}")
    if accumulator.kind != "tree":
        reason = {
            "exact": "it rounds once, and loses nothing before",
            "native": "the library's own product shows none of its additions",
            "kahan": "its additions are meant to lose what others make good",
            "neumaier": "its additions are meant to lose what others make good",
        }.get(accumulator.kind, "it adds many terms at once")
        raise ValueError(f"counters count the additions of a tree, and accumulate = {str(accumulator)!r} is none: {reason}")


def _term(
    term: np.ndarray, shape: tuple[int, ...], fmt: Format, rounding: Rounding, key: int, draws: Draws,
    counters: Counters | None,
) -> np.ndarray:  # fmt: skip
    """What is added after a sum, rounded to the accumulator's format, in the result's shape."""
    each = counters is not None or rounding is Rounding.STOCHASTIC  # element by element of the result
    rounded = np.array(np.broadcast_to(term, shape) if each else term, dtype=np.float64, order="C")
    if each:
        _round_rows(rounded, fmt, rounding, key, draws, counters)
    else:
        round_into(rounded, rounded, fmt, rounding)
    if holds(np.dtype(np.float32), fmt):
        rounded = rounded.astype(np.float32)
    return np.broadcast_to(rounded, shape)


def _round_rows(
    x: np.ndarray, fmt: Format, rounding: Rounding, key: int, draws: Draws, counters: Counters | None = None
) -> None:
    """Round a contiguous matrix in place, drawing for the elements as `draws` numbers them."""
    if counters is not None:
        for i, row in enumerate(x if rounding is Rounding.STOCHASTIC else [x]):
            given, first = row.copy(), draws.first + i * draws.row_step
            round_into(row, row, fmt, rounding, key, first)
            counted_rounding(given, row, fmt, rounding, key, first, counters)
        return
    if rounding is not Rounding.STOCHASTIC or draws.row_step == x.shape[1]:
        round_into(x, x, fmt, rounding, key, draws.first)
        return
    for i, row in enumerate(x):
        round_into(row, row, fmt, rounding, key, draws.first + i * draws.row_step)


def _accumulate(
    a: np.ndarray, b: np.ndarray, fmt: Format, accumulator: Accumulator, rounding: Rounding, draws: Draws,
    counters: Counters | None = None,
) -> tuple[np.ndarray, Format]:  # fmt: skip
    """The accumulated products, and the format whose values they are."""
    target = accumulator.format
    if accumulator.kind == "tree" and accumulator.promoted is None and counters is None:
        return tree_product(a, b, fmt, accumulator, rounding, draws), target
    require_arithmetic(target, rounding, "accumulate")
    if accumulator.kind in ("kahan", "neumaier"):
        return compensated_product(a, b, fmt, target, rounding, accumulator.kind, draws), target
    if accumulator.kind == "native":
        return _native(a, b, rounding), FP64
    exact = accumulator.products != "rounded"
    if accumulator.promoted is not None:
        wide = accumulator.promoted
        require_arithmetic(wide, rounding, "accumulate")
        size = accumulator.order.parameters[0]
        given = (a, b, fmt, target, wide, rounding, size, exact, draws)
        return promoted_product(*given) if counters is None else counted_promoted_product(*given, counters), wide
    assert counters is not None
    chosen = (a, b, fmt, target, rounding, accumulator.order(a.shape[1]), exact, draws)
    return counted_tree_product(*chosen, counters), target


def _native(a: np.ndarray, b: np.ndarray, rounding: Rounding) -> np.ndarray:
    """NumPy's own product in float32 (float64 operands: float64), whatever its order."""
    if rounding is not Rounding.NEAREST_EVEN:
        raise ValueError(f'accumulate="native" computes in nearest-even only, not {rounding}')
    with np.errstate(all="ignore"):
        return np.matmul(a, b)
