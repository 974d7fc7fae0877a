"""`advise` repairs the planted faults: the code that it prints is executed, and measured against plain torch in float64."""

import copy
import importlib
import math
import sys

import pytest
import torch
from torch import nn

import fpsim
from fpsim.emulation.advising.rewriting import CannotTry, finite_mask, scale_before_product
from fpsim.report.advice import Advice
from fpsim.report.records import Place
from tests.advised_faults import ADVISED
from tests.planted_faults import FAULTS

SGD = {"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1)}
UNREPAIRED = """
sim = fpsim.run(model, fmt=fmt, accumulate=accumulate)
opt = optimizer(sim.parameters())
with sim:
    for batch in data:
        loss = step(sim, *(batch if isinstance(batch, tuple) else (batch,)))
        if opt is not None:
            opt.zero_grad()
            loss.backward()
            opt.step()
"""


def state_of(model):
    return {name: item.detach().double() for name, item in model.state_dict().items() if item.is_floating_point()}


def run_script(code, fault, fmt="fp16"):
    """What the step returned, and the state after a script in the names of `advise`'s arguments."""
    results = []

    def step(*args):
        results.append(fault["step"](*args))
        return results[-1]

    names = {"optimizer": lambda parameters: None, "accumulate": None, "fmt": fmt, **fault, "step": step}
    names |= {"torch": torch, "fpsim": fpsim}
    exec(code, names)
    return [item.detach().double() for item in results], state_of(names["sim"].model)


def widened(value):
    if isinstance(value, tuple):
        return tuple(map(widened, value))
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def in_float64(fault):
    """The same by plain torch, nothing emulated."""
    model, results = copy.deepcopy(fault["model"]).double(), []
    optimizer = fault["optimizer"](model.parameters()) if "optimizer" in fault else None
    for batch in map(widened, fault["data"]):
        results.append(fault["step"](model, *(batch if isinstance(batch, tuple) else (batch,))))
        if optimizer is not None:
            optimizer.zero_grad()
            results[-1].backward()
            optimizer.step()
    return [item.detach() for item in results], state_of(model)


def disagreement(found, fault, fmt="fp16", tolerance=0.05):
    """What is wrong with a run: "" for nothing. Along the way that it should move, a weight may end half a spacing off."""
    start, (exact_results, exact_state) = state_of(fault["model"]), in_float64(fault)
    for ours, exact in zip(found[0], exact_results, strict=True):
        finite, least = exact.isfinite(), fpsim.get_format(fmt).min_subnormal
        if not bool(ours.isfinite().all()):
            return "not finite"
        if (ours - exact)[finite].norm() > tolerance * exact[finite].norm() + least:
            return "results"
    for name, end in exact_state.items():
        moves, spacing = end - start[name], fpsim.ulp(end.float(), fmt).double()
        off = ((found[1][name] - end) * moves).sum().abs()
        if off > tolerance * moves.square().sum() + (moves.abs() * spacing / 2).sum():
            return name
    return ""


def test_every_planted_fault_has_a_recipe():
    assert list(ADVISED) == list(FAULTS)


@pytest.mark.parametrize("name", ADVISED)
def test_the_printed_code_repairs_a_planted_fault(name):
    torch.manual_seed(0)
    fault = ADVISED[name]("fp16")
    advice = fpsim.advise(**fault, fmt="fp16")
    assert disagreement(run_script(UNREPAIRED, fault), fault)
    assert advice.fixes and not advice.agrees and advice.report.fixes == advice.fixes
    for fix in advice.fixes[:2]:
        assert fix.verified and disagreement(run_script(fix.code, fault), fault) == "", fix.code
        assert all(f"   {line}".rstrip() in str(advice) for line in fix.code.splitlines())
    assert str(advice).startswith(advice.report.verdict.sentence)


def test_a_decay_that_is_little_beside_the_step_is_not_passed_over():
    model, x = nn.Linear(2, 2, bias=False), torch.tensor([[0.5, -0.25]])
    nn.init.ones_(model.weight)
    fault = {"model": model, "data": [x] * 4, "step": lambda model, x: model(x).square().sum()}
    fault["optimizer"] = lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, weight_decay=1e-2, foreach=False)
    advice = fpsim.advise(**fault, fmt="bf16")
    assert advice.report.first.kind == "decay-lost" and not advice.agrees
    assert "weights and optimizer in fp32" in {fix.title for fix in advice.fixes}


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(8, 4), nn.Linear(4, 8, bias=False)
        nn.init.normal_(self.embed.weight, std=100.0)
        self.out.weight = self.embed.weight

    def forward(self, x):
        return self.out(self.embed(x))


def test_a_layer_that_shares_its_weight_may_compute_in_another_format():
    torch.manual_seed(0)
    words, step = torch.arange(8), lambda model, x: nn.functional.cross_entropy(model(x), x)
    fault = {"model": Tied(), "data": [words] * 3, "step": step, **SGD}
    advice = fpsim.advise(**fault, fmt="fp16")
    assert advice.report.first.module == "out" and "'out': {'activation': 'fp32'}" in advice.fixes[0].code
    assert disagreement(run_script(advice.fixes[0].code, fault), fault) == ""
    assert not [item.reason for item in advice.attempts if "one tensor" in item.reason]


@pytest.mark.parametrize("granularity", ["kernel", "primitive"])
def test_a_masked_row_is_repaired_whether_the_softmax_is_one_operation_or_its_parts(granularity):
    fault = ADVISED["a row is masked"]("fp16")
    fix = fpsim.advise(**fault, fmt="fp16", granularity=granularity).fixes[0]
    assert fix.title == "a finite mask in Attention.forward"
    assert disagreement(run_script(fix.code, fault), fault) == ""


def test_a_method_without_a_source_is_no_hindrance():
    names = {"nn": nn}
    exec("class Scores(nn.Module):\n    def forward(self, q):\n        return q @ q.mT / 64\n", names)
    advice = fpsim.advise(nn.Sequential(names["Scores"]()), [torch.full((1, 64), 40.0)], lambda model, x: model(x), fmt="fp16")
    (attempt,) = (item for item in advice.attempts if item.title == "the scale before the product")
    assert attempt.reason == "the source of Scores.forward cannot be read" and advice.fixes


def test_layers_without_a_bias_share_nothing():
    model = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(3)))
    for layer, weight in zip(model, (1.0, 300.0, 1e-3), strict=True):
        nn.init.constant_(layer.weight, weight)
    advice = fpsim.advise(model, [torch.full((1, 2), 300.0)], lambda model, x: model(x), fmt="fp16")
    fix = next(fix for fix in advice.fixes if fix.title == "fp32 from 1 on")
    assert advice.report.first.module == "1" and "fmt={'*': 'fp16', '1': 'fp32', '2': 'fp32'}" in fix.code


class Exponential(nn.Module):
    def forward(self, x):
        return x.exp()


def test_nothing_agrees_with_what_float64_makes_infinite():
    """Inputs that are bounded until nothing overflows would agree with no number at all."""
    model = nn.Sequential(nn.Identity(), Exponential())
    fault = {"model": model, "data": [torch.tensor([12.0, 800.0])], "step": lambda model, x: model(x).sum()}
    advice = fpsim.advise(**fault, fmt="fp16")
    assert not advice.exact_is_finite and not advice.fixes and advice.attempts
    assert {item.outcome for item in advice.attempts} <= {"does not help", "not tried"}
    assert any("nothing to agree with" in item.reason for item in advice.attempts)


@pytest.mark.parametrize("fmt", ["fp16", "bf16"])
def test_statistics_that_stand_still_beside_weights_that_move_are_not_passed_over(fmt):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4, bias=False), nn.BatchNorm1d(4, momentum=1e-4), nn.Linear(4, 2))
    data, step = list(torch.randn(16, 8, 2) + 1), lambda model, x: nn.functional.mse_loss(model(x), x)
    fault = {"model": model, "data": data, "step": step, **SGD}
    advice = fpsim.advise(**fault, fmt=fmt)
    assert advice.report.first.kind == "stale-statistic" and not advice.agrees
    assert disagreement(run_script(advice.fixes[0].code, fault), fault, fmt) == ""


@pytest.mark.exhaustive
@pytest.mark.parametrize("fmt", ["bf16", "e4m3"])
@pytest.mark.parametrize("name", ADVISED)
def test_planted_faults_in_other_formats(name, fmt):
    """All are repaired but one: the layer that is made to overflow in bf16 overflows in fp32 as well."""
    torch.manual_seed(0)
    assert bool(fpsim.advise(**ADVISED[name](fmt), fmt=fmt).fixes) is ((name, fmt) != ("a layer overflows", "bf16"))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.query = nn.Linear(8, 8, bias=False)
        nn.init.eye_(self.query.weight)

    def forward(self, x):
        scores = self.query(x) @ x.mT
        return (scores / 64.0).softmax(-1)


def test_the_scale_of_queries_comes_before_the_product():
    x = 100 * torch.eye(8) + torch.arange(8) / 8
    x = torch.cat([x, 200 * torch.ones(1, 8)])
    fault = {"model": nn.Sequential(Attention()), "data": [x], "step": lambda model, x: model(x)}
    advice = fpsim.advise(**fault, fmt="fp16")
    fix = advice.fixes[0]
    assert fix.title == "the scale before the product in Attention.forward"
    assert "self.query(x) / 64.0 @ x.mT" in fix.code and disagreement(run_script(fix.code, fault), fault) == ""
    assert disagreement(run_script(UNREPAIRED, fault), fault) == "not finite"


LIBRARY = """
import math

import torch.nn.functional as F
from torch import nn

def spread(x):
    return math.sqrt(x.shape[-1])

class Scores(nn.Module):
    def forward(self, q):
        return F.softmax(q @ q.mT / spread(q), dim=-1)

def attend(q):
    return F.softmax(q @ q.mT / spread(q), dim=-1)

class Calling(nn.Module):
    def forward(self, q):
        return attend(q)
"""


@pytest.mark.parametrize(("kind", "title"), [("Scores", "Scores.forward"), ("Calling", "attend")])
def test_what_a_library_defines_is_printed_with_what_it_reads_there(tmp_path, monkeypatch, kind, title):
    (tmp_path / "library_of_scores.py").write_text(LIBRARY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "library_of_scores", raising=False)
    library = importlib.import_module("library_of_scores")
    fault = {"data": [40.0 * torch.eye(64)[:2] + 32.0], "step": lambda model, x: model(x)}
    fault["model"], attend = nn.Sequential(getattr(library, kind)()), library.attend
    fix = fpsim.advise(**fault, fmt="fp16").fixes[0]
    assert fix.title == f"the scale before the product in {title}" and library.attend is attend
    assert fix.code.startswith("import torch.nn.functional as F\nfrom library_of_scores import spread\ndef ")
    exact = in_float64(fault)[0]
    for ours, theirs in zip(run_script(fix.code, fault)[0], exact, strict=True):
        assert (ours - theirs).norm() < 0.05 * theirs.norm()


class Sources(nn.Module):
    def divided(self, q, k):
        return (q @ k) / 8

    def named(self, q, k, width):
        scores = torch.bmm(q, k)
        other = q.sum()
        scores *= width
        return scores + other

    def by_method(self, q, k):
        scores = q.matmul(k).mul(0.125)
        return scores

    def on_the_left(self, q, k):
        s = q @ k
        return 0.125 * s

    def unscaled(self, q, k):
        return q @ k

    def used_before(self, q, k):
        s = q @ k
        return s.sum() + s / 8

    def computed_after(self, q, k):
        s = q @ k
        scale = q.shape[-1] ** -0.5
        return s * scale

    def around(self, q, k):
        return super().forward(q @ k) / 8

    def no_product(self, q, k):
        return q * k

    def masked(self, x):
        return x.masked_fill(x > 0, float("-inf")) + torch.where(x > 1, -math.inf, x)


@pytest.mark.parametrize(
    ("method", "line", "expected"),
    [
        ("divided", 1, "return q / 8 @ k"),
        ("named", 1, "scores = torch.bmm(q * width, k)"),
        ("by_method", 1, "scores = (q * 0.125).matmul(k)"),
        ("on_the_left", 1, "s = q * 0.125 @ k"),
        ("unscaled", 1, CannotTry("the source does not scale")),
        ("used_before", 1, CannotTry("the source does not scale")),
        ("computed_after", 1, CannotTry("computed after it")),
        ("around", 1, CannotTry("super()")),
        ("no_product", 1, CannotTry("no product of two factors")),
    ],
)
def test_a_scale_moves_before_its_product_or_says_why_not(method, line, expected):
    function = getattr(Sources, method)
    place = Place(__file__, function.__code__.co_firstlineno + line, method)
    if isinstance(expected, CannotTry):
        with pytest.raises(CannotTry, match=str(expected).replace("(", r"\(").replace(")", r"\)")):
            scale_before_product(Sources(), "", place)
        return
    source = scale_before_product(Sources(), "", place).source
    assert expected in source
    namespace, q, k = {"torch": torch}, torch.randn(2, 3, 4).double(), torch.randn(2, 4, 5).double()
    exec(source, namespace)
    more = (0.5,) * (method == "named")
    assert torch.equal(namespace[method](Sources(), q, k, *more), getattr(Sources(), method)(q, k, *more))


def test_every_infinity_of_a_mask_becomes_finite():
    place = Place(__file__, Sources.masked.__code__.co_firstlineno + 1, "masked")
    source = finite_mask(Sources(), "", place).source
    assert source.count("torch.finfo(torch.float32).min") == 2 and "inf" not in source.replace("finfo", "")
    with pytest.raises(CannotTry, match="in no method of Linear"):
        finite_mask(nn.Linear(1, 1), "", place)


def test_changes_are_tried_around_the_first_event_and_fixes_run_all_steps():
    """The second layer overflows at step 6, after which nothing is finite; the momentum that led there is kept."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    data = [torch.full((2, 4), 60.0 if number < 6 else 6e4) * torch.rand(2, 4) for number in range(8)]
    fault = {
        "model": model,
        "data": data,
        "step": lambda model, x: (model(x).square() * 1e-4).mean(),
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=1e-5, momentum=0.5),
    }
    advice = fpsim.advise(**fault, fmt="fp16")
    assert advice.report.first.step == 6 and advice.window == (5, 3) and advice.steps == 8
    assert "in steps 5 to 7; nothing breaks in all 8" in advice.fixes[0].evidence
    for fix in advice.fixes:
        results, state = run_script(fix.code, fault)
        assert len(results) == 8 and all(bool(item.isfinite().all()) for item in (*results, *state.values()))


def healthy():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Tanh(), nn.Linear(8, 2))
    data = [{"x": torch.randn(8, 4)} for _ in range(3)]
    return {"model": model, "data": data, "step": lambda model, batch: (model(batch["x"]).square().mean(), batch), **SGD}


def test_what_agrees_needs_no_change():
    """Masks of dropout are those of the shadow; the step may return more than the loss."""
    fault = healthy()
    before, generator = copy.deepcopy(state_of(fault["model"])), torch.get_rng_state()
    advice = fpsim.advise(**fault, fmt="fp16")
    assert advice.agrees and advice.attempts == () and 0 < advice.deviation.worst < advice.tolerance
    assert "nothing to change" in advice.verdict and advice.report.verdict.word == "survives"
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(before[name], item) for name, item in state_of(fault["model"]).items())


def test_the_same_arguments_give_the_same_advice(tmp_path):
    model = nn.Linear(2, 1)
    first, again = (fpsim.advise(**{**ADVISED["a loss underflows"]("fp16"), "model": model}, fmt="fp16") for _ in range(2))
    assert repr(first) == repr(again) == repr(Advice.from_json(first.to_json()))
    first.save(tmp_path / "advice.json")
    assert (tmp_path / "advice.json").read_text() == first.to_json()
    pytest.importorskip("jinja2", reason="the page needs Jinja2: the extra `report`")
    first.save(tmp_path / "advice.html")
    assert first.fixes[0].title in (tmp_path / "advice.html").read_text()


def test_sensitivity_is_the_error_of_one_module_alone():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(16, 4)
    exact = copy.deepcopy(model).double()(x.double())
    fault = {"model": model, "data": [x], "step": lambda model, x: model(x)}
    rows = fpsim.advise(**fault, fmt="e4m3", sensitivity=True).sensitivity
    assert [(row.module, row.kind) for row in rows] == [("0", "Linear"), ("1", "ReLU"), ("2", "Linear")]
    for row in rows:
        for found, fmt in ((row.narrow, {"*": "fp32", row.module: "e4m3"}), (row.wide, {"*": "e4m3", row.module: "fp32"})):
            error = (fpsim.run(model, fmt)(x).double() - exact).norm() / exact.norm()
            assert found == pytest.approx(error.item(), rel=1e-14)  # norms of float64, added in another order
    (row,) = fpsim.advise(**fault, fmt="e4m3", sensitivity="2").sensitivity
    assert row == rows[2] and "narrow alone" in str(fpsim.advise(**fault, fmt="e4m3", sensitivity=["2"]))


def test_under_native_the_changes_are_those_of_the_script():
    model = nn.Linear(2, 1, bias=False).half()
    nn.init.ones_(model.weight)
    data = [torch.full((1, 2), 0.25).half()] * 16
    fault = {"model": model, "data": data, "step": lambda model, x: model(x).float().sum()}
    fault["optimizer"] = lambda parameters: torch.optim.SGD(parameters, lr=2.0**-10)
    advice = fpsim.advise(**fault, fmt="native")
    assert {"a master copy of the weights", "compensated updates (Kahan)"} <= {fix.title for fix in advice.fixes}
    refused = {item.title: item.reason for item in advice.attempts if item.outcome == "not tried"}
    assert "each dtype means itself" in refused["weights and optimizer in fp32"]
    for fix in advice.fixes:
        assert disagreement(run_script(fix.code, fault), fault) == ""


def test_what_cannot_be_tried_is_listed_with_the_reason():
    fault = ADVISED["a weight stops"]("e4m3")
    advice = fpsim.advise(**fault, fmt={"*": "e4m3", "1": "bf16"})
    refused = {item.title: item.reason for item in advice.attempts if item.outcome == "not tried"}
    assert "rounds updates itself" in refused["compensated updates"] and "no float32 to keep" in refused["a master copy"]
    assert "given as a mapping" in refused["another format for everything"]
    assert all(f"{title}: {reason}" in str(advice) for title, reason in refused.items())
    assert "fmt={**{'*': 'e4m3', '1': 'bf16'}, 'weight': 'fp32', 'optimizer': 'fp32'}" in advice.fixes[0].code


def linear(**changes):
    return {"model": nn.Linear(4, 2), "data": [torch.ones(3, 4)], "step": lambda model, x: model(x).sum(), **SGD, **changes}


OTHER = nn.Linear(4, 2)


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        (linear(model=nn.ReLU()), ValueError, "no parameters to train; leave out optimizer="),
        (linear(step=lambda model, x: OTHER(x).sum()), ValueError, "never called the model"),
        (linear(step=lambda model, x: x * 2, optimizer=None), ValueError, "never called the model"),
        (linear(step=lambda model, x: x.sum()), ValueError, "does not depend on a parameter"),
        (linear(step=lambda model, x: None), TypeError, "step returned NoneType; where there is an optimizer"),
        (linear(step=lambda model, x: model(x)), TypeError, r"a tensor of shape \(3, 2\)"),
        (linear(data=[]), ValueError, "no batches"),
        (linear(data=[torch.ones(3, 4), (torch.ones(3, 4),)]), ValueError, "make all of them tuples"),
        (linear(sensitivity=["heads"], model=nn.Sequential(nn.Linear(4, 2))), ValueError, "no module 'heads'"),
        (linear(sensitivity=True, fmt="native"), ValueError, "native"),
        (linear(fmt="fp17"), ValueError, "unknown format"),
        (linear(fmt="fp32", accumulate="native"), ValueError, "torch itself"),
        (linear(model="model"), TypeError, "torch.nn.Module"),
        (linear(model=fpsim.run(nn.Linear(4, 2), "fp16")), TypeError, "already"),
    ],
)
def test_bad_input_is_told_in_a_sentence(given, error, says):
    with pytest.raises(error, match=says):
        fpsim.advise(**given)


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x, **masks):
        return self.attention(x, x, x, **masks)[0]


ALL_MASKED = torch.tensor([[False] * 4, [True] * 4])
MASKS = {
    "of booleans": ("key_padding_mask", ALL_MASKED),
    "of numbers": ("key_padding_mask", torch.zeros(2, 4).masked_fill(ALL_MASKED, -torch.inf)),
    "of attention": ("attn_mask", ALL_MASKED.repeat(2, 1)),
}


@pytest.mark.parametrize("case", MASKS)
def test_a_row_that_torchs_attention_masks_is_made_finite(case):
    """The infinities are torch's own, in no method that could be written anew."""
    torch.manual_seed(0)
    name, mask = MASKS[case]
    fault = {"model": Attending(), "data": [(torch.randn(2, 4, 8), mask)]}
    fault["step"] = lambda model, x, mask: model(x, **{name: mask})
    (fix,) = fpsim.advise(**fault, fmt="fp16").fixes
    assert fix.title == "finite masks for attention" and disagreement(run_script(fix.code, fault), fault) == ""


def test_where_nothing_else_helps_the_format_is_given_up():
    """Statistics that no format below fp32 moves, behind a layer whose errors e4m3 makes too large."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2, momentum=1e-4))
    model[1].running_mean.fill_(4.0)
    data = [torch.randn(4, 1, 3, 3)] * 2
    advice = fpsim.advise(model, data, lambda model, x: model(x), fmt="e4m3")
    assert [fix.title for fix in advice.fixes] == ["fp32 for everything"] and advice.fixes[0].verified
