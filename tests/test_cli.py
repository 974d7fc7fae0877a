"""The commands as a user meets them: output, exit codes, one-sentence errors."""

import datetime
import importlib
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings, strategies as st

import fpsim
from fpsim.cli import main
from fpsim.cli.numbers import decimal_text, parse_number, round_to_odd
from tests import quick_python

ROOT = Path(__file__).parents[1]


def invoke(*words):
    """The exit code, standard output and standard error of a command at 80 columns."""
    result = CliRunner().invoke(main, words, env={"COLUMNS": "80"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_help_lists_the_commands_and_loads_neither_torch_nor_numba():
    code = "import sys; from fpsim.cli import main; main(['--help'], standalone_mode=False);"
    code += "assert not {'torch', 'numba', 'rich'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("demo", "run", "compare", "explain", "formats"):
        assert command in done.stdout


def test_version():
    assert invoke("--version") == (0, f"fpsim, version {fpsim.__version__}\n", "")


def test_formats_lists_every_format_within_80_columns():
    code, output, _ = invoke("formats")
    assert code == 0
    rows = {line.split()[0]: line for line in output.splitlines() if line.strip()}
    assert set(fpsim.FORMATS) <= set(rows)
    assert max(map(len, output.splitlines())) <= 80
    assert "…" not in output
    assert rows["fp16"].split() == ["fp16", "1+5+10", "2^-11", "2^-24", "2^-14", "65504", "inf", "nan"]


def test_explain_shows_bits_value_error_and_neighbors():
    code, output, _ = invoke("explain", "0.1")
    assert code == 0
    for text in (
        "0.1 in fp16, nearest-even",
        "0x2e66",
        "0 01011 1001100110",
        "2^(11 - 15) = 2^-4",
        "1.1001100110",
        "0.0999755859375",
        "819/8192",
        "0x1.998p-4",
        "-0.4000 ulp",
        "0.10003662109375",
        "0.09991455078125",
    ):
        assert text in output
    assert max(map(len, output.splitlines())) <= 80


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (("-0.0",), "1 00000 0000000000"),
        (("-1e-8", "--fmt", "fp16"), "1 00000 0000000000"),
        (("1e6",), "overflow"),
        (("1e6", "--rounding", "toward-zero"), "65504"),
        (("inf",), "inf"),
        (("nan",), "nan"),
        (("nan", "--fmt", "e2m1fn"), "no NaN"),
        (("1e-320", "--fmt", "fp64"), "subnormal"),
        (("0.1", "--fmt", "fp64"), "0x1.999999999999ap-4"),
        (("1e400", "--fmt", "fp64"), "inf"),
        (("3", "--fmt", "e8m0fnu"), "0x81"),
        (("1/3", "--fmt", "bf16"), "0x3eab"),
        (("0x1.8p-3", "--fmt", "e4m3fn"), "exact"),
        (("0.1", "--rounding", "stochastic", "--seed", "1"), "ulp"),
        (("6e-8", "--fmt", "fp16"), "subnormal"),
    ],
)
def test_explain_covers(words, shown):
    code, output, error = invoke("explain", *words)
    assert (code, error) == (0, "")
    assert shown in output


@pytest.mark.parametrize("fmt", [name for name in fpsim.FORMATS if name != "fp64"])
@pytest.mark.parametrize("number", ["0", "0.3", "-7", "1e-50", "1e50", "448"])
def test_explain_never_fails_on_a_number(fmt, number):
    assert invoke("explain", number, "--fmt", fmt)[0] == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("explain", "abc"), "'abc' is not a number"),
        (("explain", "1/0"), "'1/0' is not a number"),
        (("explain", "1e999999999"), "out of range"),
        (("explain", "0.1", "--fmt", "fp17"), "--fmt: unknown format 'fp17': known are fp16"),
        (("explain", "0.1", "--rounding", "sideways"), "--rounding: unknown rounding 'sideways'"),
        (("explain", "0.1", "--rounding", "stochastic"), "seed"),
        (("explain", "0.1", "--seed", "1"), "seed"),
        (("explain", "0.1", "--fmt", "fp64", "--rounding", "up"), "fp64"),
        (("run", "missing.py", "--fmt", "fp16"), "there is no script 'missing.py'"),
        (("run", "missing.py", "--fmt", "fp17"), "--fmt: unknown format 'fp17'"),
        (("run", "missing.py", "--fmt", "bf16x3"), "--fmt: bf16x3 is a way to multiply fp32 numbers in parts"),
        (("run", "missing.py", "--fmt", "fp16", "--accumulate", "fp16:zigzag"), "--accumulate: "),
        (("demo", "--formats", "fp17"), "unknown format 'fp17'"),
        (("demo", "--formats", "fp16/zigzag"), "zigzag"),
        (("demo", "--formats", "fp16,fp64"), "float32 tensors cannot hold"),
        (("demo", "--output", "missing/folder/curves.png"), "cannot be written"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(quick_children, words, sentence):
    code, output, error = invoke(*words)
    assert (code, output) == (2, "")
    assert error.startswith("Error: ")
    assert error.count("\n") == 1
    assert sentence in error


@pytest.mark.parametrize(
    "words",
    [
        ("explain",),
        ("explain", "0.1", "--bogus"),
        ("formats", "extra"),
        ("run",),
        ("run", __file__),
        ("run", "--bogus", "x.py"),
        ("demo", "--epochs", "0"),
        ("nonsense",),
    ],
)
def test_bad_usage_is_exit_code_2(words):
    code, _, error = invoke(*words)
    assert code == 2
    assert "Error: " in error


@given(st.fractions(max_denominator=10**12), st.sampled_from(["fp16", "bf16", "e4m3fn", "fp32"]))
@settings(deadline=None)
def test_rounding_to_odd_first_never_rounds_twice(value, fmt):
    """The result is the value of the format nearest to the rational itself."""
    rounded = float(fpsim.round(round_to_odd(value), fmt))
    if rounded in (float("inf"), float("-inf")) or rounded != rounded:
        assert abs(value) > Fraction(fpsim.get_format(fmt).max_finite)
        return
    distance = abs(Fraction(rounded) - value)
    for step in (fpsim.next_up, fpsim.next_down):
        neighbor = float(step(rounded, fmt))
        if abs(neighbor) < float("inf"):
            assert distance <= abs(Fraction(neighbor) - value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_decimals_are_exact(value):
    text = decimal_text(Fraction(value), digits=2000)
    assert Fraction(text) == Fraction(value)
    assert float(parse_number(text)) == value


SCRIPT = """
import sys, os, torch
print(__name__, sys.argv[1:], os.path.basename(sys.path[0]), __file__ == sys.argv[0])
x = torch.tensor([0.1, 2049.0])
print((x + 0).tolist(), (torch.full((4096,), 1.0) @ torch.ones(4096)).item())
if "fail" in sys.argv: raise KeyError("from the script")
if "exit" in sys.argv: sys.exit(7)
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return str(path)


def test_run_emulates_a_script_and_reports(script, tmp_path):
    command = [quick_python.executable(), "-m", "fpsim.cli", "run", script, "--fmt", "fp16", "--accumulate", "fp16"]
    done = subprocess.run([*command, "--lr", "0.1", "--fmt", "own"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"__main__ ['--lr', '0.1', '--fmt', 'own'] {tmp_path.name} True",
        "[0.0999755859375, 2048.0] 2048.0",
    ]
    assert "fmt=fp16, accumulate=fp16" in done.stderr
    assert "total" in done.stderr


def test_run_takes_options_before_the_script(script, tmp_path):
    argv, path = list(sys.argv), list(sys.path)
    code, output, error = invoke("run", "--fmt=bf16", script, "--", "--fmt", "own")
    assert (code, output.splitlines()[0]) == (0, f"__main__ ['--fmt', 'own'] {tmp_path.name} True")
    assert "fmt=bf16, accumulate=fp32" in error
    assert (sys.argv, sys.path) == (argv, path)


def test_run_passes_on_the_exit_code(script):
    assert invoke("run", script, "--fmt", "fp16", "exit")[0] == 7


def test_run_shows_the_traceback_of_the_script_alone(script):
    code, _, error = invoke("run", script, "--fmt", "fp16", "fail")
    assert code == 1
    assert "KeyError: 'from the script'" in error
    assert f'File "{script}", line 6' in error
    assert "runpy" not in error
    assert f"fpsim{os.sep}cli" not in error


def test_run_shows_a_syntax_error(script):
    Path(script).write_text("def broken(:\n")
    code, _, error = invoke("run", script, "--fmt", "fp16")
    assert code == 1
    assert "SyntaxError" in error
    assert "runpy" not in error


def test_run_names_an_operation_without_a_rule(script):
    Path(script).write_text("import torch; torch.complex(torch.eye(3), torch.eye(3)).var()")
    code, _, error = invoke("run", script, "--fmt", "fp16")
    assert code == 1
    assert "UnsupportedOp" in error
    assert "aten.var" in error


@pytest.mark.exhaustive
def test_demo_prints_a_row_for_each_arithmetic_and_a_picture(tmp_path, quick_children):
    picture = tmp_path / "curves.png"
    code, output, error = invoke("demo", "--epochs", "1", "--formats", "bf16,fp16/fp16:pairwise", "--output", str(picture))
    assert (code, error) == (0, "")
    rows = [line.split() for line in output.splitlines()]
    first = next(row for row in rows if row[:2] == ["bf16", "fp32"])
    second = next(row for row in rows if row[:2] == ["fp16", "fp16:pairwise"])
    for row in (first, second):
        correct, images = map(int, row[2].split("/"))
        assert 200 < correct <= images == 450
    assert picture.read_bytes().startswith(b"\x89PNG")
    page = picture.with_suffix(".html")
    assert str(picture) in output and str(page) in output and "fp16/fp16:pairwise" in page.read_text()
    assert max(len(line) for line in output.splitlines() if str(tmp_path) not in line) <= 80


def test_demo_keeps_what_is_finished_when_interrupted(tmp_path, monkeypatch):
    from fpsim.cli import digits

    def train(outcome, data, fmt, accumulate, epochs, seed, done):
        outcome.losses.append(1.0)
        done(1.0)
        if fmt == "bf16":
            raise KeyboardInterrupt
        outcome.correct = 123

    monkeypatch.setattr(digits, "train", train)
    picture = tmp_path / "curves.png"
    code, output, _ = invoke("demo", "--formats", "fp32,bf16,fp16", "--jobs", "1", "--output", str(picture))
    assert code == 130
    assert "123/450" in output
    assert "stopped" in output
    assert "fp16" not in output
    assert picture.exists()


def test_arithmetics_in_another_process_tell_each_step_and_stop_when_told(monkeypatch, capsys):
    """Two steps of it, here; and what reads another process, of one that stands in for it."""
    from fpsim.cli import arms
    from fpsim.cli.digits import Digits

    def run(code, told):
        worker, pending = arms._Worker([("fp16", "fp32")], 1), arms.Queue()
        beginning = "import sys, time; print('{}' if 'check' in input() else 'null', flush=True); asked = input()"
        worker._command = [sys.executable, "-c", f"{beginning}; {code}"]
        pending.put((3, ("train", "fp16", "fp32", 1, 0)))
        return worker.run(pending, lambda: None, lambda *step: told(worker, *step))

    data = Digits.load()
    data.images, data.labels = data.images[:64], data.labels[:64]
    monkeypatch.setattr(Digits, "load", lambda: data)
    monkeypatch.setattr(sys, "stdin", ['["train", "fp16", "fp32", 1, 0]'])
    arms.main()
    said, losses = capsys.readouterr().out, []
    says = f"assert eval(asked) == ['train', 'fp16', 'fp32', 1, 0]; print({said!r}, end='')"
    found = run(says, lambda *step: losses.append(step[1:]))
    assert losses == [(3, loss) for loss in found[3].losses] and len(losses) == 2
    assert found[3].correct > 0 and found[3].report.rows
    assert run("print(0.5, flush=True); time.sleep(60)", lambda worker, *step: worker.stop()) == {}
    with pytest.raises(RuntimeError, match="train fp16 fp32 1 0 failed: no such thing"):
        run("sys.exit('no such thing')", print)


def test_demo_names_the_extra_that_is_missing(monkeypatch):
    module = importlib.import_module("fpsim.cli.demo")  # the package's own `demo` is the command
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    code, _, error = invoke("demo")
    assert code == 2
    assert "scikit-learn and matplotlib and Jinja2" in error
    assert "'.[demo]'" in error


def test_demo_depends_on_the_seed_alone():
    from fpsim.cli.digits import Digits, train
    from fpsim.cli.outcome import Outcome

    data = Digits.load()
    data.images, data.labels = data.images[:64], data.labels[:64]
    losses = []
    for seed in (0, 0, 1):
        outcome = Outcome()
        train(outcome, data, "fp16", "fp16", 1, seed, lambda loss: None)
        losses.append(outcome.losses)
    assert losses[0] == losses[1] != losses[2]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache with kernels of this version and of another."""
    from fpsim.backend.numba import folders
    from fpsim.backend.numba.storage import Files

    root = tmp_path / "cache"
    monkeypatch.setenv("FPSIM_CACHE_DIR", str(root))
    for name, count in ((folders.source_digest(), 2), ("0123456789abcdef", 3)):
        for number in range(count):
            Files(root / name).save(f"{number}.kernel", bytes(1_000_000))
    return root


def test_cache_shows_each_version(cache):
    from fpsim.backend.numba.folders import source_digest

    code, output, errors = invoke("cache")
    assert (code, errors) == (0, "")
    lines = output.splitlines()
    assert lines[0] == str(cache)
    today = f"{datetime.date.today()}"
    rows = {tuple(line.split()) for line in lines[3:]}
    assert rows == {(source_digest(), "(this", "one)", "2", "2.0", "MB", today), ("0123456789abcdef", "3", "3.0", "MB", today)}


@pytest.mark.parametrize(
    "option, deleted, left", [("--clear", "5 kernels (5.0 MB)", 0), ("--clear-old", "3 kernels (3.0 MB)", 2)]
)
def test_cache_deletes(cache, option, deleted, left):
    assert invoke("cache", option) == (0, f"deleted {deleted} from {cache}\n", "")
    assert len(list(cache.rglob("*.kernel"))) == left


def test_cache_says_why_a_folder_is_not_used(cache, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    cache.chmod(0o777)
    code, output, errors = invoke("cache")
    assert (code, output.splitlines()[0]) == (0, str(tmp_path / "home" / "fpsim"))
    assert errors == f"fpsim keeps no compiled kernels in {cache}: others can write to it (chmod go-w).\n"


def test_warm_compiles_ahead_and_nothing_twice(tmp_path, monkeypatch):
    from fpsim.cli.kernel_sets import SETS, Work

    monkeypatch.setenv("FPSIM_CACHE_DIR", str(tmp_path))
    monkeypatch.setitem(SETS, "functions", (Work("kernels_of_arrays", "bounds"),))
    found = []
    for _ in range(2):
        code, output, errors = invoke("warm", "functions", "--processes", "1")
        assert (code, errors) == (0, "")
        found.append(int(output.split()[0]))
    assert found[0] > 0 == found[1]
    assert len(list(tmp_path.rglob("*.kernel"))) > 0


def test_warm_does_each_piece_of_work_once():
    from fpsim.cli.kernel_sets import EVERYTHING, SETS, work_of

    everything = work_of((EVERYTHING,))
    assert all(everything.count(work) == 1 for pieces in SETS.values() for work in pieces)
    assert work_of(("arrays", "functions", "arrays")) == [*SETS["arrays"], *SETS["functions"]]


def test_warm_refuses_a_set_that_it_does_not_know():
    code, _, errors = invoke("warm", "training-fp8")
    assert code == 2 and "training-fp16" in errors


def test_warm_says_that_there_is_no_folder(monkeypatch):
    from fpsim.backend.numba import folders

    monkeypatch.setattr(folders, "choose", lambda: None)
    code, output, errors = invoke("warm")
    assert (code, output) == (2, "") and "set FPSIM_CACHE_DIR to a writable one" in errors
