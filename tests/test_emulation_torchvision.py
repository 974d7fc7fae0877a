"""torchvision's operators: float64 rounded once, or every operation rounded, against each written out number by number."""

import ml_dtypes
import numpy as np
import pytest
import torch
from torch.nn import functional

import fpsim
from tests import torchvision_oracle as oracle

OPS = torch.ops.torchvision
with_torchvision = pytest.mark.skipif(not oracle.IS_INSTALLED, reason="torchvision is not installed for this torch")
REGIONS = [[0, 1, 1, 5, 5], [1, -2, 0.3, 8.5, 3], [0, 2.2, 2.2, 2.3, 2.6], [1, 0, 0, 6, 9], [0, 5, 6, 3, 1]]
KINDS = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}
HOW = [("fp16", "kernel"), ("fp16", "primitive"), ("bf16", "primitive")]


def of(fmt, *shape, seed=0, scale=1.0):
    values = np.random.default_rng(seed).normal(size=shape) * scale
    return torch.from_numpy(values.astype(KINDS[fmt]).astype(np.float32))


def regions(fmt):
    return torch.from_numpy(np.array(REGIONS).astype(KINDS[fmt]).astype(np.float32))


def kind_of(fmt, granularity):
    return np.float64 if granularity == "kernel" else KINDS[fmt]


def arrays(kind, *tensors):
    return [item.numpy().astype(kind) for item in tensors]


def once(fmt, values):
    return torch.from_numpy(np.asarray(values).astype(KINDS[fmt]).astype(np.float32))


def emulated(fmt, granularity, accumulate=None):
    return fpsim.emulate(fmt, accumulate or fmt, granularity=granularity)


@pytest.mark.parametrize("sampling", [0, 2])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize(("fmt", "granularity"), HOW)
def test_roi_align(fmt, granularity, aligned, sampling):
    x, rois, bins, kind = of(fmt, 2, 3, 9, 7), regions(fmt), (2, 3), kind_of(fmt, granularity)
    gradient = of(fmt, len(rois), 3, *bins, seed=1)
    with emulated(fmt, granularity):
        y = OPS.roi_align(x, rois, 0.75, *bins, sampling, aligned)
        back = OPS._roi_align_backward(gradient, rois, 0.75, *bins, *x.shape, sampling, aligned)
    left, right, g = arrays(kind, x, rois, gradient)
    assert torch.equal(y, once(fmt, oracle.align(kind, left, right, 0.75, bins, sampling, aligned, False)))
    assert torch.equal(back, once(fmt, oracle.align(kind, left, right, 0.75, bins, sampling, aligned, False, g)))


@pytest.mark.parametrize("sampling", [0, 2])
@pytest.mark.parametrize(("fmt", "granularity"), HOW)
def test_ps_roi_align(fmt, granularity, sampling):
    x, rois, bins, kind = of(fmt, 2, 4, 9, 7), regions(fmt), (2, 1), kind_of(fmt, granularity)
    gradient = of(fmt, len(rois), 2, *bins, seed=1)
    with emulated(fmt, granularity):
        y, mapping = OPS.ps_roi_align(x, rois, 0.75, *bins, sampling)
        back = OPS._ps_roi_align_backward(gradient, rois, mapping, 0.75, *bins, sampling, *x.shape)
    left, right, g = arrays(kind, x, rois, gradient)
    assert torch.equal(y, once(fmt, oracle.align(kind, left, right, 0.75, bins, sampling, False, True)))
    assert torch.equal(back, once(fmt, oracle.align(kind, left, right, 0.75, bins, sampling, False, True, g)))
    assert mapping.dtype is torch.int32 and torch.equal(mapping[0].flatten(), torch.arange(4).int())


@pytest.mark.parametrize("parts", [False, True], ids=["roi_pool", "ps_roi_pool"])
@pytest.mark.parametrize(("fmt", "granularity"), HOW)
def test_pools_of_whole_elements(fmt, granularity, parts):
    x, rois, bins, kind = of(fmt, 2, 4, 9, 7), regions(fmt), (2, 1), kind_of(fmt, granularity)
    gradient = of(fmt, len(rois), 2 if parts else 4, *bins, seed=1)
    name = "ps_roi_pool" if parts else "roi_pool"
    with emulated(fmt, granularity):
        y, places = getattr(OPS, name)(x, rois, 0.75, *bins)
        back = getattr(OPS, f"_{name}_backward")(gradient, rois, places, 0.75, *bins, *x.shape)
    left, right, g = arrays(kind, x, rois, gradient)
    values, expected = oracle.pool(kind, left, right, 0.75, bins, parts)
    assert torch.equal(y, once(fmt, values)) and np.array_equal(places.numpy(), expected)
    assert torch.equal(back, once(fmt, oracle.pool(kind, left, right, 0.75, bins, parts, g)))


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.7])
@pytest.mark.parametrize(("fmt", "granularity"), HOW)
def test_nms(fmt, granularity, threshold):
    """In float64 with the threshold as it is, or every operation rounded and the threshold too; equal scores in their order."""
    corner = of(fmt, 40, 2, scale=2)
    boxes = once(fmt, torch.cat([corner, corner + of(fmt, 40, 2, seed=1).abs() + 3], 1))
    boxes[:8] = boxes[:8].round()  # among them quotients that are the threshold
    scores = once(fmt, np.random.default_rng(2).integers(0, 9, 40) / 8)
    with emulated(fmt, granularity):
        kept = OPS.nms(boxes, scores, threshold)
    kind = kind_of(fmt, granularity)
    limit = threshold if kind is np.float64 else kind(threshold)
    assert kept.tolist() == oracle.nms(kind, *arrays(kind, boxes, scores), limit).tolist()
    assert 1 < len(kept) < 40


GEOMETRIES = [(1, 1, 1, 1, 1, True), (2, 0, 1, 1, 2, False), (1, 2, 2, 2, 2, True)]
#: stride, padding, dilation, groups, groups of offsets, whether there is a mask


def deformed(fmt, stride, padding, dilation, groups, offset_groups, use_mask, kernel=2, channels=4):
    rows, columns = ((size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for size in (5, 4))
    offset = of(fmt, 1, 2 * offset_groups * kernel**2, rows, columns, seed=1, scale=1.5)
    offset[0, 0] = offset[0, 0].round()  # on elements
    mask = of(fmt, 1, offset_groups * kernel**2, rows, columns, seed=2) if use_mask else torch.zeros(1, 1)
    numbers = (*(stride,) * 2, *(padding,) * 2, *(dilation,) * 2, groups, offset_groups, use_mask)
    return of(fmt, 1, channels, 5, 4), offset, mask, numbers


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize(("fmt", "granularity"), HOW)
def test_deformable_columns_and_what_their_gradients_become(fmt, granularity, geometry):
    """Under a weight that copies them, of which all other products are zeros."""
    stride, padding, dilation, _, offset_groups, use_mask = geometry
    x, offset, mask, numbers = deformed(fmt, stride, padding, dilation, 1, offset_groups, use_mask)
    copies = torch.eye(16).reshape(16, 4, 2, 2)
    gradient = of(fmt, 1, 16, *offset.shape[2:], seed=3)
    operands = x, copies, offset, mask, torch.zeros(16)
    with emulated(fmt, granularity):
        y = OPS.deform_conv2d(*operands, *numbers)
        backward = OPS._deform_conv2d_backward(gradient, *operands, *numbers)
    kind = kind_of(fmt, granularity)
    left, shifts, factors, g = arrays(kind, x, offset, mask, gradient)
    rest = (left, shifts, factors if use_mask else None, 2, stride, padding, dilation, offset_groups)
    assert torch.equal(y, once(fmt, oracle.deform(kind, *rest)))
    for found, expected in zip((backward[0], backward[2], backward[3]), oracle.deform(kind, *rest, g), strict=True):
        assert torch.equal(found, once(fmt, expected) if found.shape == expected.shape else torch.zeros_like(found))


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("accumulate", ["fp16", "fp16:pairwise", "fp32"])
def test_without_offsets_it_is_a_convolution_to_the_bit(accumulate, geometry):
    x, offset, mask, numbers = deformed("fp16", *geometry)
    weight, bias = of("fp16", 6, 4 // geometry[3], 2, 2, seed=4), of("fp16", 6, seed=5)
    gradient = of("fp16", 1, 6, *offset.shape[2:], seed=6)
    operands = x, weight, torch.zeros_like(offset), torch.ones_like(mask), bias
    for granularity in ("kernel", "primitive"):
        leaves = [item.clone().requires_grad_() for item in (weight, bias)]
        with emulated("fp16", granularity, accumulate):
            y = OPS.deform_conv2d(*operands, *numbers)
            backward = OPS._deform_conv2d_backward(gradient, *operands, *numbers)
            expected = functional.conv2d(x, *leaves, *geometry[:4])
            expected.backward(gradient)
        assert torch.equal(y, expected)
        assert torch.equal(backward[1], leaves[0].grad) and torch.equal(backward[4], leaves[1].grad)


def test_half_means_the_same_under_native():
    x, rois = of("fp16", 2, 3, 9, 7), regions("fp16")
    with fpsim.emulate("fp16"):
        expected = OPS.roi_align(x, rois, 0.75, 2, 3, 0, True)
    x, rois = x.half(), rois.half()
    for fmt in ("native", "bf16"):
        with fpsim.emulate(fmt):
            found = OPS.roi_align(x, rois, 0.75, 2, 3, 0, True)
        assert found.dtype is torch.float16 and torch.equal(found.float(), expected)


@pytest.mark.parametrize("granularity", ["kernel", "primitive"])
@pytest.mark.parametrize(
    ("region", "message"),
    [([2, 0, 0, 1, 1], "images"), ([-1, 0, 0, 1, 1], "images"), ([0, np.nan, 0, 1, 1], "finite"), ([0, 0, 0, 1], "Tensor")],
    ids=str,
)
def test_regions_that_are_nowhere_are_refused_before_memory_is_read(region, message, granularity):
    x = of("fp16", 2, 3, 9, 7)
    for name, rest in (("roi_align", (2, True)), ("roi_pool", ()), ("ps_roi_align", (2,)), ("ps_roi_pool", ())):
        with fpsim.emulate("fp16", granularity=granularity), pytest.raises(RuntimeError, match=message):
            getattr(OPS, name)(x, torch.tensor([region], dtype=torch.float32), 1.0, 3, 1, *rest)


@with_torchvision
@pytest.mark.parametrize("granularity", ["kernel", "primitive"])
def test_the_operators_own_errors(granularity):
    x, offset, mask, numbers = deformed("fp16", *GEOMETRIES[0])
    operands = [x, of("fp16", 4, 4, 2, 2), offset, mask, torch.zeros(4)]
    wrong = {
        "offset.shape": (*operands[:2], offset[:, :-1], *operands[3:]),
        "mask output dims": (*operands[:3], mask[..., 1:], *operands[4:]),
        "boxes and scores": (torch.zeros(3, 4), torch.zeros(2)),
    }
    for message, args in wrong.items():
        op, rest = (OPS.deform_conv2d, numbers) if len(args) > 2 else (OPS.nms, (0.5,))
        with fpsim.emulate("fp16", granularity=granularity), pytest.raises(RuntimeError, match=message):
            op(*args, *rest)


@with_torchvision
@pytest.mark.parametrize("granularity", ["kernel", "primitive"])
def test_modules_of_torchvision_train(granularity):
    from torchvision import ops

    torch.manual_seed(0)
    sim = fpsim.run(ops.DeformConv2d(3, 4, 3, padding=1), "fp16", "fp16", granularity=granularity)
    x, offset = of("fp16", 1, 3, 8, 8).requires_grad_(), of("fp16", 1, 18, 8, 8, seed=1).requires_grad_()
    with sim:
        features = sim(x, offset)
        y = ops.roi_align(features, [torch.tensor([[0.0, 0.0, 5.0, 5.0]])], 3, sampling_ratio=2)
        y.square().sum().backward()
    gradients = [x.grad, offset.grad, *(item.grad for item in sim.parameters())]
    assert all(item is not None and item.any() and torch.equal(item, item.half().float()) for item in gradients)
