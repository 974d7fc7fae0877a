"""The tables of units and conversions as text, for the reference page and for `print`."""

from __future__ import annotations

from fpsim.accumulation.units import UNITS
from fpsim.hardware.conversions import CONVERSIONS

_HEAD = (
    "| `accumulate` | operands | model | block | fraction | rounding | status |\n| --- | --- | --- | --- | --- | --- | --- |"
)
_SCALED_HEAD = (
    "| `unit`, `kind` | operands | scales | model | block | fraction | status |\n| --- | --- | --- | --- | --- | --- | --- |"
)


def markdown() -> str:
    """One line for each unit, group of operand formats and output, in Markdown."""
    lines = [_HEAD]
    for unit in UNITS.values():
        for row in unit.instructions:
            for name, output in row.outputs.items():
                text = unit.name if name == unit.output_names[0] else f"{unit.name}:{name}"
                narrower = "" if output.format.name == name else f" ({output.format.precision} bits)"
                status = "verified" if output.verified else "unconfirmed"
                fraction = str(row.fraction) if row.fraction else "-"
                lines.append(
                    f"| `{text}` | {', '.join(row.operands)} | {row.model} | {row.block} | {fraction} "
                    f"| {output.rounding}{narrower} | {status}: {output.source} |"
                )
    return "\n".join(lines)


def scaled_markdown() -> str:
    """One line for each instruction that takes operands with scales, in Markdown."""
    lines = [_SCALED_HEAD]
    for unit in UNITS.values():
        for row in unit.scaled:
            status = "verified" if row.verified else "unconfirmed"
            scales = f"{row.scale}, one for {row.scaled} terms"
            lines.append(
                f"| `{unit.name}`, `{row.kind}` | {', '.join(row.operands)} | {scales} | {row.model} | {row.block} "
                f"| {row.fraction} | {status}: {row.source} |"
            )
    return "\n".join(lines)


def conversions_markdown() -> str:
    """One line for each conversion instruction, in Markdown."""
    lines = ["| `instruction` | what it is | rounding | subnormal operands | status |\n| --- | --- | --- | --- | --- |"]
    for row in CONVERSIONS.values():
        operands = "zeros of their sign" if row.flush else "kept"
        lines.append(
            f"| `{row.name}` | {row.title} | {', '.join(map(str, row.roundings))} | {operands} | verified: {row.evidence} |"
        )
    return "\n".join(lines)
