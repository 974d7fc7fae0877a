"""The page that lists every operation is what the table says."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from fpsim.cli import main
from fpsim.emulation import TABLE
from fpsim.emulation.coverage import MEANINGS, coverage, coverage_page, primitive_of

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "coverage.md"


def test_every_family_has_a_meaning():
    assert {entry.family for entry in TABLE.values() if entry.op.namespace == "aten"} <= MEANINGS.keys()


def test_the_page_is_up_to_date():
    text = PAGE.read_text()
    if f"torch {torch.__version__.split('+')[0]} " not in text:
        pytest.skip("the page was written for another version of torch")
    assert text == coverage_page(), "write it anew: fpsim coverage --markdown > docs/reference/coverage.md"


def test_it_says_what_primitive_does():
    assert primitive_of("_softmax") == primitive_of("silu_") == "in steps"
    assert primitive_of("_linalg_svd") == "refused"
    assert primitive_of("mm") == primitive_of("exp") == "the same"
    text = coverage_page()
    assert 'In steps under `"primitive"`: `_log_softmax`' in text


def test_the_command_lists_them():
    result = CliRunner().invoke(main, ["coverage"])
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == len(coverage())
    assert any(line.split() == ["mm", "matmul"] for line in result.stdout.splitlines())
    only = CliRunner().invoke(main, ["coverage", "--family", "unsupported"])
    assert all(line.endswith("unsupported") for line in only.stdout.splitlines())
    assert CliRunner().invoke(main, ["coverage", "--family", "none"]).exit_code == 2
