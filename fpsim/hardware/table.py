"""The table of units as text, for the reference page and for `print`."""

from __future__ import annotations

from fpsim.accumulation.units import UNITS

_HEAD = (
    "| `accumulate` | operands | model | block | fraction | rounding | status |\n| --- | --- | --- | --- | --- | --- | --- |"
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
