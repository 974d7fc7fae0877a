"""Every sweep finds no mismatch, and what it counts is what docs/conformance.md says."""

import pytest

from tests.exhaustive.conformance import PAGE, SWEEPS, line


@pytest.mark.exhaustive
@pytest.mark.parametrize("sweep", SWEEPS, ids=str)
def test_sweep(sweep):
    result = sweep.run()
    print(line(sweep, result))
    assert result.mismatches == 0
    assert line(sweep, result) in PAGE.read_text().splitlines(), "regenerate: python -m tests.exhaustive.conformance"


def test_the_page_lists_every_sweep():
    rows = [row for row in PAGE.read_text().splitlines() if row.startswith("| ") and not row.startswith(("| what", "| ---"))]
    assert sorted(row.split(" | ")[0].removeprefix("| ") for row in rows) == sorted(sweep.what for sweep in SWEEPS)
    assert all(row.split(" | ")[3].removesuffix(" |") == "0" for row in rows)
