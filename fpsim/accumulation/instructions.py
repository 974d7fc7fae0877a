"""What an instruction of a hardware unit does: one of a few models, and the numbers of its row.

`fpsim/sums/units/products.py` computes them.

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

from fpsim.numbers.formats import FP32, Format, get_format
from fpsim.numbers.modes import Rounding

Model = Literal[
    "block", "emulated", "chain", "halves", "odd pairs", "fused pairs", "quads", "exact", "floored", "floored halves",
]  # fmt: skip


#: What units that flush compute in.
FLUSHED = FP32.replace(name="fp32 without subnormals", flush="after")
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
        names = [own.name for one in formats_of_both(fmt) for own in self.formats if one.parameters == own.parameters]
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
