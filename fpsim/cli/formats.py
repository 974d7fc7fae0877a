"""`fpsim formats`: the table of named formats."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fpsim.report.console import console

if TYPE_CHECKING:
    from fpsim.numbers.formats import Format


@click.command()
def formats() -> None:
    """List the named formats.

    Any other IEEE-like format is written eXmY: X exponent bits, Y stored significand bits.
    """
    from rich.table import Table

    from fpsim.numbers.formats import FORMATS

    table = Table(box=None, padding=(0, 1), header_style="bold")
    table.add_column("format", no_wrap=True)
    for heading in ("s+e+m", "u", "subnormal", "normal", "largest"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("specials", no_wrap=True)
    for fmt in FORMATS.values():
        table.add_row(fmt.name, *_cells(fmt))
    screen = console()
    screen.print(table)
    screen.print(
        "\ns+e+m: sign, exponent and stored significand bits; u: unit roundoff; subnormal, normal: the smallest. "
        "The 8-, 6- and 4-bit names also go without their first part: e5m2. Any other eXmY is IEEE-like.",
    )


def _cells(fmt: Format) -> tuple[str, ...]:
    smallest_subnormal = fmt.emin - fmt.precision + 1
    specials = [
        name
        for name, present in (("inf", fmt.has_infinity), ("nan", fmt.has_nan), ("saturates", fmt.saturate))
        if present
    ]
    if not fmt.has_zero:
        specials.append("no 0")
    elif not fmt.has_negative_zero:
        specials.append("no -0")
    return (
        f"{int(fmt.signed)}+{fmt.exponent_bits}+{fmt.precision - 1}",
        f"2^-{fmt.precision}",
        f"2^{smallest_subnormal}" if fmt.has_zero and fmt.precision > 1 else "none",
        f"2^{fmt.emin}",
        f"{fmt.max_finite:.5g}" if fmt.max_finite < 1e6 else f"{fmt.max_finite:.2e}",
        " ".join(specials),
    )
