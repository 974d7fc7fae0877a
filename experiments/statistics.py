"""The statistics of paired seeds: scipy's tests, and what they cannot settle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Paired:
    """Differences x - y over the same seeds.

    low, high     the 95 % confidence interval of the mean difference (Student)
    equivalent    p of two one-sided tests against the margin: small where |mean| < margin is shown
    outside       p of two one-sided tests that the mean is within the margin: small where |mean| > margin is shown
    different     p of the two-sided test that the mean is 0
    resolvable    the margin that these seeds would have shown at 5 % if the mean were 0
    """

    count: int
    mean: float
    deviation: float
    low: float
    high: float
    equivalent: float
    outside: float
    different: float
    margin: float
    resolvable: float

    @property
    def seeds_needed(self) -> int | None:
        """Seeds with which this mean would be shown equivalent in four experiments of five, without any correction.

        A normal approximation; None where the mean is not within the margin.
        """
        left = self.margin - abs(self.mean)
        if left <= 0:
            return None
        return math.ceil((self.deviation * (stats.norm.ppf(0.95) + stats.norm.ppf(0.9)) / left) ** 2) + 1

    @property
    def seeds_to_exclude(self) -> int | None:
        """As `seeds_needed`, with which this mean would be shown to be beyond the margin; None where it is not."""
        more = abs(self.mean) - self.margin
        if more <= 0:
            return None
        return math.ceil((self.deviation * (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) / more) ** 2) + 1

    def __str__(self) -> str:
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}], n = {self.count}, TOST p = {self.equivalent:.2g}"


def paired(x: Sequence[float], y: Sequence[float], margin: float) -> Paired:
    """Compare two arms seed by seed. Raises ValueError for fewer than two seeds or unequal counts."""
    if len(x) != len(y) or len(x) < 2:
        raise ValueError(f"paired comparison needs at least two seeds of both arms, got {len(x)} and {len(y)}")
    difference = np.asarray(x, np.float64) - np.asarray(y, np.float64)
    count, mean, deviation = len(difference), float(difference.mean()), float(difference.std(ddof=1))
    error = deviation / math.sqrt(count)
    if error == 0:  # all differences are one number: no test, the number itself
        return Paired(
            count, mean, 0.0, mean, mean, float(abs(mean) >= margin), float(abs(mean) <= margin), float(mean == 0), margin, 0.0
        )  # fmt: skip
    freedom = stats.t(count - 1)
    above = stats.ttest_1samp(difference, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(difference, margin, alternative="less").pvalue
    beyond = [
        stats.ttest_1samp(difference, side * margin, alternative=how).pvalue for side, how in ((1, "greater"), (-1, "less"))
    ]
    half = float(freedom.ppf(0.975)) * error
    return Paired(
        count, mean, deviation, mean - half, mean + half, float(max(above, below)), float(min(1.0, 2 * min(beyond))),
        float(stats.ttest_1samp(difference, 0.0).pvalue), margin, float(freedom.ppf(0.95)) * error,
    )  # fmt: skip


def holm(values: Sequence[float]) -> list[float]:
    """p values after Holm's step-down correction for as many tests as there are, in their order."""
    order = np.argsort(values)
    corrected = np.empty(len(values))
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        corrected[index] = largest
    return [float(value) for value in corrected]
