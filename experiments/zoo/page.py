"""docs/reference/models.md: what was found of each model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from experiments.answer import Table
from experiments.report import markdown
from experiments.runs import Record
from experiments.zoo.trial import NARROW, operations_that_stop

INTRODUCTION = """\
# Models that were tried

Written by `python -m experiments.zoo report` from the results in `experiments/zoo/results.jsonl`. Each model is built small
from its package's configuration, with random weights; two steps (forward, backward, SGD) are run in plain torch, with
fp16 storage and fp16 sums, with bf16 and bf16 sums, with fp16 and fp32 sums, and with fp32 storage and torch's own sums.
*Right* means: every result, gradient and parameter is a value of the format. *Same bits* means: those of fp32 with
`accumulate="native"` are plain torch's. Ratios are of the second step's processor time, one thread, to plain torch's.
`python -m experiments.zoo --family FAMILY --model NAME` tries those that have no result yet and stand in no table here.
"""


#: Of steps that take torch longer than 50 ms: times of torch's above which a model is named, and where those spend it.
LIMITS = {"fp16": 15, "bf16": 15, "fp16/fp32": 8}
_LONG_ATTENTION = ", nearly all in attention over 1,025 tokens with 8 channels a head"
SPENT = {f"transformers/{name}": _LONG_ATTENTION for name in ("internvl_vision", "qianfan_ocr_vision")}


def is_right(found: dict[str, Any], name: str) -> bool:
    """Whether a step ran, and gave values of the format alone."""
    return "raised" not in found[name] and found[name]["misfits"] == 0


def in_words(found: dict[str, Any]) -> str:
    """A line about a model."""
    for word in ("excluded", "stopped"):
        if word in found:
            return f"{word}: {found[word]}"
    stops = list(operations_that_stop(found))
    if stops:
        return stops[0]
    ratios = ", ".join(f"{name} {_ratio(found, name)}" for name in NARROW if is_right(found, name))
    wrong = ", ".join(f"{name} NOT RIGHT" for name in NARROW if not is_right(found, name))
    return f"{ratios} {wrong} identity {found['identity']}"


def _ratio(found: dict[str, Any], name: str) -> str:
    return f"{found[name]['seconds'] / found['plain']:.1f}" if "seconds" in found[name] else ""


def _identity(found: dict[str, Any]) -> str:
    return {True: "yes", False: "**no**", None: "torch's differ"}.get(found["identity"], "stops")


def compose(records: Sequence[Record]) -> str:
    """The page's text."""
    by_family: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: (record.run.arm, record.run.configuration["model"])):
        by_family.setdefault(record.run.arm, []).append(record)
    parts = [
        INTRODUCTION, f"On {_machines(records)}, with other programs beside.\n",
        "Models that torch runs, and of how many a step is right:", "", markdown(_overview(by_family)), "",
    ]  # fmt: skip
    for family, some in by_family.items():
        parts += [f"## {family}", "", markdown(_table(some)), ""]
    stops = [
        f"- `{_key(record)}`: {reason}"
        for record in records for reason in _reasons(record.result)
    ]  # fmt: skip
    parts += ["## What is slow", "", *_slow(records), ""]
    parts += ["## What does not run", "", *stops, "", "## Left out", "", *_excluded(records), ""]
    return "\n".join(parts)


def _slow(records: Sequence[Record]) -> list[str]:
    """Which steps of more than 50 ms exceed the limits."""
    long = [record for record in records if record.result.get("plain", 0) > 0.05]
    named = [
        f"- `{_key(record)}`: {name} {_ratio(record.result, name)}{SPENT.get(_key(record), '')}"
        for record in long for name, limit in LIMITS.items()
        if "seconds" in record.result[name] and record.result[name]["seconds"] > limit * record.result["plain"]
    ]  # fmt: skip
    limits = ", ".join(f"{name} {limit}" for name, limit in LIMITS.items())
    first = f"Of {len(long)} whose step takes torch more than 50 ms, more than so many times that ({limits}):"
    return [first, "", *(named or ["- none"])]


def _key(record: Record) -> str:
    return f"{record.run.arm}/{record.run.configuration['model']}"


def _machines(records: Sequence[Record]) -> str:
    found = {(item.environment["processor"], item.environment["torch"]) for item in records}
    return "; ".join(f"{processor}, torch {version}" for processor, version in sorted(found))


def _reasons(found: dict[str, Any]) -> list[str]:
    if "stopped" in found:
        return [found["stopped"]]
    stops = list(operations_that_stop(found))
    if isinstance(found.get("identity"), str):
        stops.append(f"fp32/native: {found['identity']}")
    return stops


def _tried(records: Sequence[Record]) -> list[dict[str, Any]]:
    return [record.result for record in records if "excluded" not in record.result]


def _overview(by_family: dict[str, list[Record]]) -> Table:
    rows: list[tuple[object, ...]] = []
    everything = [record for some in by_family.values() for record in some]
    for family, some in (*by_family.items(), ("all", everything)):
        tried = _tried(some)
        ran = [found for found in tried if "stopped" not in found]
        right = (sum(is_right(found, name) for found in ran) for name in NARROW)
        decided = [found for found in ran if found["identity"] is not None]
        rows.append((family, len(tried), *right, f"{sum(found['identity'] is True for found in decided)} of {len(decided)}"))
    return Table("", ("family", "models", *NARROW, "same bits"), rows)


def _table(records: Sequence[Record]) -> Table:
    rows: list[tuple[object, ...]] = []
    for record in records:
        found, name = record.result, record.run.configuration["model"]
        if "plain" in found:
            cells = (_cell(found, arithmetic) for arithmetic in NARROW)
            rows.append((name, f"{found['parameters']:,}", f"{1000 * found['plain']:.1f}", *cells, _identity(found)))
        elif "stopped" in found:
            rows.append((name, "", "", *(found["stopped"] for _ in NARROW), ""))
    return Table("", ("model", "parameters", "torch, ms", *(f"{name}: ratio" for name in NARROW), "same bits"), rows)


def _cell(found: dict[str, Any], name: str) -> str:
    if "raised" in found[name]:
        return "stops"
    finite = "" if found[name]["finite"] else ", not finite"
    return f"{_ratio(found, name)}{finite}" if is_right(found, name) else "**not right**"


def _excluded(records: Sequence[Record]) -> list[str]:
    """The names alone; the reasons are among the results."""
    excluded = [f"`{_key(record)}`" for record in records if "excluded" in record.result]
    return [f"{len(excluded)} that plain torch does not run in this small form: {', '.join(excluded) or 'none'}."]
