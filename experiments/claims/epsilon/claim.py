"""The epsilon table, over all finite gradients of a format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import fpsim
from experiments.answer import Answer, Finding, Table, Verdict, number, text
from experiments.claims.epsilon.steps import of_format, of_numpy, weights
from experiments.runs import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLAIN, REPAIRED = "sqrt(v) + eps", "sqrt(max(v, eps))"
GRADIENTS = (0.0, 1e-7, 1e-5, 1e-3, 1e-1)
#: Adam in fp16 after three steps, as published, printed by NumPy to its shortest digits.
PUBLISHED = {
    1e-8: ("nan", "nan", "nan", "-inf", "0.497"),
    1e-7: ("0.5", "0.5", "0.5", "-1.0", "0.497"),
    1e-4: ("0.5", "0.5", "0.5", "0.4985", "0.497"),
}


def measure(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """The table's weights, and how many of all finite gradients go wrong in which way."""
    fmt, lr, steps = configuration["fmt"], configuration["lr"], configuration["steps"]
    settings = [configuration[name] for name in ("optimizer", "form", "eps", "lr", "steps")]
    every = finite_values(fmt)
    with np.errstate(all="ignore"):
        found = np.asarray(weights(of_format(fmt), *settings, every), np.float64)
        table = np.asarray(weights(of_format(fmt), *settings, np.array(GRADIENTS)), np.float64)
        oracle = weights(of_numpy(), *settings, every).astype(np.float64) if fmt == "fp16" else None
    finite = np.isfinite(found)
    moved = np.abs(found[finite] - 0.5)
    still = (moved == 0) & (every[finite] != 0)
    return {
        "table": [number(w) for w in table],
        "printed": [str(w) for w in table.astype(np.float16)] if fmt == "fp16" else [],
        "gradients": len(every),
        "nonfinite": int(np.count_nonzero(~finite)),
        "nonfinite_at_zero": bool(~np.isfinite(found[every == 0]).all()),
        "wild": int(np.count_nonzero(moved > 10 * lr * steps)),
        "still": int(np.count_nonzero(still)),
        "differ_from_numpy": None if oracle is None else int(np.count_nonzero(~_same(found, oracle))),
        "eps": float(fpsim.round(settings[2], fmt)),
        "one_minus_beta2": float(1 - fpsim.round(0.999, fmt)),
        "vanishes_below": smallest_kept(fmt, settings[0], every),
    }  # fmt: skip


def _same(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Equal, or both NaN."""
    return (a == b) | (np.isnan(a) & np.isnan(b))


def finite_values(fmt: str) -> np.ndarray:
    """All finite values of a 16-bit format, one zero."""
    values = np.asarray(fpsim.decode(np.arange(2**16, dtype=np.uint16), fmt), np.float64)
    return np.unique(values[np.isfinite(values)])


def smallest_kept(fmt: str, optimizer: str, every: np.ndarray) -> float | str:
    """The least magnitude of a gradient whose square the second moment keeps after one step."""
    a, g = of_format(fmt), every[every > 0]
    with np.errstate(all="ignore"):
        kept = a.mul(a.mul(a.value(g), a.value(g)), a.sub(a.value(1.0), a.value(0.999 if optimizer == "adam" else 0.9)))
    return float(g[np.asarray(kept) > 0].min(initial=np.inf)) if np.any(np.asarray(kept) > 0) else "none"


def judge(records: Sequence[Record]) -> Answer:
    by = {tuple(record.run.configuration[name] for name in ("arm", "fmt", "form", "eps")): record.result for record in records}
    summary = (
        f"eps = 1e-8 makes Adam's weights non-finite for {_share(by['adam', 'fp16', PLAIN, 1e-8], 'nonfinite')} of all fp16 "
        f"gradients; 1e-7:  {_share(by['adam', 'fp16', PLAIN, 1e-7], 'wild')} go wild; 1e-4 leaves those whose squares overflow"
    )
    rows = [
        (*key, *(row[name] for name in ("nonfinite", "wild", "still", "gradients")), " ".join(map(text, row["table"])))
        for key, row in by.items()
    ]
    columns = (
        "optimizer", "format", "divisor", "eps", "not finite", "wild", "unmoved", "of gradients",
        "w at g = 0, 1e-7, 1e-5, 1e-3, 1e-1",
    )  # fmt: skip
    return Answer(summary, _findings(by), (Table("All settings:", columns, rows),), lambda figure: _draw(figure, by))


def _findings(by: Mapping[Any, Mapping[str, Any]]) -> tuple[Finding, ...]:
    adam = {eps: by["adam", "fp16", PLAIN, eps] for eps in PUBLISHED}
    equal = sum(a == b for eps, row in PUBLISHED.items() for a, b in zip(adam[eps]["printed"], row, strict=True))
    kept = {arm: by[arm, "fp16", PLAIN, 1e-8]["vanishes_below"] for arm in ("adam", "rmsprop")}
    with_max = {key: row for key, row in by.items() if key[2] == REPAIRED}
    bad = {key for key, row in with_max.items() if row["nonfinite_at_zero"]}
    held = {key for key, row in with_max.items() if row["eps"] > 0}
    fourth = [by[arm, "fp16", PLAIN, 1e-4] for arm in ("adam", "rmsprop")]
    still = by["adam", "bf16", PLAIN, 1e-8]
    differ, compared = (sum(row[name] for row in by.values() if row["printed"]) for name in ("differ_from_numpy", "gradients"))
    exact = f"every finite gradient; {differ} of {compared} weights differ from NumPy's float16"
    return (
        Finding("Adam in fp16 with eps = 1e-8, 1e-7, 1e-4 gives the published 15 weights",
                _verdict(equal == 15), f"{equal} of 15 equal", "lr .001, w = .5, 3 steps"),
        Finding("fp16(1e-8) = 0 and fp16(1e-7) = 1.19e-7", _verdict(
                adam[1e-8]["eps"] == 0 and f"{adam[1e-7]['eps']:.3g}" == "1.19e-07"),
                f"{adam[1e-8]['eps']:.3g}, {adam[1e-7]['eps']:.3g}", "exact"),
        Finding("Adam's v is 0 after the first step for |g| < 5.5e-3", _verdict(f"{kept['adam']:.1e}" == "5.5e-03"),
                f"the least |g| whose square is kept: {kept['adam']:.3g}", "every operation rounded"),
        Finding("RMSProp's v is 0 after the first step for |g| < 5.5e-4", _verdict(f"{kept['rmsprop']:.1e}" == "5.5e-04"),
                f"{kept['rmsprop']:.3g}: g * g is rounded too", "every operation rounded; 5.5e-4 is sqrt(2^-25 / 0.1)"),
        Finding("with eps = 1e-8 fp16 steps give weights that are not finite",
                _verdict(adam[1e-8]["nonfinite"] > 0), f"{_share(adam[1e-8], 'nonfinite')} of gradients (Adam)", exact),
        Finding("eps = 1e-7 is finite and wild: more than ten learning rates a step",
                _verdict(adam[1e-7]["wild"] > 0), f"{_share(adam[1e-7], 'wild')} of gradients (Adam)", exact),
        Finding("max(v, eps) has no NaN at g = 0, for an eps that the format holds",
                _verdict(not bad & held), f"not finite in {len(bad & held)} of {len(held)} settings", exact),
        Finding("max(v, eps) has no NaN at g = 0 for the usual eps = 1e-8 in fp16",
                _verdict(not bad - held),
                f"not finite in {len(bad - held)} of {len(with_max) - len(held)} settings: eps itself is 0", exact),
        Finding("eps = 1e-4 repairs fp16 whatever the finite gradient",
                _verdict(not any(row["nonfinite"] for row in fourth)),
                f"{', '.join(_share(row, 'nonfinite') for row in fourth)} of gradients not finite (Adam, RMSProp): "
                "g * g overflows above 255.9", exact),
        Finding("in bf16, beta2 = .999 leaves v where it is", _verdict(still["one_minus_beta2"] == 0),
                f"1 - bf16(.999) = {still['one_minus_beta2']:g}; {_share(still, 'nonfinite')} of gradients not finite, "
                f"{_share(still, 'still')} do not move w", exact),
    )  # fmt: skip


def _verdict(holds: bool) -> Verdict:
    return Verdict.CONFIRMED if holds else Verdict.REFUTED


def _share(row: Mapping[str, Any], name: str) -> str:
    return f"{row[name] / row['gradients']:.1%}"


def _draw(figure: Figure, by: Mapping[Any, Mapping[str, Any]]) -> None:
    axes = figure.subplots(1, 2, sharey=True)
    for panel, fmt in zip(axes, ("fp16", "bf16"), strict=True):
        keys = [key for key in by if key[1] == fmt]
        labels = [f"{arm}, {eps:g}, {'max' if 'max' in form else '+'}" for arm, _, form, eps in keys]
        shares = {name: [by[key][name] / by[key]["gradients"] for key in keys] for name in ("nonfinite", "wild")}
        panel.barh(labels, shares["nonfinite"], color="#b2182b", label="not finite")
        panel.barh(labels, shares["wild"], left=shares["nonfinite"], color="#ef8a62", label="moved by > 10 lr a step")
        panel.set(title=fmt, xlabel="share of all finite gradients", xlim=(0, 1))
        panel.tick_params(labelsize=7)
    axes[0].legend(fontsize=8, frameon=False)
