"""Whatever stands for an array: every public function gives the right result, or says in a sentence what to do."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fpsim

ROWS = [[1.0, 2.0], [3.0, -4.0]]
ARRAY = np.array(ROWS, np.float32)
TENSOR = torch.tensor(ROWS)
CODES = np.array([[0x3C00, 0x4000], [0x4200, 0xC400]], np.uint16)


def read_only(array):
    array.setflags(write=False)
    return array


def memory_mapped(folder):
    mapped = np.memmap(folder / "numbers", np.float32, "w+", shape=(2, 2))
    mapped[:] = ARRAY
    return mapped


#: Other ways to hold the numbers of ARRAY.
SAME = {
    "read-only": read_only(ARRAY.copy()),
    "reversed": np.ascontiguousarray(ARRAY[::-1, ::-1])[::-1, ::-1],
    "strided": np.repeat(np.repeat(ARRAY, 3, 0), 2, 1)[::3, ::2],
    "unaligned": np.frombuffer(b"x" + ARRAY.tobytes(), np.float32, offset=1).reshape(2, 2),
    "fortran": np.asfortranarray(ARRAY),
    "negative bit": torch._neg_view(-TENSOR),
    "imaginary part of a conjugate": torch.complex(TENSOR, -TENSOR).conj().imag,
    "gradient": TENSOR.clone().requires_grad_(),
    "subclass without elements of its own": TENSOR.as_subclass(type("Own", (torch.Tensor,), {})),
    "transposed": TENSOR.t().contiguous().t(),
    "negative half": torch._neg_view(-TENSOR.half()),
}
#: What no function takes, and a word of the sentence that says so.
OTHERS = {
    "matrix": (np.matrix(ROWS, dtype=np.float32), "np.asarray"),
    "masked": (np.ma.array(ARRAY, mask=[[0, 1], [0, 0]]), "filled"),
    "record": (np.rec.array([(1.0, 2.0)], dtype=[("x", "f4"), ("y", "f4")]), "np.asarray"),
    "structured": (np.zeros((2, 2), [("x", "f4")]), "got"),
    "own class": (ARRAY.view(type("Quantity", (np.ndarray,), {})), "np.asarray"),
    "objects": (np.array(ROWS, dtype=object), "got object"),
    "list": (ROWS, "got list"),
    "ragged": ([[1.0, 2.0], [3.0]], "got list"),
    "byte-swapped": (ARRAY.astype(">f4"), "byte order|got >f4"),
    "long double": (ARRAY.astype(np.longdouble), "got"),
    "strings": (np.array([["a", "b"], ["c", "d"]]), "got"),
    "dates": (np.array([["2020", "2021"]] * 2, "M8[Y]"), "got"),
    "complex": (ARRAY.astype(complex), "got complex"),
    "booleans": (ARRAY > 0, "got bool"),
    "nothing": (None, "got NoneType"),
    "text": ("x", "got str"),
    "sparse": (TENSOR.to_sparse(), "dense"),
    "compressed": (TENSOR.to_sparse_csr(), "dense"),
    "meta": (TENSOR.to("meta"), "CPU"),
    "nested": (torch.nested.nested_tensor([TENSOR, TENSOR]), "unbind"),
    "jagged": (torch.nested.nested_tensor([TENSOR, TENSOR], layout=torch.jagged), "unbind"),
    "quantized": (torch.quantize_per_tensor(TENSOR, 1.0, 0, torch.qint8), "got torch.qint8"),
    "fake": (FakeTensorMode().from_tensor(TENSOR), "plain tensor"),
    "conjugate": (torch.complex(TENSOR, TENSOR).conj(), "got torch.complex64"),
    "float8": (TENSOR.to(torch.float8_e5m2), "got torch.float8_e5m2"),
}  # fmt: skip

UNARY = (
    "acos acosh asin asinh atan atanh cos cosh erf erfc exp exp2 expm1 log log10 log1p log2 rsqrt sigmoid sin sinh sqrt tan "
    "tanh"
)
PLAIN = np.ndarray | torch.Tensor


def unary(name):
    function = getattr(fpsim, name)
    return lambda x: function(x, fmt="fp16")


def binary(name):
    function = getattr(fpsim, name)
    return lambda x: function(x, x, fmt="fp16")


FUNCTIONS = {
    **{name: unary(name) for name in (*UNARY.split(), "round", "encode", "ulp", "next_up", "next_down")},
    **{name: binary(name) for name in ("add", "sub", "mul", "div", "matmul")},
    "second of add": lambda x: fpsim.add(1.0, x, fmt="fp16"),
    "third of fma": lambda x: fpsim.fma(1.0, 2.0, x, fmt="fp16"),
    "sum": lambda x: fpsim.sum(x, axis=0, fmt="fp16"),
    "mean": lambda x: fpsim.mean(x, axis=0, fmt="fp16"),
    "cumsum": lambda x: fpsim.cumsum(x, axis=0, fmt="fp16"),
    "dot": lambda x: fpsim.dot(*(x if isinstance(x, PLAIN) else (x, x)), fmt="fp16"),
    "addend": lambda x: fpsim.matmul(like(x), like(x), addend=x, fmt="fp16"),
    "conv": lambda x: fpsim.conv(*((x[None, None] if isinstance(x, PLAIN) else x,) * 2), fmt="fp16"),
}


def like(x):
    return TENSOR if isinstance(x, torch.Tensor) else ARRAY


def numbers(result):
    return result.detach().numpy() if isinstance(result, torch.Tensor) else result


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_same_numbers_give_the_same_results(function, tmp_path):
    """However they are held: what a plain array gives."""
    call = FUNCTIONS[function]
    for name, x in {**SAME, "memory-mapped": memory_mapped(tmp_path)}.items():
        np.testing.assert_array_equal(numbers(call(x)), numbers(call(ARRAY)), err_msg=name)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("function", [name for name in FUNCTIONS if name not in ("dot", "conv")])
def test_what_is_no_plain_array_is_refused_in_one_sentence(function):
    for name, (x, word) in OTHERS.items():
        if function == "addend" and x is None:
            continue
        with pytest.raises((TypeError, ValueError), match=word) as caught:
            FUNCTIONS[function](x)
        message = str(caught.value)
        assert message.split()[0] in ("x", "a", "b", "c", "addend") and "\n" not in message, (name, message)


@pytest.mark.parametrize("name", OTHERS)
def test_vectors_and_codes_are_refused_likewise(name):
    x, _ = OTHERS[name]
    for call in (lambda: fpsim.dot(x, x, fmt="fp16"), lambda: fpsim.decode(x, "fp16")):
        with pytest.raises((TypeError, ValueError)) as caught:
            call()
        assert str(caught.value).split()[0] in ("a", "bits") and "\n" not in str(caught.value)


def test_codes_of_a_negative_view_are_decoded():
    codes = torch.from_numpy(CODES.astype(np.int32))
    assert fpsim.decode(torch._neg_view(-codes), "fp16").tolist() == ROWS


def test_a_tensor_inside_a_transform_is_refused():
    with pytest.raises(TypeError, match=r"^x is a tensor inside torch\.func"):
        torch.func.vmap(lambda x: fpsim.round(x, "fp16"))(TENSOR)


def test_out_must_have_an_element_for_each_result():
    for out in (torch._neg_view(torch.empty(2, 2)), torch.empty(2, 1).expand(2, 2)):
        with pytest.raises(ValueError, match=r"^out must have memory of its own"):
            fpsim.round(TENSOR, "fp16", out=out)
    with pytest.raises(TypeError, match=r"^out is a masked array"):
        fpsim.round(ARRAY, "fp16", out=np.ma.array(ARRAY))


@pytest.mark.parametrize("granularity", ["kernel", "primitive"])
def test_emulation_reads_a_negative_view_from_outside(granularity):
    view, plain = torch._neg_view(-TENSOR / 3), TENSOR / 3
    with fpsim.emulate(fmt="fp16", granularity=granularity):
        for function in (torch.relu, torch.exp, torch.neg, lambda x: x @ x, lambda x: x.softmax(-1), lambda x: x.sum(0)):
            assert torch.equal(function(view), function(plain))
