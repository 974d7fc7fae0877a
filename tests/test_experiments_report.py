"""docs/reproductions.md is what the committed results give, and no run is left out."""

import pytest

from experiments.answer import Answer, Finding, Table, Verdict
from experiments.claim import CLAIMS, get_claim, names
from experiments.command import PAGE
from experiments.report import PICTURES, compose, drawn_from, judged, results_digest, write

ALL = names()


@pytest.fixture(scope="module")
def answers():
    return [judged(get_claim(name)) for name in ALL]


def test_the_page_is_what_the_results_give(answers):
    assert PAGE.read_text() == compose(answers), "python -m experiments report"


def test_pictures_are_drawn_from_the_results(answers):
    drawn = {claim.name: results_digest(records) for claim, records, answer in answers if answer and answer.draw}
    assert {path.stem: drawn_from(path) for path in (PAGE.parent / PICTURES).glob("*.png")} == drawn


@pytest.mark.parametrize("name", ALL)
def test_no_result_is_of_another_protocol(name):
    """Those of a claim that is judged are all of its runs and no other; of one that is not finished, some of them."""
    claim = get_claim(name)
    assert set(claim.store().records()) <= {run.key for run in claim.runs()}


@pytest.mark.parametrize("name", ALL)
def test_every_claim_has_its_protocol(name):
    text = (CLAIMS / name / "README.md").read_text()
    for part in ("**Claim**", "**Protocol**", "**Refuted**"):
        assert part in text


def test_a_missing_run_is_not_judged(tmp_path):
    claim = get_claim("epsilon")
    store = claim.store(folder=tmp_path)
    for run in claim.runs()[1:]:
        store.append(claim.store().records()[run.key])
    assert write([claim], tmp_path / "page.md", "full", None, tmp_path) == ["epsilon"]
    page = (tmp_path / "page.md").read_text()
    assert "not finished" in page and "confirmed" not in page.replace("*confirmed*", "").partition("| claim |")[2]


def test_a_page_of_findings():
    claim = get_claim("epsilon")
    finding = Finding("a | b", Verdict.REFUTED, "p = 1", "here")
    page = compose([(claim, [], Answer("in short", (finding,), (Table("title", ("x",), [(0.123456,)]),), notes=("a note",)))])
    assert "| a \\| b | **refuted** | p = 1 | here |" in page
    assert "| x |\n| --- |\n| 0.1235 |" in page and page.endswith("a note\n")
