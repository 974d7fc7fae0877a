"""One model in several arithmetics: the same state, batches and random numbers for each, and a page of all."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fpsim
from fpsim.report.comparison import Comparison
from fpsim.report.layout import curves
from fpsim.report.report import Report
from fpsim.report.runs import Run
from tests.browser import open_browser, requests, resize
from tests.made_up_reports import HOSTILE, broken, quiet


def make_model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 3))


def make_data(steps=4):
    generator = torch.Generator().manual_seed(2)
    return [(torch.randn(5, 6, generator=generator), torch.randint(3, (5,), generator=generator)) for _ in range(steps)]


def make_optimizer(parameters):
    return torch.optim.SGD(parameters, lr=0.5)


def loss(model, x, target):
    outputs = model(x)
    return F.cross_entropy(outputs, target), outputs


def plain_losses():
    """By torch alone."""
    model, losses = make_model(), []
    optimizer = make_optimizer(model.parameters())
    torch.manual_seed(7)
    for x, target in make_data():
        value = F.cross_entropy(model(x), target)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return tuple(losses)


def test_every_arithmetic_starts_from_the_same_state_and_draws_the_same():
    model = make_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    compared = fpsim.compare(model, make_data(), ["fp32/native", "e5m2/fp16", "fp32/native"], loss, make_optimizer, seed=7)
    assert torch.equal(torch.rand(2), expected)  # the generator is as it was
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    first, narrow, again = compared
    assert first.losses == again.losses == plain_losses()
    assert again.agreement == (1.0,) * 4 and first.agreement == () and min(narrow.agreement) < 1
    assert compared.differs(again) is compared.parts(again) is None
    assert compared.differs(narrow) == 0 and narrow.report.total.elements > 0
    assert "e5m2, accumulate=fp16" in narrow.report.policy


def test_without_an_optimizer_nothing_is_trained():
    calls = []

    def only_loss(model, x):
        calls.append(torch.is_grad_enabled())
        return model(x).square().mean()

    batch = torch.ones(2, 6)
    (run,) = fpsim.compare(make_model().eval(), [batch, batch], [{"fmt": "fp16", "granularity": "primitive"}], only_loss)
    assert run.losses[0] == run.losses[1] and run.agreement == () and calls == [False, False]
    assert run.name == "fmt=fp16, granularity=primitive"


@pytest.mark.parametrize("error, runs", [(ValueError("no"), 2), (KeyboardInterrupt(), 1)], ids=["exception", "Ctrl-C"])
def test_what_was_computed_before_an_exception_is_kept(error, runs):
    def failing(model, x, target):
        if torch.equal(x, make_data()[2][0]):
            raise error
        return loss(model, x, target)

    compared = fpsim.compare(make_model(), make_data(), ["fp16", "bf16"], failing)
    assert [len(run.losses) for run in compared] == [2] * runs
    assert compared.runs[0].report.ending.startswith(type(error).__name__)
    assert compared.runs[0].report.verdict.word == "stopped"


def test_arithmetics_are_refused_before_anything_runs():
    def never(*_):
        raise AssertionError

    with pytest.raises(ValueError, match="at least one"):
        fpsim.compare(make_model(), [], [], never)
    with pytest.raises(ValueError, match="unknown format"):
        fpsim.compare(make_model(), make_data(), ["fp16", "fp17x"], never)
    for alone in ("fp16", {"fmt": "fp16"}):
        with pytest.raises(TypeError, match="a list of arithmetics"):
            fpsim.compare(make_model(), make_data(), alone, never)


def with_losses(*series):
    return Comparison(tuple(Run(f"{i}", Report("p", losses=losses)) for i, losses in enumerate(series)))


@pytest.mark.parametrize(
    "losses, differs, parts",
    [
        ((1.0, 2.0, 3.0), None, None),
        ((1.0, 2.05, 4.0), 1, 2),
        ((1.0, 2.0), None, None),
        ((1.0, math.nan, 3.0), 1, 1),
        ((1.0, 2.0, math.inf), 2, 2),
        ((-1.0, 2.0, 3.0), 0, 0),
    ],
)
def test_where_losses_part(losses, differs, parts):
    compared = with_losses((1.0, 2.0, 3.0), losses)
    assert compared.differs(compared.runs[1]) == differs and compared.parts(compared.runs[1]) == parts


def test_equal_losses_that_are_not_finite_do_not_part():
    compared = with_losses((math.inf, math.nan, 0.0), (math.inf, math.nan, 0.0))
    assert compared.differs(compared.runs[1]) is compared.parts(compared.runs[1]) is None


@pytest.mark.parametrize("series", [[[1.0, 2.0, math.nan, 4.0]], [[-1.0, 0.0], [5.0]], [[3.0]], [[1.0] * 1000, [2.0] * 3]])
def test_curves_stay_inside_and_leave_out_what_is_not_finite(series):
    drawn = curves(series)
    for points, losses in zip(drawn.points, series, strict=True):
        pairs = [tuple(map(float, point.split(","))) for point in points.split()]
        assert all(0 <= x <= 100 and 0 <= y <= 100 for x, y in pairs)
        assert len(pairs) == min(500, sum(map(math.isfinite, losses))) or len(losses) > 400


def test_nothing_finite_has_no_curve():
    assert curves([[math.nan], []]) is None


def several():
    report = replace(broken(), losses=tuple(2.0**-i for i in range(50)))
    worse = replace(broken(), losses=tuple(2.0**-i if i < 9 else 1.0 for i in range(50)))
    return Comparison((Run("fp32", report), Run(HOSTILE, worse, (1.0, 0.5), 3.0), Run("none", quiet())))


def test_a_comparison_survives_json():
    assert repr(Comparison.from_json(several().to_json())) == repr(several())
    with pytest.raises(ValueError, match="no fpsim comparison"):
        Comparison.from_json(broken().to_json())


def test_the_page_names_every_run_and_escapes_it():
    text = several().page()
    assert "<b>" not in text and "\x1b" not in text and "step 9" in text and "75.0%" in text
    assert "<script" not in text and "id=" not in several()._repr_html_()
    assert text.count("Breaks at step 5") >= 4  # each report's first screen, and its summary


def test_nothing_compared_is_a_page_all_the_same():
    assert "0 arithmetics" in Comparison(()).page()


@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_asks_for_nothing_and_fits(tmp_path, width):
    path = tmp_path / "comparison.html"
    several().to_html(path)
    driver = open_browser()
    try:
        resize(driver, width)
        driver.get(path.as_uri())
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        assert driver.get_log("browser") == [] and requests(driver) == [path.as_uri()]
    finally:
        driver.quit()
