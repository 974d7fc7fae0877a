"""docs/reproductions.md: what the committed results come to, and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from experiments.answer import Answer, Table, text
from experiments.claim import Claim
from experiments.estimate import duration
from experiments.runs import Record

PICTURES = "reproductions"
INTRODUCTION = """\
# The papers' claims, tested

Written by `python -m experiments report` from the results beside each claim (`results.jsonl`, a line a run, none left out);
a test compares them. What would refute a claim was written before its runs, in the README of its folder. *Confirmed*, *refuted*
and *inconclusive* hold of the conditions that are named, no more.
"""


def records_of(claim: Claim, size: str = "full", seeds: int | None = None, store: Path | None = None) -> list[Record]:
    """The records of all planned runs, in the plan's order.

    Raises ValueError where one is missing: what is not finished is not judged.
    """
    kept = claim.store(size, store).records()
    runs = claim.runs(size, seeds)
    if absent := [run.key for run in runs if run.key not in kept]:
        missing = f"{claim.name}: {len(absent)} of {len(runs)} runs have no result"
        raise ValueError(f"{missing}; python -m experiments run {claim.name} computes them")
    return [kept[run.key] for run in runs]


def results_digest(records: Sequence[Record]) -> str:
    """What a picture says of the results that it was drawn from."""
    return hashlib.sha256("".join(record.line() for record in records).encode()).hexdigest()[:16]


def write(claims: Sequence[Claim], page: Path, size: str, seeds: int | None, store: Path | None) -> None:
    """The page, and a picture for each claim that draws one."""
    found = [(claim, records_of(claim, size, seeds, store)) for claim in claims]
    answers = [(claim, records, claim.judge(records)) for claim, records in found]
    for claim, records, answer in answers:
        if answer.draw is not None:
            draw(answer, page.parent / PICTURES / f"{claim.name}.png", results_digest(records))
    page.write_text(compose(answers))


def compose(answers: Sequence[tuple[Claim, Sequence[Record], Answer]]) -> str:
    """The page's text."""
    overview = [
        (f"[{claim.title}](#{claim.name})", ", ".join(finding.verdict for finding in answer.findings), answer.summary)
        for claim, _, answer in answers
    ]
    parts = [INTRODUCTION, markdown(Table("", ("claim", "verdicts", "in short"), overview))]
    for claim, records, answer in answers:
        parts += _section(claim, records, answer)
    return "\n".join(parts)


def _section(claim: Claim, records: Sequence[Record], answer: Answer) -> list[str]:
    folder = f"../experiments/claims/{claim.name}"
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
