"""What emulation does with every float operation of ATen: the family of its rule, or that it has none."""

from __future__ import annotations

from collections import Counter

import torch

from fpsim.emulation.dispatch.decompositions import decomposition_of
from fpsim.emulation.registry import STEPS, TABLE
from fpsim.emulation.rules.steps import is_composite

MEANINGS = {
    "view": "the same memory",
    "exact": "elements of the operands, as they are",
    "comparison": "integers, booleans, Python numbers",
    "constant": "a constant or a tensor made from nothing, rounded",
    "random": "torch's own draws, rounded",
    "elementwise": "one operation, rounded once",
    "formula": "several operations in float32 or float64, rounded once",
    "elementary": "a function in float64, rounded once",
    "complex": "real functions in float64, each part rounded once",
    "matmul": "products accumulated as `accumulate` says",
    "scaled": "float8 products accumulated as `accumulate` says, times scales, rounded once",
    "sparse": "stored values as they are; products and sums accumulated as `accumulate` says, by ascending place",
    "convolution": "products accumulated as `accumulate` says",
    "reduction": "sums accumulated as `accumulate` says; norms, variances and products in float64, rounded once",
    "scatter": "what meets in one place is accumulated in the order of the source",
    "softmax": "float64 inside, rounded once",
    "attention": "scores and their softmax wide, products accumulated as `accumulate` says, rounded once",
    "normalization": "float64 inside, rounded once",
    "loss": "float64 inside, rounded once",
    "pooling": "float64 inside, rounded once",
    "interpolation": "float64 inside, rounded once",
    "linear algebra": "LAPACK in float64, rounded once",
    "foreach": "the elementwise rule for each tensor",
    "optimizer": "float64 inside, each stored tensor rounded once",
    "collective": "what the ranks have, summed in their order as `accumulate` says; or moved as it is",
    "decomposed": "arrives as other operations, which have rules",
    "refused": "raises `UnsupportedOp`, which says what to use instead",
    "unsupported": "raises `UnsupportedOp`, or arrives as what does",
}


#: What composite operations arrive as, on some input or on every one, that has had no rule: with one they are decomposed.
_ARRIVES_AS = {
    "_fft_r2c": "fft_fft fft_ifft fft_ihfft fft_ihfft2 fft_ihfftn fft_rfft fft_rfft2 fft_rfftn stft",
    "_fft_c2c": "fft_fft2 fft_fftn fft_ifft2 fft_ifftn",
    "_fft_c2r": "fft_hfft fft_hfft2 fft_hfftn fft_irfft fft_irfft2 fft_irfftn istft",
    "linalg_eig": "linalg_eigvals",
    "_sparse_coo_tensor_with_dims_and_tensors": "sparse_coo_tensor",
    "view_as_real": "imag",
    "_pin_memory": "pin_memory",
    "slow_conv3d_forward": "slow_conv3d",
    "_slow_conv2d_forward": "thnn_conv2d",
}
_ARRIVALS = {name: arrival for arrival, listed in _ARRIVES_AS.items() for name in listed.split()}

#: In the names of operations on tensors, or that make tensors, of which emulation has none.
_FOREIGN = ("sparse", "fbgemm", "quantized", "_qparams", "mkldnn", "nested_", "coalesce", "rowwise_prune", "linear_prepack")


def _has_rules(packet: str) -> bool:
    """Whether what a composite operation arrives as has rules."""
    arrival = _ARRIVALS.get(packet)
    if arrival is not None:
        return any(op in TABLE for op in _overloads(arrival))
    return packet not in ("to_dense_backward", "chalf") and not any(word in packet for word in _FOREIGN)


def _packets() -> list[str]:
    names = {name.split("::")[1].split(".")[0] for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::")}
    return sorted(name for name in names if not name.startswith(("_cudnn", "cudnn", "miopen", "_cuda", "mps_", "_mps")))


def _overloads(packet: str) -> list[torch._ops.OpOverload]:
    """Every overload of that name on tensors."""
    ops = getattr(torch.ops.aten, packet, None)
    if not isinstance(ops, torch._ops.OpOverloadPacket):
        return []
    return [op for op in (getattr(ops, name) for name in ops.overloads()) if "Tensor" in str(op._schema)]


def primitive_of(packet: str) -> str:
    """What becomes of the operation under granularity="primitive": "the same", "in steps" or "refused"."""
    ops = [op for op in _overloads(packet) if op in TABLE]
    if any(op in STEPS for op in ops):
        return "in steps"
    return "refused" if any(map(is_composite, ops)) else "the same"


def family_of(packet: str) -> str | None:
    """The family of the operation of that name; None for what takes and makes no tensors."""
    overloads = _overloads(packet)
    if not overloads:
        return None
    families = Counter(TABLE[op].family for op in overloads if op in TABLE)
    if families:
        return families.most_common(1)[0][0]
    return "decomposed" if _has_rules(packet) and any(map(_is_decomposed, overloads)) else "unsupported"


def _is_decomposed(op: torch._ops.OpOverload) -> bool:
    name = op.name()
    has_kernel = torch._C._dispatch_has_kernel(name) if "hacked_twin" not in name else False  # only TorchScript has those
    return has_kernel and decomposition_of(op) is not None


def coverage() -> dict[str, str]:
    """Every ATen operation on tensors, by name, and the family of its rule."""
    families = {packet: family_of(packet) for packet in _packets()}
    return {packet: family for packet, family in families.items() if family is not None}


def coverage_page() -> str:
    """The page `docs/reference/coverage.md`."""
    rows = coverage()
    counts = Counter(rows.values())
    lines = [
        "# Coverage",
        "",
        f"Every operation of ATen on tensors in torch {torch.__version__.split('+')[0]} and the family of its rule; operations",
        "for other devices' libraries are left out. Written by `fpsim coverage --markdown`.",
        "",
        'The table says what `granularity="kernel"` does. Under `"primitive"` the lists below say which operations run in',
        'steps, each rounded, and which are refused because they have none; the others round as they do under `"kernel"`, but',
        "for Python numbers, which are rounded first.",
        "",
        "| family | operations | what its rules do |",
        "| --- | --- | --- |",
        *(f"| {family} | {counts[family]} | {meaning} |" for family, meaning in MEANINGS.items() if counts[family]),
        "",
    ]
    for family in MEANINGS:
        members = [name for name, its_family in rows.items() if its_family == family]
        if members:
            lines += [f"## {family.capitalize()}", "", *_paragraphs(members)]
    return "\n".join(lines)


def _paragraphs(members: list[str]) -> list[str]:
    """The operations of a family: those that "primitive" leaves as they are, those in steps, those that it refuses."""
    groups: dict[str, list[str]] = {"the same": [], "in steps": [], "refused": []}
    for name in members:
        groups[primitive_of(name)].append(f"`{name}`")
    heads = {"the same": "", "in steps": 'In steps under `"primitive"`: ', "refused": 'Refused under `"primitive"`: '}
    return [line for kind, texts in groups.items() if texts for line in (heads[kind] + ", ".join(texts), "")]
