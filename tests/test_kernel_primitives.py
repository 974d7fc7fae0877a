"""The instructions that kernels use in place of functions that Numba would compile for each of them anew."""

import itertools

import numpy as np
import pytest
from numba import TypingError

from fpsim.backend.numba.compiler import kernel
from fpsim.backend.numba.intrinsics import int_max, int_min, uninitialized, zeroed


@kernel
def both(x, y):
    return int_min(x, y), int_max(x, y)


@kernel
def arrays(size, rows, like):
    zeros = zeroed((rows, size), like.dtype)
    room = uninitialized(size, np.uint32)
    for i in range(size):
        room[i] = 7
    zeros[0, 0] += 1
    return zeros, room


@pytest.mark.parametrize("types", [(np.int64, np.int64), (np.int32, np.int32), (np.int32, np.int64), (np.uint64, np.uint64)])
def test_the_smaller_and_the_larger_of_two_integers(types):
    left, right = ([kind(x) for x in (0, 1, 7, np.iinfo(kind).min, np.iinfo(kind).max)] for kind in types)
    for x, y in itertools.product(left, right):
        assert both(x, y) == (min(int(x), int(y)), max(int(x), int(y)))


@pytest.mark.parametrize("pair", [(1.0, 2.0), (np.int64(1), np.uint64(1)), (1, 2.0)])
def test_what_is_no_pair_of_integers_of_one_type_does_not_compile(pair):
    with pytest.raises(TypingError, match="int_min"):
        both(*pair)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.bool_])
@pytest.mark.parametrize("size", [1, 1000])
def test_new_arrays_have_their_shape_dtype_and_zeros(size, dtype):
    for _ in range(3):  # where memory is given back and taken again
        zeros, room = arrays(size, 3, np.ones(1, dtype))
        assert zeros.shape == (3, size) and zeros.dtype == dtype and zeros.flags.c_contiguous
        assert zeros[0, 0] == 1 and np.count_nonzero(zeros) == 1
        assert room.shape == (size,) and room.dtype == np.uint32 and (room == 7).all()
        zeros[:], room[:] = 1, 9


def test_an_array_assigned_to_another_is_refused_for_the_text_that_it_brings():
    @kernel
    def assign(x, y):
        x[:] = y

    with pytest.raises(TypeError, match="a kernel makes text, which takes seconds to compile"):
        assign(np.zeros(3), np.ones(3))
