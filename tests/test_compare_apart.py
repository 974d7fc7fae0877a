"""Arithmetics in processes of their own: the same results, kept when they are finished, and Ctrl-C for all."""

import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch

import fpsim
from fpsim.emulation import apart
from fpsim.emulation.apart import Processes, Task, run_all
from fpsim.emulation.compared_apart import _content as content
from fpsim.report.report import Report
from tests.made_up_reports import quiet
from tests.test_comparison import loss, make_data, make_model, make_optimizer

POLICIES = ["fp32/native", {"fmt": "fp16", "accumulate": "fp16", "rounding": "stochastic", "seed": 3}]


def without_seconds(compared):
    return [replace(run, seconds=0.0) for run in compared]


def test_processes_give_the_same_and_what_is_finished_is_not_made_again(tmp_path, monkeypatch, quick_children):
    def compare(**how):
        return without_seconds(fpsim.compare(make_model(), make_data(), POLICIES, loss, make_optimizer, seed=7, **how))

    here = compare()
    assert compare(processes=2, folder=tmp_path) == here
    assert here[1].agreement and here[0].losses != here[1].losses
    started = []
    monkeypatch.setattr(Processes, "run", lambda _, task: started.append(task.name) or task.output.write_text("it is ill"))
    assert compare(folder=tmp_path) == here and not started
    with pytest.raises(RuntimeError, match=r"fp32/native left no report.*it is ill"):
        fpsim.compare(make_model(), make_data(3), POLICIES[:1], loss, make_optimizer, seed=7, folder=tmp_path)
    assert started == ["fp32/native"]


class Unknown(torch.nn.Module):
    def __reduce__(self):
        raise ValueError("no model for others")


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"loss": lambda model, x, target: model(x).sum()}, "the loss cannot be .*processes=1.*fpsim compare"),
        ({"model": Unknown()}, "the model cannot be .*no model for others.*processes=1"),
        ({"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=1.0)}, "the optimizer cannot be"),
    ],
)
def test_what_cannot_be_handed_over_is_named(changed, words, monkeypatch):
    monkeypatch.setattr(Processes, "run", None)
    monkeypatch.setattr(Unknown, "__deepcopy__", lambda self, memo: torch.nn.Identity(), raising=False)
    given = {"model": make_model(), "data": make_data(), "policies": ["bf16"], "loss": loss, "optimizer": make_optimizer}
    with pytest.raises(TypeError, match=words):
        fpsim.compare(**{**given, **changed}, processes=2)
    with pytest.raises(ValueError, match="at least one process"):
        fpsim.compare(**given, processes=0)


WAITING = """
import sys, time
from pathlib import Path
place, text = map(Path, sys.argv[1:])
try:
    place.with_suffix(".waits").touch()
    time.sleep(60)
except KeyboardInterrupt:
    place.write_text(text.read_text())
"""


@pytest.mark.parametrize(("number", "ending"), [(signal.SIGINT, "KeyboardInterrupt"), (signal.SIGTERM, "Terminated: SIGTERM")])
def test_ctrl_c_reaches_the_processes_and_keeps_what_is_finished(number, ending, tmp_path):
    """One that is finished, one that waits and leaves what it did, and one that is not begun."""
    done, ended = tmp_path / "done.txt", tmp_path / "ended.txt"
    done.write_text(quiet().to_json())
    ended.write_text(replace(quiet(), ending=ending).to_json())
    copy = "import shutil, sys; shutil.copy(*sys.argv[:0:-1])"
    tasks = [
        Task(name, tmp_path / f"{name}.json", (sys.executable, "-c", code, str(tmp_path / f"{name}.json"), str(text)))
        for name, code, text in (("first", copy, done), ("second", WAITING, ended), ("third", copy, done))
    ]

    def press():
        while not (tmp_path / "second.waits").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=press).start()
    (first, second, third), interrupted = run_all(tasks, 1)
    assert interrupted and third is None
    assert not first.report.ending and second.report.ending == ending and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with pytest.MonkeyPatch.context() as patch:
        made = []
        patch.setattr(Processes, "run", lambda _, task: made.append(task.name))
        assert [run and run.name for run in run_all(tasks, 2)[0]] == ["first", None, None]
        assert sorted(made) == ["second", "third"]


BEGUN = "Path('begun.part').write_text(str(os.getpid())); os.rename('begun.part', 'begun'); time.sleep(60)"
SCRIPT = f"import os, time; from pathlib import Path; {BEGUN}"
CALL = f"""
import os, time, torch, fpsim
from pathlib import Path
def loss(model, x):
    {BEGUN}
if __name__ == "__main__":
    fpsim.compare(torch.nn.Linear(1, 1), [torch.ones(1, 1)], ["fp16"], loss, processes=2)
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="no os.pidfd_open, to wait for who is nobody's child")
@pytest.mark.parametrize(
    ("text", "words"), [(SCRIPT, "-m fpsim.cli compare {} --fmt fp16 --folder ."), (CALL, "{}")]
)
def test_processes_end_with_the_one_that_started_them(text, words, tmp_path, quick_children):
    """However that ends: here it is killed, and can do nothing more itself. What `fpsim run` does is kept."""
    script = tmp_path / "script.py"
    script.write_text(text)
    parent = subprocess.Popen([sys.executable, *words.format(script).split()], cwd=tmp_path)
    while not (tmp_path / "begun").exists() and parent.poll() is None:
        time.sleep(0.01)
    child = os.pidfd_open(int((tmp_path / "begun").read_text()))
    parent.kill()
    parent.wait()
    assert select.select([child], [], [], 10)[0]
    endings = [Report.from_json(path.read_text()).ending for path in tmp_path.glob("fp16*.json")]
    assert endings == ([f"Terminated: SIGTERM ({script}:1)"] if "compare" in words else [])


def test_an_interrupted_team_starts_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(apart.subprocess, "Popen", None)
    processes = Processes(1)
    processes.interrupt()
    processes.run(Task("late", tmp_path / "late.json", ("nothing",)))


def test_a_model_is_known_again_by_its_numbers():
    """Not by addresses, which are others in every process."""
    model, other = make_model(), make_model()
    assert content(model) == content(other) and pickle.dumps(model) != pickle.dumps(other)
    other[0].weight.data[0, 0] += 1
    assert content(model) != content(other)
