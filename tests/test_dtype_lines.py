"""The lines of a model that look at dtypes are named where a named format gives them another meaning, and only there."""

import functools
import inspect

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fpsim
from fpsim.report.records import DTYPE_ADVICE
from fpsim.report.report import Report


def helper(x):
    return x.clamp(-1, 1) if x.dtype in (torch.float16, torch.bfloat16) else x  # guard


def decorated(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args)

    return wrapper


class Guarded(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.if_half = nn.Identity() if self.weight.dtype == torch.half else None  # not in the forward pass

    @decorated
    def forward(self, x):
        if torch.is_autocast_enabled("cpu"):  # guard
            x = x.double()
        if x.dtype != torch.bfloat16:  # guard
            x = helper(x)
        return self._normed(x) * float(x.shape[-1])

    def _normed(self, x):
        wide = x.float()  # upcast
        wide = wide.to(torch.float32)  # upcast
        return F.softmax(wide, dim=-1, dtype=torch.float32).to(x.dtype) * self.weight  # upcast

    def never_called(self, x):
        return x.float()


class Plain(nn.Module):
    def forward(self, x):
        return x.to(torch.float64).to(x.dtype) + torch.zeros(2, dtype=torch.float32)


def report_of(model, x, *args, **how):
    sim = fpsim.run(model, *args, **how)
    sim(x)
    return sim.report()


def marked(*objects):
    """(line, meaning) of the lines that end in a comment which is a meaning."""
    for item in objects:
        lines, first = inspect.getsourcelines(item)
        for number, line in enumerate(lines, first):
            if line.rstrip().endswith(("# guard", "# upcast")):
                yield number, line.split()[-1]


def test_every_such_line_of_what_a_forward_pass_calls_is_named_once():
    report = report_of(nn.Sequential(Guarded(), Guarded(), Plain()), torch.ones(1, 2), "fp16")
    found = [(line.place.line, line.meaning) for line in report.dtype_lines]
    assert sorted(found) == sorted(marked(Guarded, helper)) and len(found) == 6
    assert {line.place.file for line in report.dtype_lines} == {__file__}
    text = str(report)
    assert text.count(f"{__file__}:{found[0][0]} ") == 1 and text.count(DTYPE_ADVICE) == 1
    assert Report.from_json(report.to_json()) == report


def test_the_page_names_them():
    pytest.importorskip("jinja2", reason="the page needs Jinja2: the extra `report`")
    report = report_of(Guarded(), torch.ones(1, 2), {"*": "fp32", "weight": "bf16"})
    text = report._repr_html_()
    assert all(f"test_dtype_lines.py:{number}<" in text for number, _ in marked(Guarded, helper))


@pytest.mark.parametrize("how", [{"fmt": "native"}, {"fmt": "fp32"}, {"fmt": "fp32", "accumulate": "native"}], ids=str)
def test_where_dtypes_mean_themselves_none_are_named(how):
    assert report_of(Guarded(), torch.ones(1, 2), **how).dtype_lines == ()


def test_what_has_no_source_is_passed_over():
    namespace = {"nn": nn, "torch": torch}
    exec("class Made(nn.Module):\n    def forward(self, x):\n        return x.float()", namespace)
    report = report_of(nn.Sequential(namespace["Made"](), nn.Linear(2, 2)), torch.ones(1, 2), "fp16")
    assert report.dtype_lines == () and report.total.elements


def test_the_guards_of_t5_are_named():
    transformers = pytest.importorskip("transformers", reason="this is a model or the Trainer of transformers")
    config = transformers.T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    ids = torch.ones(1, 2, dtype=torch.long)
    sim = fpsim.run(transformers.T5EncoderModel(config), "fp16")
    sim(input_ids=ids)
    guards = [line.place for line in sim.report().dtype_lines if line.meaning == "guard"]
    blocks = [place for place in guards if place.function == "T5Block.forward"]
    assert len(blocks) == 3 and {place.text for place in blocks} == {"if hidden_states.dtype == torch.float16:"}
    assert all(place.file.endswith("modeling_t5.py") for place in guards)
