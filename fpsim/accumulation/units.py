"""Hardware units as rows of a table: what they multiply, how they add, and how sure that is.

A unit has an instruction for each group of operand formats. What an instruction does is one of a few models, and the numbers
of its row; `fpsim/sums/units/products.py` computes them. Adding a unit is a row.

    block      NVIDIA tensor cores: the products of a block and the addend are aligned to the largest exponent, truncated to
               `fraction` bits below it, added exactly and rounded once; blocks chain in ascending k
    emulated   fp8 mma.sync of Hopper and later, for every 32 terms: two chained blocks of 16 from +0, k mod 4 < 2 first, each
               rounded as fp16 operands' blocks are for that output; the addend is added to nearest even
    chain      one fused multiply-add a term; `swapped`: in pairs, the later of a pair first
    halves     Intel AMX: for every `block` terms a chain over even k and one over odd k from +0, added, then to the addend
    odd pairs  ARM BFDOT: the sum of two products, then the addend, each rounded to odd
    fused pairs  the same with EBF: the exact sum of two products rounded once, then added, to nearest even
    quads      AMD CDNA2: products and sums flushed, (p0 + p1) + (p2 + p3), then the addend
    exact      AMD CDNA1: the exact sum of a block and the addend, rounded once
    scaled block   MX operands: as `block`, each term and its power multiplied by the scales of its operands
    scaled groups  fp4 operands: the terms of a group are added exactly and multiplied by the group's scales; the groups and the
               addend are aligned as in `block`, a group by the product of its scales' powers
    floored    AMD CDNA3: aligned and truncated as in `block`, then floored with the addend, rounded once;
               `floored halves`: even and odd k apart, then together
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from fpsim.numbers.formats import FP16, FP32, Format, get_format
from fpsim.numbers.modes import Rounding

Model = Literal[
    "block", "emulated", "chain", "halves", "odd pairs", "fused pairs", "quads", "exact", "floored", "floored halves",
]  # fmt: skip

_E8M13 = get_format("e8m13")
_TOWARD_ZERO = "toward-zero"
_NEAREST = "nearest-even"


#: What a and b are values of: one format, or one each.
Formats = Format | tuple[Format, Format]


def formats_of_both(fmt: Formats) -> tuple[Format, Format]:
    """The formats of a and of b."""
    return fmt if isinstance(fmt, tuple) else (fmt, fmt)


@dataclass(frozen=True)
class Output:
    """What a block's sum is rounded to, and how sure the row is of that.

    `format` may be narrower than the register that holds it: fp8 sums of Ada and Hopper keep 14 bits in an fp32 one.
    """

    format: Format
    rounding: str
    verified: bool
    source: str


@dataclass(frozen=True)
class Instruction:
    """One row: the formats of a and b, the model and its numbers, and each output format that can be asked for.

    operands   names of formats
    mixes      whether a and b may be of different ones; else both have the same
    block      terms that are added at once; 1 for chains
    fraction   bits kept below the largest exponent, where a model aligns
    outputs    by name; "fp32" is what a unit gives when none is named
    swapped    for chains: the later term of each pair first
    flush      whether subnormal operands, addends and results count as zeros
    conversion the mode in which float32 numbers become such operands, where the hardware has an instruction of its own for
               that: PTX cvt.rna.tf32 rounds ties away
    """

    operands: tuple[str, ...]
    model: Model
    block: int
    fraction: int
    outputs: dict[str, Output]
    swapped: bool = False
    flush: bool = False
    mixes: bool = False
    conversion: Rounding | None = None

    @cached_property
    def formats(self) -> tuple[Format, ...]:
        """The operand formats."""
        return tuple(get_format(name) for name in self.operands)

    def takes(self, fmt: Formats) -> bool:
        """Whether a and b may be values of the format, or of the two; their names do not matter."""
        names = [own.name for one in formats_of_both(fmt) for own in self.formats if one.replace(name=own.name) == own]
        return len(names) == 2 and (self.mixes or names[0] == names[1])


@dataclass(frozen=True)
class ScaledInstruction:
    """One row for operands with scales: an instruction's kind, and its numbers as for `Instruction`. The output is fp32.

    scale    the scales' format; `scaled` terms share one
    group    terms that are added exactly, where the model is of groups
    """

    kind: str
    operands: tuple[str, ...]
    scale: str
    scaled: int
    model: Literal["scaled block", "scaled groups"]
    block: int
    group: int
    fraction: int
    verified: bool
    source: str

    @cached_property
    def scale_format(self) -> Format:
        """The scales' format."""
        return get_format(self.scale)


@dataclass(frozen=True, eq=False)
class Unit:
    """A part or an instruction set by its name in ``accumulate``: what it is, and its instructions.

    `scaled` are those that take scales beside operands; `fpsim.hardware.scaled_product` calls them.
    """

    name: str
    title: str
    instructions: tuple[Instruction, ...]
    aliases: tuple[str, ...] = ()
    scaled: tuple[ScaledInstruction, ...] = ()

    @property
    def output_names(self) -> tuple[str, ...]:
        """Every output format that some instruction has, fp32 first."""
        return tuple(dict.fromkeys(name for row in self.instructions for name in row.outputs))

    def instruction(self, fmt: Formats, output: str) -> Instruction:
        """The row for operands of `fmt`, or a and b of the two formats.

        Raises ValueError listing what the unit takes.
        """
        for row in self.instructions:
            if row.takes(fmt) and output in row.outputs:
                return row
        choices = "; ".join(f"{', '.join(row.operands)} (output {' or '.join(row.outputs)})" for row in self.instructions)
        asked = fmt.name if isinstance(fmt, Format) else " and ".join(one.name for one in fmt)
        raise ValueError(
            f"accumulate: unit {self.name} has no instruction for {asked} operands with {output} output; it takes {choices}"
        )

    def conversion_to(self, fmt: Format) -> Rounding | None:
        """The mode in which float32 numbers become operands of that format; None where the hardware has none of its own."""
        return next((row.conversion for row in self.instructions if row.takes(fmt)), None)

    def __repr__(self) -> str:
        return f"Unit({self.name!r})"


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
