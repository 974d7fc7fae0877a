"""`fpsim explain`: one number in one format, down to the bits."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING

import click

from fpsim.cli.console import console, plain
from fpsim.cli.numbers import decimal_text, parse_number, round_to_odd
from fpsim.cli.parameters import FORMAT, ROUNDING, InputError

if TYPE_CHECKING:
    from rich.text import Text

    from fpsim.numbers.formats import Format
    from fpsim.numbers.rounding import Rounding

_STYLES = {"sign": "bold red", "exponent": "bold green", "significand": "bold blue"}


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("text", metavar="NUMBER")
@click.option("--fmt", type=FORMAT, default="fp16", show_default=True, help="Format to round to.")
@click.option("--rounding", type=ROUNDING, default="nearest-even", show_default=True, help="Rounding mode.")
@click.option("--seed", type=int, help="Seed of the draw; stochastic rounding needs one.")
def explain(text: str, fmt: Format, rounding: Rounding, seed: int | None) -> None:
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


def _rounded(number: Fraction | float, fmt: Format, rounding: Rounding, seed: int | None) -> float:
    from fpsim.numbers.rounding import round as round_value

    if fmt.precision > 51 and isinstance(number, Fraction):
        if fmt.name != "fp64" or rounding.value != "nearest-even":
            raise InputError("of formats with more than 51 significand bits only fp64 to nearest-even can be explained")
        try:
            return float(number)
        except OverflowError:
            return math.inf if number > 0 else -math.inf
    carrier = number if isinstance(number, float) else round_to_odd(number)
    try:
        return float(round_value(carrier, fmt, rounding, seed=seed))
    except ValueError as error:
        raise InputError(str(error)) from None


def _code(value: float, fmt: Format) -> int | None:
    from fpsim.numbers.encoding import encode

    if math.isnan(value) and not fmt.has_nan:
        return None
    return int(encode(value, fmt))


def _code_text(value: float, fmt: Format) -> str:
    code = _code(value, fmt)
    return "no code" if code is None else f"0x{code:0{(fmt.bits + 3) // 4}x}"


def _bit_rows(value: float, fmt: Format) -> list[tuple[Text | str, Text | str]]:
    from rich.text import Text

    code = _code(value, fmt)
    if code is None:
        return [("bits", f"none: {fmt.name} has no NaN")]
    digits = f"{code:0{fmt.bits}b}"
    exponent_at, significand_at = int(fmt.signed), int(fmt.signed) + fmt.exponent_bits
    fields = {
        "sign": digits[:exponent_at],
        "exponent": digits[exponent_at:significand_at],
        "significand": digits[significand_at:],
    }
    readings = _readings(value, fields, fmt) if math.isfinite(value) else {}
    bits = Text(" ").join(Text(part, style=_STYLES[name]) for name, part in fields.items() if part)
    rows: list[tuple[Text | str, Text | str]] = [("code", _code_text(value, fmt)), ("bits", bits)]
    for name, part in fields.items():
        if part:
            rows.append((name, Text(f"{part}   {readings.get(name, '')}".rstrip(), style=_STYLES[name])))
    return rows


def _readings(value: float, fields: dict[str, str], fmt: Format) -> dict[str, str]:
    """What the fields of a finite number stand for."""
    field = int(fields["exponent"], 2)
    subnormal = field == 0 and fmt.has_zero
    if subnormal:
        exponent = f"2^{fmt.emin} = 2^emin"
    else:
        exponent = f"2^({field} - {fmt.bias}) = 2^{field - fmt.bias}"
    kind = ("   (zero)" if value == 0 else "   (subnormal)") if subnormal else ""
    written = f"{int(not subnormal)}.{fields['significand']}" if fmt.bits <= 40 else ""
    significand = f"{written}{kind}"
    return {"sign": "-" if fields["sign"] == "1" else "+", "exponent": exponent, "significand": significand}


def _value_rows(number: Fraction | float, value: float, fmt: Format) -> list[tuple[str, str]]:
    if not math.isfinite(value):
        rows = [("value", str(value))]
        if isinstance(number, Fraction):
            rows.append(("error", f"overflow: the largest finite value is {decimal_text(Fraction(fmt.max_finite))}"))
        return rows
    exact = Fraction(value)
    rows = [("value", decimal_text(exact) if value else f"{value:g}")]
    if value:
        rows += [("", f"= {exact}"), ("", f"= {_hex(value)}")]
    if isinstance(number, Fraction):
        rows.append(("error", _error_text(number, exact, fmt)))
    return rows


def _error_text(number: Fraction, value: Fraction, fmt: Format) -> str:
    error = value - number
    if error == 0:
        return "0: exact"
    relative = f", relative {abs(float(error / number)):.3g}" if number else ""
    return f"{_ulps(error, number, fmt):+.4f} ulp   ({float(error):+.6g}{relative})"


def _hex(value: float) -> str:
    significand, _, exponent = value.hex().partition("p")
    return f"{significand.rstrip('0').rstrip('.') if '.' in significand else significand}p{exponent}"


def _ulps(difference: Fraction, number: Fraction, fmt: Format) -> float:
    from fpsim.numbers.encoding import ulp

    return float(difference / Fraction(float(ulp(round_to_odd(number), fmt))))


def _neighbor_rows(number: Fraction | float, value: float, fmt: Format) -> list[tuple[str, str]]:
    from fpsim.numbers.encoding import next_down, next_up

    if math.isnan(value):
        return []
    rows = []
    for label, step in (("next up", next_up), ("next down", next_down)):
        neighbor = float(step(value, fmt))
        text = decimal_text(Fraction(neighbor)) if neighbor and math.isfinite(neighbor) else f"{neighbor:g}"
        distance = ""
        if isinstance(number, Fraction) and math.isfinite(neighbor) and math.isfinite(value):
            distance = f"   {_ulps(Fraction(neighbor) - number, number, fmt):+.4f} ulp"
        rows.append((label, f"{text}   {_code_text(neighbor, fmt)}{distance}"))
    return rows
