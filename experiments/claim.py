"""A claim is a folder: `README.md` (the protocol), `configuration.toml` (what is run), `claim.py` (how), results.

`configuration.toml`:

    title, section      what is claimed, and where it stands
    on_request = true   leave it out of `list`, `run` and `report` unless it is named
    runs_of             another claim, whose runs these are: nothing else but `title` and `section` then
    [base]              what all runs have in common
    [arms.NAME]         what an arm sets on top of it
    [grid]              NAME = [values]: factors crossed with every arm
    [sizes.full]        seeds; further keys replace those of the base, `arms` names those that take part, `grid` other values
    [sizes.quick], [sizes.smallest]     the same, on top of `full`

`claim.py` has `measure(configuration) -> result` (JSON values, a function of the configuration alone) and
`judge(records) -> Answer`; it may have `expected(configuration) -> seconds` for an estimate before the first run.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.answer import Answer
from experiments.environment import environment
from experiments.runs import Record, Run
from experiments.store import Store

CLAIMS = Path(__file__).parent / "claims"
SIZES = ("full", "quick", "smallest")


@dataclass(frozen=True)
class Claim:
    """A claim and what its configuration says."""

    name: str
    settings: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        return CLAIMS / self.name

    @property
    def title(self) -> str:
        return self.settings["title"]

    @property
    def source(self) -> Claim:
        """The claim whose runs these are: itself, unless it judges those of another."""
        return get_claim(self.settings["runs_of"]) if "runs_of" in self.settings else self

    def store(self, size: str = "full", folder: Path | None = None) -> Store:
        """Where the runs of a size are kept: beside the claim, or in a folder of the user's."""
        base = self.source.folder if folder is None else folder / self.source.name
        return Store(base / ("results.jsonl" if size == "full" else f"{size}.jsonl"))

    def runs(self, size: str = "full", seeds: int | None = None, data: str | None = None) -> list[Run]:
        """All runs of a size, seed by seed, so that what is finished early is a smaller experiment of the same form.

        Raises ValueError for arms that there are not.
        """
        if self.source is not self:
            return self.source.runs(size, seeds, data)
        chosen = {**self.settings["sizes"]["full"], **self.settings["sizes"].get(size, {})}
        count = chosen.pop("seeds", 1) if seeds is None else seeds
        chosen.pop("seeds", None)
        arms = self.settings.get("arms", {"": {}})
        names = chosen.pop("arms", list(arms))
        grid = {**self.settings.get("grid", {}), **chosen.pop("grid", {})}
        if unknown := set(names) - set(arms):
            raise ValueError(f"{self.name}: there are no arms {sorted(unknown)}, there are {', '.join(arms)}")
        base = {**self.settings.get("base", {}), **chosen, **({"data": data} if data else {})}
        points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
        return [
            Run(self.name, {**base, **point, **arms[arm], "arm": arm, "seed": seed})
            for seed in range(count)
            for arm in names
            for point in points
        ]

    def measure(self, run: Run) -> Record:
        """Compute a run now."""
        start = time.process_time()
        result = self._module().measure(run.configuration)
        return Record(run, result, time.process_time() - start, environment())

    def expected(self, run: Run) -> float | None:
        """The processor seconds that the claim itself expects of a run; None where it does not say."""
        expected = getattr(self._module(), "expected", None)
        return None if expected is None else expected(run.configuration)

    def judge(self, records: Sequence[Record]) -> Answer:
        """What finished runs come to."""
        return self._module().judge(records)

    def _module(self) -> Any:
        return importlib.import_module(f"experiments.claims.{self.name}.claim")


def names() -> list[str]:
    """The claims that there are, less those that are run on request."""
    every = sorted(path.parent.name for path in CLAIMS.glob("*/configuration.toml"))
    return [name for name in every if not get_claim(name).settings.get("on_request")]


@functools.cache
def get_claim(name: str) -> Claim:
    """Raises ValueError naming those that there are."""
    path = CLAIMS / name / "configuration.toml"
    if not path.is_file():
        raise ValueError(f"there is no claim {name!r}; there are {', '.join(names())}")
    with open(path, "rb") as file:
        return Claim(name, tomllib.load(file))


def measure(run: Run) -> Record:
    """Compute a run of whatever claim."""
    return get_claim(run.claim).measure(run)
