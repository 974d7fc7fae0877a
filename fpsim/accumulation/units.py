"""Hardware units as rows of a table: what they multiply, how they add, and how sure that is. Adding a unit is a row."""

from __future__ import annotations

from fpsim.accumulation.instructions import Instruction, Model, Output, ScaledInstruction, Unit
from fpsim.numbers.formats import FP16, FP32, Format, get_format
from fpsim.numbers.modes import Rounding

_E8M13 = get_format("e8m13")
_TOWARD_ZERO = "toward-zero"
_NEAREST = "nearest-even"


_RECORDED = "results recorded on the hardware (Khattak and Mikaitis, arXiv 2512.07004), 0 mismatches"
_VALIDATED = "reported as equal to the hardware; no recording to compare with here"
_MEASURED = "compared with the instruction itself, 144 million lanes on Zen 4 and 10 million on Zen 5"
_THROUGH_TORCH = "4.7 million bf16 products of torch on a processor that has it, 0 mismatches; sums seen rounded to bf16"
_PUBLISHED = "published models only"
_DISPUTED = "published models disagree"
_DOCUMENTED = "the vendor's documents only"
_SURE = (_RECORDED, _VALIDATED, _MEASURED, _THROUGH_TORCH)
_FP8 = "e4m3fn e5m2"
_FNUZ = "e4m3fnuz e5m2fnuz"


def _row(
    operands: str, model: Model, block: int, fraction: int, *outputs: tuple[str, Format, str, str], swapped: bool = False,
    flush: bool = False, mixes: bool = False, conversion: Rounding | None = None,
) -> Instruction:  # fmt: skip
    """A row whose outputs are (name, format, rounding, source)."""
    by_name = {name: Output(fmt, rounding, source.startswith(_SURE), source) for name, fmt, rounding, source in outputs}
    return Instruction(tuple(operands.split()), model, block, fraction, by_name, swapped, flush, mixes, conversion)


def _single(source: str, fmt: Format = FP32, rounding: str = _TOWARD_ZERO) -> tuple[str, Format, str, str]:
    return ("fp32", fmt, rounding, source)


def _half(source: str) -> tuple[str, Format, str, str]:
    return ("fp16", FP16, _NEAREST, source)


def _nearest(
    operands: str, model: Model, block: int, fraction: int, source: str, flush: bool = False, mixes: bool = False
) -> Instruction:
    """A row with an fp32 output to nearest even."""
    return _row(operands, model, block, fraction, _single(source, rounding=_NEAREST), flush=flush, mixes=mixes)


_AMPERE = (
    _row("fp16", "block", 8, 24, _single(_RECORDED), _half(_RECORDED)),
    _row("bf16", "block", 8, 24, _single(_RECORDED)),
    _row("tf32", "block", 4, 24, _single(_RECORDED), conversion=Rounding.NEAREST_AWAY),
)
_ADA_FP8 = _row(_FP8, "block", 16, 13, _single(_RECORDED, _E8M13), _half(_RECORDED), mixes=True)


def _hopper(source: str) -> tuple[Instruction, ...]:
    return (
        _row("fp16", "block", 16, 25, _single(source), _half(source)),
        _row("bf16", "block", 16, 25, _single(source)),
        _row(
            "tf32", "block", 8, 25, _single("recorded with 4 terms only: the bits are right, the block of 8 is not sure"),
            conversion=Rounding.NEAREST_AWAY,
        ),
    )


def _emulated(single: str, half: str) -> Instruction:
    return _row(_FP8, "emulated", 32, 25, _single(single, rounding=_NEAREST), _half(half), mixes=True)


_HOPPER_FP8 = _row(
    _FP8, "block", 32, 13, _single(f"{_RECORDED}; with a zero addend only", _E8M13), _half(_PUBLISHED), mixes=True
)  # fmt: skip
_FP8_FP6_FP4 = tuple(f"{_FP8} e3m2fn e2m3fn e2m1fn".split())
_BLACKWELL_FP8 = _row(" ".join(_FP8_FP6_FP4), "block", 32, 25, _single(_PUBLISHED), _half(_PUBLISHED), mixes=True)

_SCALED = (
    ScaledInstruction("mxf8f6f4", _FP8_FP6_FP4, "e8m0fnu", 32, "scaled block", 32, 0, 25, False, _PUBLISHED),
    ScaledInstruction("mxf4", ("e2m1fn",), "e8m0fnu", 32, "scaled groups", 64, 16, 35, False, _PUBLISHED),
    ScaledInstruction("nvf4", ("e2m1fn",), "e4m3fn", 16, "scaled groups", 64, 16, 35, False, _PUBLISHED),
)

_VOLTA = _row("fp16", "block", 4, 23, _single(_RECORDED), _half(_RECORDED))
_TURING = _row("fp16", "block", 8, 24, _single(_PUBLISHED), _half(_PUBLISHED))

_ROWS = (
    Unit("v100", "NVIDIA Volta tensor core", (_VOLTA,), ("volta",)),
    Unit("t4", "NVIDIA Turing tensor core", (_TURING,), ("turing",)),
    Unit("a100", "NVIDIA Ampere tensor core", _AMPERE, ("a2", "a10", "a30", "a40", "ampere")),
    Unit("ada", "NVIDIA Ada tensor core", (*_AMPERE, _ADA_FP8), ("l4", "l40", "l40s")),
    Unit("h100", "NVIDIA Hopper tensor core, fp8 as wgmma", (*_hopper(_RECORDED), _HOPPER_FP8), ("h200", "gh200", "hopper")),
    Unit(
        "h100_mma", "NVIDIA Hopper tensor core, fp8 as mma.sync",
        (*_hopper(_RECORDED), _emulated(_PUBLISHED, _RECORDED)), ("h200_mma",),
    ),
    Unit(
        "b200", "NVIDIA Blackwell tensor core, fp8, fp6 and fp4 as tcgen05", (*_hopper(_VALIDATED), _BLACKWELL_FP8),
        ("gb200", "blackwell"), _SCALED,
    ),
    Unit(
        "b200_mma", "NVIDIA Blackwell tensor core, fp8 as mma.sync",
        (*_hopper(_VALIDATED), _emulated(_VALIDATED, _VALIDATED)), ("gb200_mma",),
    ),
    Unit(
        "mi100", "AMD CDNA1 matrix core",
        (_nearest("fp16", "exact", 4, 0, _DISPUTED), _nearest("bf16", "exact", 2, 0, _DISPUTED)), ("cdna1",),
    ),
    Unit(
        "mi250", "AMD CDNA2 matrix core",
        (_nearest("fp16 bf16", "quads", 4, 0, _PUBLISHED, flush=True),), ("mi210", "mi250x", "cdna2"),
    ),
    Unit(
        "mi300", "AMD CDNA3 matrix core",
        (
            _nearest("fp16 bf16", "floored", 8, 24, _PUBLISHED),
            _nearest("tf32", "floored", 4, 24, _PUBLISHED),
            _nearest(_FNUZ, "floored halves", 16, 24, _PUBLISHED, mixes=True),
        ),
        ("mi300a", "mi300x", "mi325x", "cdna3"),
    ),
    Unit(
        "avx512_bf16", "x86 AVX512-BF16, VDPBF16PS",
        (_row("bf16", "chain", 2, 0, _single(_MEASURED, rounding=_NEAREST), swapped=True, flush=True),),
    ),
    Unit("avx512_fp16", "x86 AVX512-FP16, VFMADDPH", (_row("fp16", "chain", 1, 0, _half(_DOCUMENTED)),)),
    Unit("amx_bf16", "x86 AMX-BF16, TDPBF16PS", (_nearest("bf16", "halves", 32, 0, _THROUGH_TORCH, flush=True),)),
    Unit("amx_fp16", "x86 AMX-FP16, TDPFP16PS", (_nearest("fp16", "halves", 32, 0, _DOCUMENTED),)),
    Unit(
        "arm_bf16", "ARM BFDOT and BFMMLA without EBF",
        (_row("bf16", "odd pairs", 2, 0, _single(_DOCUMENTED, rounding="odd"), flush=True),),
    ),
    Unit("arm_ebf16", "ARM BFDOT and BFMMLA with EBF", (_nearest("bf16", "fused pairs", 2, 0, _DOCUMENTED),)),
)  # fmt: skip

#: Every unit, by name.
UNITS: dict[str, Unit] = {unit.name: unit for unit in _ROWS}
_ALIASES = {alias: unit for unit in _ROWS for alias in unit.aliases}


def find_unit(name: str) -> Unit | None:
    """The unit of that name or alias, in either case of letters; None if there is none."""
    key = name.strip().lower()
    return UNITS.get(key) or _ALIASES.get(key)


def get_unit(name: str | Unit) -> Unit:
    """The unit of that name or alias.

    Raises ValueError for an unknown name; it lists what there is.
    """
    if isinstance(name, Unit):
        return name
    unit = find_unit(name) if isinstance(name, str) else None
    if unit is None:
        raise ValueError(f"unknown unit {name!r}: known are {', '.join(UNITS)}, also as {', '.join(_ALIASES)}")
    return unit
