"""`python -m experiments.zoo`: try models, and write the page about them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.progress import track

from experiments.environment import environment
from experiments.runs import Record, Run
from experiments.store import Store
from experiments.zoo import page
from experiments.zoo.entries import FAMILIES, entries_of
from experiments.zoo.trial import try_entry
from experiments.zoo.workers import findings

RESULTS = Path(__file__).parent / "results.jsonl"
PAGE = Path(__file__).parents[2] / "docs" / "reference" / "models.md"
console = Console(highlight=False)


def run_of(key: str) -> Run:
    """A model's trial as a value."""
    family, _, name = key.partition("/")
    return Run("zoo", {"arm": family, "seed": 0, "model": name})


@click.group(invoke_without_command=True)
@click.option("--family", "families", multiple=True, type=click.Choice(list(FAMILIES)), help="These families alone.")
@click.option("--model", "models", multiple=True, help="These models alone, by name.")
@click.option("--store", type=click.Path(path_type=Path), default=RESULTS, help="Where results are kept.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Local processes.")
@click.option("--limit", default=300.0, show_default=True, help="Seconds for a model.")
@click.pass_context
def main(
    context: click.Context, families: Sequence[str], models: Sequence[str], store: Path, jobs: int, limit: float
) -> None:  # fmt: skip
    """Try a training step of each model that has no result yet; stopped at any moment, it continues where it was."""
    if context.invoked_subcommand is not None:
        return
    keys = []
    for family in families or FAMILIES:
        try:
            keys += [entry.key for entry in entries_of(family) if not models or entry.name in models]
        except ImportError as error:
            console.print(f"{family}: left out. {error}", markup=False)
    kept = Store(store)
    left = [key for key in keys if run_of(key).key not in kept.records()]
    for key, found in track(findings(try_entry, left, jobs, limit), "models", total=len(left), console=console):
        seconds = sum(part.get("seconds", 0.0) for part in found.values() if isinstance(part, dict))
        kept.append(Record(run_of(key), found, seconds, environment()))
        console.print(key, page.in_words(found), markup=False)


@main.command()
@click.option("--store", type=click.Path(path_type=Path), default=RESULTS)
def report(store: Path) -> None:
    """Write docs/reference/models.md from the results."""
    PAGE.write_text(page.compose(list(Store(store).records().values())))
    console.print(f"{PAGE.name} is written")
