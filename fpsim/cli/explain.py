"""`fpsim explain`: one number in one format, down to the bits."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING

import click

from fpsim.cli.numbers import decimal_text, parse_number, round_to_odd
from fpsim.cli.parameters import ROUNDING, SYSTEM, InputError
from fpsim.report.console import console
from fpsim.report.plain import plain

if TYPE_CHECKING:
    from rich.text import Text

    from fpsim.numbers.rounding import Rounding
    from fpsim.numbers.system import NumberSystem

_STYLES = {
    "sign": "bold red", "exponent": "bold green", "integer": "bold green", "significand": "bold blue", "fraction": "bold blue",
}  # fmt: skip


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("text", metavar="NUMBER")
@click.option("--fmt", type=SYSTEM, default="fp16", show_default=True, help="Format to round to.")
@click.option("--rounding", type=ROUNDING, default="nearest-even", show_default=True, help="Rounding mode.")
@click.option("--seed", type=int, help="Seed of the draw; stochastic rounding needs one.")
def explain(text: str, fmt: NumberSystem, rounding: Rounding, seed: int | None) -> None:
    """Show one number in one format, to the bit.

    NUMBER is exact however it is written: 0.1, -1e-8, 1/3, 0x1.8p-3, inf or nan.
    """
    from rich.table import Table
    from rich.text import Text

    try:
        number = parse_number(text)
    except ValueError as error:
        raise InputError(str(error)) from None
    result = _rounded(number, fmt, rounding, seed)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for row in (*_bit_rows(result, fmt), *_value_rows(number, result, fmt), *_neighbor_rows(number, result, fmt)):
        table.add_row(*row)
    screen = console()
    screen.print(Text.assemble((plain(text.strip()), "bold"), " in ", (fmt.name, "bold"), f", {rounding.value}\n"))
    screen.print(table)


def _rounded(number: Fraction | float, system: NumberSystem, rounding: Rounding, seed: int | None) -> float:
    from fpsim.arrays.rounding import round as round_value

    if system.enclosing.precision > 51 and isinstance(number, Fraction):
        if system.name != "fp64" or rounding.value != "nearest-even":
            raise InputError("of formats with more than 51 significand bits only fp64 to nearest-even can be explained")
        try:
            return float(number)
        except OverflowError:
            return math.inf if number > 0 else -math.inf
    carrier = number if isinstance(number, float) else round_to_odd(number)
    try:
        return float(round_value(carrier, system, rounding, seed=seed))
    except ValueError as error:
        raise InputError(str(error)) from None


def _code(value: float, system: NumberSystem) -> int | None:
    from fpsim.arrays.encoding import encode

    if math.isnan(value) and not system.has_nan:
        return None
    return int(encode(value, system))


def _code_text(value: float, system: NumberSystem) -> str:
    code = _code(value, system)
    return "no code" if code is None else f"0x{code:0{(system.bits + 3) // 4}x}"


def _bit_rows(value: float, system: NumberSystem) -> list[tuple[Text | str, Text | str]]:
    from rich.text import Text

    code = _code(value, system)
    if code is None:
        return [("bits", f"none: {system.name} has no NaN")]
    fields = system.fields(code)
    bits = Text(" ").join(Text(field.digits, style=_STYLES[field.name]) for field in fields)
    rows: list[tuple[Text | str, Text | str]] = [("code", _code_text(value, system)), ("bits", bits)]
    for field in fields:
        rows.append((field.name, Text(f"{field.digits}   {field.reading}".rstrip(), style=_STYLES[field.name])))
    return rows


def _value_rows(number: Fraction | float, value: float, system: NumberSystem) -> list[tuple[str, str]]:
    if not math.isfinite(value):
        rows = [("value", str(value))]
        if isinstance(number, Fraction):
            rows.append(("error", f"overflow: the largest finite value is {decimal_text(Fraction(system.max_finite))}"))
        return rows
    exact = Fraction(value)
    rows = [("value", decimal_text(exact) if value else f"{value:g}")]
    if value:
        rows += [("", f"= {exact}"), ("", f"= {_hex(value)}")]
    if isinstance(number, Fraction):
        rows.append(("error", _error_text(number, exact, system)))
    return rows


def _error_text(number: Fraction, value: Fraction, system: NumberSystem) -> str:
    error = value - number
    if error == 0:
        return "0: exact"
    relative = f", relative {abs(float(error / number)):.3g}" if number else ""
    return f"{_ulps(error, number, system):+.4f} ulp   ({float(error):+.6g}{relative})"


def _hex(value: float) -> str:
    significand, _, exponent = value.hex().partition("p")
    return f"{significand.rstrip('0').rstrip('.') if '.' in significand else significand}p{exponent}"


def _ulps(difference: Fraction, number: Fraction, system: NumberSystem) -> float:
    from fpsim.arrays.encoding import ulp

    return float(difference / Fraction(float(ulp(round_to_odd(number), system))))


def _neighbor_rows(number: Fraction | float, value: float, system: NumberSystem) -> list[tuple[str, str]]:
    from fpsim.arrays.encoding import next_down, next_up

    if math.isnan(value):
        return []
    rows = []
    for label, step in (("next up", next_up), ("next down", next_down)):
        neighbor = float(step(value, system))
        text = decimal_text(Fraction(neighbor)) if neighbor and math.isfinite(neighbor) else f"{neighbor:g}"
        distance = ""
        if isinstance(number, Fraction) and math.isfinite(neighbor) and math.isfinite(value):
            distance = f"   {_ulps(Fraction(neighbor) - number, number, system):+.4f} ulp"
        rows.append((label, f"{text}   {_code_text(neighbor, system)}{distance}"))
    return rows
