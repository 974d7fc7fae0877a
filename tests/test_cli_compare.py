"""`fpsim compare`: a script under several arithmetics, each as `fpsim run` runs it, and none twice."""

import pytest
import torch
from click.testing import CliRunner

from fpsim.cli import main
from fpsim.emulation.apart import Processes
from fpsim.report.comparison import Comparison

SCRIPT = """
import sys, torch
torch.manual_seed(0)
w = torch.nn.Parameter(torch.rand(3))
optimizer = torch.optim.SGD([w], lr=0.1)
for step in range(3):
    optimizer.zero_grad()
    loss = (w * float(sys.argv[1])).square().mean()
    loss.backward()
    optimizer.step()
torch.autograd.backward([w.sum(), w.max()])  # from two numbers: no loss
(w * 2).backward(torch.ones(3))
print("done")
"""


@pytest.fixture
def runs(monkeypatch):
    """The command lines of the processes that would have been started, each run here instead."""
    seen = []

    def here(_, task):
        seen.append(task.command)
        task.output.write_bytes(CliRunner().invoke(main, task.command[3:]).stdout.encode())

    monkeypatch.setattr(Processes, "run", here)
    return seen


def invoke(tmp_path, *words, script=SCRIPT):
    path = tmp_path / "script.py"
    path.write_text(script)
    result = CliRunner().invoke(main, ("compare", str(path), *map(str, words)))
    return result.exit_code, result.stdout, result.stderr


def plain_losses(factor):
    torch.manual_seed(0)
    w, losses = torch.nn.Parameter(torch.rand(3)), []
    optimizer = torch.optim.SGD([w], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        loss = (w * factor).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return tuple(losses)


def test_a_script_runs_once_under_each_arithmetic(tmp_path, runs):
    words = (
        "--fmt",
        "fp32/native",
        "--fmt",
        "fp16/fp16",
        "--folder",
        tmp_path / "kept",
        "--report",
        tmp_path / "all.json",
        "1.5",
    )
    backward = torch.autograd.backward
    code, output, _ = invoke(tmp_path, *words)
    assert code == 0 and len(runs) == 2 and torch.autograd.backward is backward
    compared = Comparison.from_json((tmp_path / "all.json").read_text())
    exact, half = compared
    assert exact.losses == plain_losses(1.5) and len(half.losses) == 3 and compared.differs(half) == 0
    assert half.report.total.updates == 9 and "fmt=fp16, accumulate=fp16" in half.report.policy
    assert output.splitlines()[0].startswith("fp32/native: loss") and str(tmp_path / "all.json") in output
    assert {path.read_text() for path in (tmp_path / "kept").glob("*.out")} == {"done\n"}
    again = Comparison.from_json((tmp_path / "all.json").read_text())
    assert invoke(tmp_path, *words)[0] == 0 and len(runs) == 2 and repr(again) == repr(compared)
    invoke(tmp_path, *words[:-1], "2")  # other arguments: other runs
    assert len(runs) == 4


def test_an_interrupted_run_is_made_again(tmp_path, runs):
    script = SCRIPT.replace('print("done")', "raise KeyboardInterrupt")
    words = ("--fmt", "bf16", "--folder", tmp_path / "kept", "--report", tmp_path / "all.html", "1")
    for made in (1, 2):
        code, output, _ = invoke(tmp_path, *words, script=script)
        assert code == 0 and "KeyboardInterrupt" in output and len(runs) == made
    assert "KeyboardInterrupt" in (tmp_path / "all.html").read_text()


def test_ctrl_c_writes_what_is_finished(tmp_path, runs, monkeypatch):
    here = Processes.run

    def interrupted(processes, task):
        if task.name == "bf16":
            raise KeyboardInterrupt
        here(processes, task)

    monkeypatch.setattr(Processes, "run", interrupted)
    words = ("--fmt", "fp16", "--fmt", "bf16", "--fmt", "fp32", "--report", tmp_path / "all.json", "1")
    code, output, _ = invoke(tmp_path, *words)
    compared = Comparison.from_json((tmp_path / "all.json").read_text())
    assert code == 130 and compared.runs[0].name == "fp16" and "bf16" not in output
    assert invoke(tmp_path, "--fmt", "bf16", "1")[0] == 130


@pytest.mark.parametrize(
    "words, sentence",
    [
        ((), "--fmt"),
        (("--fmt", "fp17x"), "unknown format"),
        (("--fmt", "fp16/zigzag"), "zigzag"),
        (("--fmt", "fp64"), "float32 tensors cannot hold"),
        (("--fmt", "fp16", "--report", "out.txt"), ".html or as .json"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_runs(tmp_path, runs, words, sentence):
    code, _, error = invoke(tmp_path, *words)
    assert code == 2 and sentence in error and not runs


def test_a_script_that_is_not_there(tmp_path):
    result = CliRunner().invoke(main, ("compare", str(tmp_path / "none.py"), "--fmt", "fp16"))
    assert result.exit_code == 2 and "there is no script" in result.stderr
