"""`python -m tests.exhaustive.conformance` runs every sweep and writes docs/conformance.md."""

import math
import sys
import time
from itertools import groupby
from pathlib import Path

from tests.exhaustive import (  # noqa: F401 (importing them registers their sweeps)
    arithmetic_sweeps,
    elementary_sweeps,
    fma_sweeps,
    rounding_sweeps,
    stochastic_sweeps,
)
from tests.exhaustive.sweep import SWEEPS, Result, Sweep

PAGE = Path(__file__).parents[2] / "docs" / "conformance.md"

_HEAD = """# What has been proven, with counts

Each line is a sweep: fpsim's results compared bit for bit with an independent oracle, NaN-ness and the signs of zeros
included. `pytest -m exhaustive` runs them all and asserts these lines; `python -m tests.exhaustive.conformance`
regenerates this page.

The oracles: exact rationals (`tests/oracles.py`); 64-bit integers (`tests/integer_oracle.py`: unpack, compute exactly,
round once, pack; itself compared with the rationals below); NumPy's float16, ml_dtypes and torch.half where they are
right; balls of Arb, of which 120 bits are certain, for elementary functions.

Known differences, left out of the comparisons:
- ml_dtypes rounds every float32 strictly between 2^-127 and 2^-126 up to 2^-126 in float8_e8m0fnu; fpsim rounds it to
  the nearest value.
- ml_dtypes and torch round twice on the way from float64 to narrow formats: they are asked from float32 only.
- The payloads and signs of NaNs are not compared.

An elementary function's float64 value is off by about 2^-41 of a quantum of these formats at most; the least distance
of an exact value to a midpoint, in quanta, says that this cannot matter (one below 2^-30 would count as a mismatch).
"""


def line(sweep: Sweep, result: Result) -> str:
    """The sweep's row of the page."""
    cells = [sweep.what, sweep.oracle, f"{result.cases:,}", f"{result.mismatches:,}"]
    if math.isfinite(result.nearest):
        cells.append(f"2^{math.log2(result.nearest):.1f}")
    return f"| {' | '.join(cells)} |"


def page(lines: dict[str, str]) -> str:
    """The page, given each sweep's row by what it sweeps."""
    parts = [_HEAD]
    ordered = sorted(SWEEPS, key=lambda sweep: _SECTIONS.index(sweep.section))
    for section, sweeps in groupby(ordered, key=lambda sweep: sweep.section):
        distance = section == "Elementary functions"
        parts.append(f"\n## {section}\n")
        parts.append(f"| what | against | cases | mismatches |{' least distance |' if distance else ''}")
        parts.append(f"| --- | --- | --- | --- |{' --- |' if distance else ''}")
        parts.extend(lines[sweep.what] for sweep in sweeps)
    return "\n".join(parts) + "\n"


_SECTIONS = [
    "Rounding",
    "Arithmetic",
    "Fused multiply-add",
    "Elementary functions",
    "Stochastic rounding",
    "Oracles",
]


def main() -> int:
    lines, failed = {}, 0
    for sweep in SWEEPS:
        start = time.perf_counter()
        result = sweep.run()
        failed += result.mismatches > 0
        lines[sweep.what] = line(sweep, result)
        print(f"{time.perf_counter() - start:7.1f} s  {lines[sweep.what]}", flush=True)
    PAGE.write_text(page(lines))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
