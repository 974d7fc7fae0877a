"""docs/reproductions.md: what the committed results come to, and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from experiments.answer import Answer, Table, Verdict, text
from experiments.claim import Claim
from experiments.estimate import duration
from experiments.runs import Record

PICTURES = "reproductions"
INTRODUCTION = """\
# The papers' claims, tested

Written by `python -m experiments report` from the results beside each claim (`results.jsonl`, a line a run, none left
out); a test compares them. What would refute a claim is in the README of its folder, written before its runs; what was changed
later, and when, is said there, with the runs of forms that were given up. *Confirmed*, *refuted* and *inconclusive* hold of
the conditions that are named, no more.
"""


def results_digest(records: Sequence[Record]) -> str:
    """What a picture says of the results that it was drawn from."""
    return hashlib.sha256("".join(record.line() for record in records).encode()).hexdigest()[:16]


def write(
    claims: Sequence[Claim], page: Path, size: str, seeds: int | None, store: Path | None, data: str | None = None
) -> list[str]:
    """The page, and a picture for each claim that draws one. Returns the names of claims that are not finished."""
    answers = [judged(claim, size, seeds, store, data) for claim in claims]
    for claim, records, answer in answers:
        if answer is not None and answer.draw is not None:
            draw(answer, page.parent / PICTURES / f"{claim.name}.png", results_digest(records))
    page.write_text(compose(answers))
    return [claim.name for claim, _, answer in answers if answer is None]


Judged = tuple[Claim, Sequence[Record], Answer | None]


def judged(
    claim: Claim, size: str = "full", seeds: int | None = None, store: Path | None = None, data: str | None = None
) -> Judged:
    """A claim, its records and what they come to; nothing where a run is missing, for what is not finished is not judged."""
    kept = claim.store(size, store).records()
    runs = claim.runs(size, seeds, data)
    if any(run.key not in kept for run in runs):
        return claim, (), None
    records = [kept[run.key] for run in runs]
    return claim, records, claim.judge(records)


def compose(answers: Sequence[Judged]) -> str:
    """The page's text."""
    overview = [
        (f"[{claim.title}](#{claim.name})", *(("not finished", "") if answer is None else (_verdicts(answer), answer.summary)))
        for claim, _, answer in answers
    ]
    parts = [INTRODUCTION, markdown(Table("", ("claim", "verdicts", "in short"), overview))]
    for claim, records, answer in answers:
        parts += _section(claim, records, answer)
    return "\n".join(parts)


def _verdicts(answer: Answer) -> str:
    """How many findings came out in which way."""
    found = [finding.verdict for finding in answer.findings]
    return ", ".join(f"{found.count(verdict)} {verdict}" for verdict in Verdict if verdict in found)


def _section(claim: Claim, records: Sequence[Record], answer: Answer | None) -> list[str]:
    folder = f"../experiments/claims/{claim.name}"
    if answer is None:
        protocol = f"[protocol]({folder}/README.md) stands, its runs are not finished: `python -m experiments run {claim.name}`"
        return [f"## {claim.name}\n", f"{claim.title} ({claim.settings['section']}). The {protocol}\n"]
    spent = duration(sum(record.seconds for record in records))
    runs = f"../experiments/claims/{claim.source.name}"
    files = f"[Protocol]({folder}/README.md), [configuration]({runs}/configuration.toml), [results]({runs}/results.jsonl)"
    command = f"{len(records)} runs, {spent} of processor time: `python -m experiments run {claim.name}`"
    parts = [
        f"## {claim.name}\n",
        f"{claim.title} ({claim.settings['section']}). {files}. {command}\n",
        markdown(
            Table(
                "", ("statement", "verdict", "statistic", "conditions"),
                [(f.statement, f"**{f.verdict}**", f.statistic, f.conditions) for f in answer.findings],
            )
        ),
    ]  # fmt: skip
    if answer.draw is not None:
        parts.append(f"![{claim.title}]({PICTURES}/{claim.name}.png)\n")
    for table in answer.tables:
        parts.append(f"{table.title}\n\n{markdown(table)}")
    return parts + [f"{note}\n" for note in answer.notes]


def markdown(table: Table) -> str:
    rows = [table.columns, ["---"] * len(table.columns), *table.rows]
    return "".join("| " + " | ".join(text(cell).replace("|", "\\|") for cell in row) + " |\n" for row in rows)


def draw(answer: Answer, path: Path, digest: str) -> None:
    """The picture, which bears the digest of the results that it shows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    assert answer.draw is not None
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    answer.draw(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, metadata={"Description": digest, "Software": None})


def drawn_from(path: Path) -> str:
    """The digest that a picture bears."""
    from PIL import Image

    with Image.open(path) as image:
        return image.info["Description"]
