"""The records of a report: they add up, and survive JSON."""

import dataclasses
import math

import pytest

from fpsim.numbers.formats import FORMATS
from fpsim.report.counts import Counts, Error, Histogram, Range
from fpsim.report.records import Limits
from fpsim.report.report import Report
from tests.made_up_reports import broken, quiet


@pytest.mark.parametrize("report", [broken(), quiet()], ids=["broken", "quiet"])
def test_a_report_survives_json(report):
    assert repr(Report.from_json(report.to_json())) == repr(report)  # in which NaN is itself


def test_numbers_that_json_lacks_survive():
    text = broken().to_json()
    assert "NaN" not in text and "Infinity" not in text
    event = Report.from_json(text).events[1]
    assert math.isinf(event.rounded) and event.exact == 260.0 * 260.0


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("{", "no fpsim report"),
        ("[]", "no fpsim report"),
        ('{"fpsim": "Event"}', "no fpsim report"),
        ('{"fpsim": "Report", "version": 2}', "reads version 1"),
        ('{"fpsim": "Report", "version": 1}', "damaged"),
        ('{"fpsim": "Report", "version": 1, "policy": 3}', "damaged: 3 where a str belongs"),
        ('{"fpsim": "Report", "version": 1, "policy": "", "rows": [3]}', "damaged: 3 where a Row belongs"),
        ('{"fpsim": "Report", "version": 1, "policy": "", "speed": 3}', "damaged"),
    ],
)
def test_other_texts_are_refused(text, sentence):
    with pytest.raises(ValueError, match=sentence):
        Report.from_json(text)


def test_counts_add_up_in_every_field():
    numbers = Counts(*range(1, len(dataclasses.fields(Counts)) + 1))
    assert dataclasses.astuple(numbers + numbers) == tuple(2 * n for n in dataclasses.astuple(numbers))


def test_histograms_add_up_whatever_their_exponents():
    low, high, none = Histogram(-3, (1, 2), zeros=4), Histogram(1, (5,), infinite=1, nan=2), Histogram()
    both = Histogram(-3, (1, 2, 0, 0, 5), 4, 1, 2)
    assert low + high == high + low == both
    assert none + high == high == high + none and none + none == none
    assert both.total == 15 and both.share(1) == 5 / 15
    assert both.share(-4) == both.share(2) == none.share(0) == 0


def test_ranges_join_and_an_empty_one_is_left_out():
    assert Range(4.0, 2.0) | Range() == Range(4.0, 2.0) == Range(4.0, 3.0) | Range(3.0, 2.0)
    assert not Range() and Range(1.0, 1.0)


def test_errors_add_up():
    assert (Error(2, 9.0, 100.0, 3.0) + Error(1, 7.0, 300.0, 8.0)) == Error(3, 16.0, 400.0, 8.0)
    assert Error(3, 16.0, 400.0).relative == 0.2
    assert Error(1).relative == 0 and Error(1, 1.0, 0.0).relative == math.inf and math.isnan(Error().relative)


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=str)
def test_limits_are_the_formats(fmt):
    limits = Limits.of(fmt)
    assert limits.largest == fmt.max_finite and limits.smallest_subnormal == fmt.min_subnormal
    assert math.frexp(limits.largest)[1] - 1 == limits.emax and math.ldexp(1.0, limits.emin) == limits.smallest_normal


def test_limits_of_fixed_point_are_its_own():
    from fpsim.numbers.fixed_point import FixedPoint

    number = FixedPoint("q4.4", 8, 4)
    assert Limits.of(number).largest == number.max_finite == 127 / 16
