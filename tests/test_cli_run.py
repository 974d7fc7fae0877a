"""`fpsim run`: names, updates, threads, and scripts in which nothing is emulated."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import fpsim
from fpsim.cli import main
from fpsim.emulation.dispatch.context import Emulation
from fpsim.emulation.machine.policy import make_policy
from fpsim.report.report import Report
from tests import quick_python

ROOT = Path(__file__).parent.parent


def run(tmp_path, script, *words):
    path = tmp_path / "script.py"
    path.write_text(script)
    result = CliRunner().invoke(main, ("run", str(path), *words))
    return result.exit_code, result.stdout, result.stderr


NOTHING = {
    "no torch": ("print(1)", ("--fmt", "fp16"), "nothing in float32"),
    "integers": ("import torch; torch.arange(3) + 1", ("--fmt", "fp16"), "nothing in float32"),
    "float64": ("import torch; torch.ones(3, dtype=torch.float64) * 2", ("--fmt", "bf16"), "nothing in float32"),
    "fp32 under native": ("import torch; torch.nn.Linear(3, 3)(torch.ones(3))", ("--fmt", "native"), "float16 or bfloat16"),
    "autocast elsewhere": (
        "import torch\nwith torch.autocast('cuda'): torch.nn.Linear(3, 3)(torch.ones(3)).sum().backward()",
        ("--fmt", "native"),
        "float16 or bfloat16",
    ),
    "torch itself": ("import torch; torch.ones(3) / 3", ("--fmt", "fp32", "--accumulate", "native"), "is torch itself"),
    "another thread without torch": ("import threading; threading.Thread(target=print).start()", ("--fmt", "fp16"), "nothing"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", NOTHING)
def test_a_script_in_which_nothing_is_emulated_is_told_so_in_one_line(kind, tmp_path):
    script, words, reason = NOTHING[kind]
    for ending, expected in (("", 0), ("\nimport sys; sys.exit(3)", 3)):
        code, _, error = run(tmp_path, script + ending, *words)
        last = error.splitlines()[-1]
        assert code == expected
        assert last.startswith("fpsim run: nothing was emulated (fmt=") and reason in last
        assert error.count("nothing was emulated") == 1 and "elements" not in error


@pytest.mark.parametrize(("fmt", "kind"), [("fp16", "float"), ("int8", "float"), ("native", "half")])
def test_a_script_in_which_something_is_emulated_is_not(fmt, kind, tmp_path):
    code, _, error = run(tmp_path, f"import torch; torch.ones(3).{kind}() * 3", "--fmt", fmt)
    assert code == 0 and "nothing was emulated" not in error and "mul.Tensor" in error


THREADS = """
import _thread, atexit, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
import torch

def third(name):
    print(f"{name} {(torch.tensor([1.0]) / 3).item()}\\n", end="", flush=True)

class Own(threading.Thread):
    def run(self):
        third("subclass")

def nested():
    thread = threading.Thread(target=third, args=("nested",))
    thread.start()
    thread.join()

for thread in (threading.Thread(target=third, args=("thread",)), Own(), threading.Timer(0, third, ("timer",)),
               threading.Thread(target=nested), threading.Thread(target=third, args=("daemon",), daemon=True)):
    thread.start()
    thread.join()
with ThreadPoolExecutor(2) as pool:
    list(pool.map(third, ["pool", "pool"]))
with ThreadPool(2) as pool:
    pool.map(third, ["ThreadPool"])
done = threading.Event()
_thread.start_new_thread(lambda: (third("raw"), done.set()), ())
done.wait()
third("main")
"""
LATE = """
kept = ThreadPoolExecutor(1)
def late(name):
    time.sleep(0.3)
    third(name)
threading.Thread(target=late, args=("late",)).start()
kept.submit(late, "kept pool")
atexit.register(third, "atexit")
sys.exit(5)
"""
THIRD = torch.tensor(1 / 3).half().item()


def test_threads_of_a_script_are_emulated_and_counted(tmp_path):
    code, output, error = run(tmp_path, THREADS, "--fmt", "fp16")
    lines = dict(line.split() for line in output.splitlines())
    assert code == 0 and len(lines) == 9 and set(lines.values()) == {str(THIRD)}
    assert next(line for line in error.splitlines() if "div.Tensor" in line).split()[3] == "20"  # constants, quotients


def test_what_runs_after_a_scripts_last_line_is_emulated_and_counted(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(THREADS + LATE)
    command = [quick_python.executable(), "-m", "fpsim.cli", "run", str(path), "--fmt", "fp16"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = [line.rsplit(" ", 1) for line in done.stdout.splitlines()]
    assert done.returncode == 5, done.stderr
    assert [name for name, _ in lines][-1] == "atexit" and {"late", "kept pool"} <= {name for name, _ in lines}
    assert {number for _, number in lines} == {str(THIRD)}
    assert next(line for line in done.stderr.splitlines() if "div.Tensor" in line).split()[3] == "26"


WORKERS = """
import threading
import torch

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 2
    def __getitem__(self, index):
        found = []
        thread = threading.Thread(target=lambda: found.append(torch.tensor(1.0) / 3))
        thread.start()
        thread.join()
        return found[0]

for batch in torch.utils.data.DataLoader(Data(), num_workers=1):
    print(batch.numpy()[0], (batch + 0).item())
"""


def test_workers_of_a_data_loader_read_without_emulation(tmp_path):
    code, output, _ = run(tmp_path, WORKERS, "--fmt", "fp16")
    assert code == 0 and output.splitlines() == [f"{np.float32(1 / 3)!s} {THIRD}"] * 2


def test_an_error_in_a_thread_is_that_threads(tmp_path):
    script = "import threading, torch\nx = torch.eye(3)\n"
    script += "thread = threading.Thread(target=lambda: torch.complex(x, x).var())\n"
    code, output, _ = run(tmp_path, script + "thread.start(); thread.join(); print('on')", "--fmt", "fp16")
    assert (code, output) == (0, "on\n")


def test_threads_are_as_they_were_afterwards(tmp_path):
    import _thread
    import threading

    before = threading.Thread.start, _thread.start_new_thread, _thread.start_new
    run(tmp_path, "import torch; torch.ones(1) + 1", "--fmt", "fp16")
    assert (threading.Thread.start, _thread.start_new_thread, _thread.start_new) == before


TRAINING = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x

def train(net, optimizer, x):
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.mse_loss(net(x), torch.zeros_like(x)).backward()
        optimizer.step()

torch.manual_seed(0)
x = torch.randn(5, 4)
"""


def test_a_script_counts_the_updates_that_the_api_counts(tmp_path):
    training = "net = Net(); train(net, torch.optim.SGD(net.parameters(), lr=1e-3), x)"
    _, _, error = run(tmp_path, TRAINING + training, "--fmt", "bf16")
    scope = {}
    exec(TRAINING, scope)
    net = scope["Net"]()
    sim = fpsim.run(net, "bf16")
    with sim:
        scope["train"](sim, torch.optim.SGD(sim.parameters(), lr=1e-3), scope["x"])
    total = sim.report().total
    assert total.updates == 3 * 40 and total.lost > 0
    assert error.splitlines()[-1].split()[-2:] == [str(total.updates), str(total.lost)]


FAILING = "net = Net(); train(net, torch.optim.SGD(net.parameters(), lr=0.1), x)\nimport os; os.chdir('/')\n"


@pytest.mark.parametrize(
    "last, code, ending",
    [
        ("", 0, ""),
        ("raise KeyError('lost')", 1, "KeyError: 'lost'"),
        ("raise KeyboardInterrupt", 130, "KeyboardInterrupt"),
        ("raise SystemExit(3)", 3, ""),
        ("torch.complex(torch.eye(3), torch.eye(3)).var()", 1, "UnsupportedOp"),
    ],
)
def test_a_script_leaves_its_report_however_it_ends(tmp_path, monkeypatch, last, code, ending):
    monkeypatch.chdir(tmp_path)  # which the script leaves
    path = tmp_path / "report.json"
    found, _, error = run(tmp_path, TRAINING + FAILING + last, "--fmt", "fp16", "--report", "report.json")
    report = Report.from_json(path.read_text())
    assert found == code and f"the report is in {path}" in error
    assert report.ending.startswith(ending) and bool(report.ending) == bool(ending)
    assert not ending or report.ending.endswith(f"{os.sep}script.py:24)")
    assert report.total.updates == 3 * 40


def test_a_script_that_is_told_to_end_leaves_its_report_and_ends_by_the_signal(tmp_path):
    script, path = tmp_path / "script.py", tmp_path / "report.json"
    script.write_text(TRAINING + FAILING + "os.kill(os.getpid(), 15)\nprint('not reached')")
    words = ["-m", "fpsim.cli", "run", str(script), "--fmt", "fp16", "--report", str(path)]
    done = subprocess.run([quick_python.executable(), *words], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-15, "")
    report = Report.from_json(path.read_text())
    assert report.ending.startswith("Terminated: SIGTERM") and report.total.updates == 3 * 40


def test_a_report_is_a_page_where_its_name_says_so(tmp_path):
    run(tmp_path, TRAINING + "Net()(x)", "--fmt", "fp16", "--report", str(tmp_path / "report.html"))
    assert "Net.layers.1" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("name, sentence", [("r.txt", ".html or as .json"), ("no/r.html", "cannot be written"), ("", "cannot")])
def test_a_report_that_cannot_be_written_is_refused_before_the_script(tmp_path, name, sentence):
    code, output, error = run(tmp_path, "print('started')", "--fmt", "fp16", "--report", str(tmp_path / name))
    assert code == 2 and output == "" and "--report" in error and sentence in error


def test_a_script_counts_what_it_updates_by_hand(tmp_path):
    script = """
w = torch.ones(6, requires_grad=True)
for how in range(2):
    (w * 3).sum().backward()
    if how:
        w.data -= 1e-6 * w.grad
    else:
        with torch.no_grad():
            w -= 1e-6 * w.grad
    w.grad = None
"""
    _, _, error = run(tmp_path, TRAINING + script, "--fmt", "fp16")
    assert error.splitlines()[-1].split()[-2:] == ["12", "12"]


def modules_of(error):
    return {line.split()[0] for line in error.splitlines() if line and line.split()[0] not in ("module", "total", "-")}


def test_layers_have_names_of_their_own(tmp_path):
    script = "first, second = Net(), Net()\nnn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))(second(first(x))).sum().backward()"
    _, _, error = run(tmp_path, TRAINING + script, "--fmt", "fp16")
    layers = {f"{name}.layers.{i}" for name in ("Net", "Net#2") for i in range(2)} | {"Sequential.0", "Sequential.1"}
    assert {name for name in modules_of(error) if "." in name} == layers


def paths(function):
    emulation = Emulation(make_policy("fp16"))
    with emulation:
        function()
    return {module for module, _, _ in emulation.report() if module}


def test_names_of_modules_that_are_no_ones():
    """Kept in a plain list, put in later, called first by themselves, made anew for each call."""

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.own, self.hidden = nn.Linear(2, 2), [nn.Linear(2, 2), nn.Linear(2, 2)]

        def forward(self, x):
            for layer in (self.own, *self.hidden, *getattr(self, "later", ())):
                x = nn.Tanh()(layer(x))
            return x

    x = torch.ones(1, 2)
    odd = Odd()

    def calls():
        odd(x)
        odd.later = nn.ModuleList([nn.Linear(2, 2)])
        for _ in range(3):
            odd(x)

    assert paths(calls) == {"Odd.own", "Odd.Linear", "Odd.Linear#2", "Odd.later.0", "Odd.Tanh"}
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert paths(lambda: (net[1](x), net(x))) == {"Linear", "Sequential.0", "Sequential.Linear"}
    assert len(paths(lambda: [nn.Linear(2, 2)(x) for _ in range(150)])) == 100
    assert paths(lambda: [nn.MSELoss()(x, x + 1) for _ in range(5)]) == {"MSELoss"}


def test_a_model_beside_a_simulation_has_names_below_its_class():
    sim, critic = fpsim.run(nn.Sequential(nn.Linear(2, 2)), "fp16"), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with sim:
        critic(sim(torch.ones(1, 2)))
    assert set(sim.report().by_module()) - {""} == {"0", "Sequential.0", "Sequential.1"}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package in the working folder whose modules say how they were started."""
    folder = tmp_path / "package_of_a_test"
    folder.mkdir()
    said = "import sys\nfrom . import helper\n"
    said += "print(sys.argv == [__file__, '--steps', '3'], __name__, __package__, sys.path[0])\n"
    for name, text in {
        "__init__": "",
        "helper": "import torch\nvalue = (torch.tensor([0.1]) + 0).item()\n",
        "train": f"{said}print(helper.value)\n",
        "__main__": f"{said}raise ValueError('at the end')\n",
    }.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    yield folder.name
    for name in [name for name in sys.modules if name.partition(".")[0] == folder.name]:
        del sys.modules[name]


@pytest.mark.parametrize(
    "words", [("-m", "{}.train", "--fmt", "fp16"), ("--fmt", "fp16", "-m{}.train"), ("-m", "{}", "--fmt=fp16")]
)
def test_a_module_runs_as_python_runs_it(package, words, tmp_path):
    words = [word.format(package) for word in words]
    result = CliRunner().invoke(main, ("run", *words, "--report", "out.json", "--steps", "3"))
    assert result.stdout.splitlines()[0] == f"True __main__ {package} {tmp_path}"
    assert "add.Tensor" in result.stderr
    if package in words:
        assert result.exit_code == 1 and "__main__.py:4)" in Report.from_json(Path("out.json").read_text()).ending
    else:
        assert result.exit_code == 0 and result.stdout.splitlines()[1] == "0.0999755859375"


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(("words", "code", "sentence"), [
    (("-m", "no_such_module", "--fmt", "fp16"), 2, "Error: there is no module 'no_such_module'"),
    (("-m", "package_of_a_test.nothing", "--fmt", "fp16"), 1, "nothing was emulated"),
    (("--fmt", "fp16", "-m"), 2, "Missing argument"),
])  # fmt: skip
def test_a_module_that_is_not_there(words, code, sentence):
    result = CliRunner().invoke(main, ("run", *words))
    assert result.exit_code == code and sentence in result.stderr


def test_compare_takes_no_module():
    result = CliRunner().invoke(main, ("compare", "-m", "json.tool", "--fmt", "fp16"))
    assert result.exit_code == 2 and "run_module('json.tool'" in result.stderr


LINEAR = "import torch\nlayer = torch.nn.Linear(2, 2)\nlayer(torch.ones(1, 2)).softmax(1).square().sum().backward()\n"


@pytest.mark.parametrize("suffix", [".toml", ".json", ""])
def test_a_mapping_may_lie_in_a_file(tmp_path, suffix):
    text = '{"*": "fp16", "gradient": "e5m2"}'
    file = tmp_path / f"formats{suffix}"
    file.write_text('"*" = "fp16"\ngradient = "e5m2"\n' if suffix == ".toml" else text)
    code, _, report = run(tmp_path, LINEAR, "--fmt", str(file) if suffix else text)
    assert code == 0 and "fmt={'*': fp16, 'gradient': float8_e5m2}" in report


@pytest.mark.parametrize(("name", "text", "sentence"), [
    ("a.toml", None, "cannot be read: No such file"),
    ("a.toml", "fmt = ", "is no TOML"),
    ("a.json", "{", "is no JSON object"),
    ("a.json", "[1]", "holds no mapping"),
    ("a.json", '{"*": "fp16", "*": "bf16"}', "'*' stands twice"),
    ("a.toml", 'gradients = "fp16"', "gradients"),
])  # fmt: skip
def test_a_file_without_a_mapping_is_refused_before_the_script(tmp_path, name, text, sentence):
    if text is not None:
        (tmp_path / name).write_text(text)
    code, output, error = run(tmp_path, "print('it ran')", "--fmt", str(tmp_path / name))
    assert code == 2 and not output and sentence in error


def test_a_script_may_round_every_elementary_operation(tmp_path):
    whole, steps = (run(tmp_path, LINEAR, "--fmt", "fp16", "--granularity", name) for name in ("kernel", "primitive"))
    assert whole[0] == steps[0] == 0 and "_softmax" in whole[2] and "granularity=primitive" in steps[2] and "exp" in steps[2]
    assert run(tmp_path, LINEAR, "--fmt", "fp16", "--granularity", "operation")[0] == 2


def test_a_rank_reports_by_its_own_name(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(tmp_path, LINEAR, "--fmt", "fp16", "--report", str(tmp_path / "out.json"))[0] == 0
    assert (tmp_path / "out.rank1.json").exists() and not (tmp_path / "out.json").exists()


def test_a_script_that_spawns_ranks_is_told_how_they_are_emulated(tmp_path):
    script = "import torch.multiprocessing as processes\nif __name__ == '__main__':\n    processes.spawn(print, nprocs=2)\n"
    code, _, error = run(tmp_path, script, "--fmt", "fp16")
    assert code == 1 and "torchrun --nproc-per-node N --no-python fpsim run SCRIPT" in error
