"""Bundles and what fills them: files that are right, altered, cut or strange; the recorder alone; interruptions; limits."""

import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

import fpsim
from fpsim.recorder import SECTIONS, Bundle, BundleError, TooLarge, bundle as bundle_module, load, record, recording
from fpsim.recorder.bundle import VERSION
from fpsim.recorder.calls import bits_of
from fpsim.recorder.command import find_model, main
from fpsim.recorder.packing import write_recorder


def small(path):
    bundle = Bundle({"flags": {}})
    bits = np.arange(6, dtype=np.uint16)
    first = bundle.add_tensor("float16", (2, 3), (3, 1), bits)
    assert bundle.add_tensor("float16", (2, 3), (3, 1), bits.copy()) == first  # held once
    assert bundle.add_tensor("bfloat16", (2, 3), (3, 1), bits) != first
    bundle.records.append({"kind": "call", "op": "aten.neg.default", "args": [{"tensor": first}]})
    bundle.save(path)
    return bundle


def rewritten(source, target, **changes):
    """A copy of a bundle's file with arrays replaced."""
    with np.load(source) as file:
        arrays = {name: file[name] for name in file.files}
    np.savez_compressed(target, **{**arrays, **changes})
    return target


def test_a_bundle_comes_back(tmp_path):
    bundle = small(tmp_path / "a.npz")
    read = load(tmp_path / "a.npz")
    assert read.records == bundle.records and read.environment == bundle.environment and read.stopped is None
    assert [item[:3] for item in read.tensors] == [item[:3] for item in bundle.tensors]
    assert all(np.array_equal(a[3], b[3]) for a, b in zip(read.tensors, bundle.tensors, strict=True))
    assert np.array_equal(read.bits(0), np.arange(6, dtype=np.uint16).reshape(2, 3))
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]  # no part is left behind


def test_altered_files_are_told(tmp_path):
    path = tmp_path / "a.npz"
    small(path)
    changed = np.arange(6, dtype=np.uint16)
    changed[3] ^= 1
    with pytest.raises(BundleError, match="was altered after it was recorded"):
        load(rewritten(path, tmp_path / "b.npz", t0=changed))
    with np.load(path) as file:
        header = json.loads(file["header"].tobytes())
    header["records"] = []
    text = np.frombuffer(json.dumps(header).encode(), np.uint8)
    with pytest.raises(BundleError, match="was altered"):
        load(rewritten(path, tmp_path / "c.npz", header=text))


@pytest.mark.parametrize("version", [VERSION + 1, 0, None])
def test_other_versions_are_refused(tmp_path, version):
    path = tmp_path / "a.npz"
    small(path)
    with np.load(path) as file:
        header = json.loads(file["header"].tobytes()) | {"version": version}
    text = np.frombuffer(json.dumps(header).encode(), np.uint8)
    with pytest.raises(BundleError, match=f"version {version}; this fpsim reads version {VERSION}: record it again"):
        load(rewritten(path, tmp_path / "b.npz", header=text))


def test_cut_files_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    small(path)
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 3, len(whole) // 2, len(whole) - 30, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(BundleError, match="is no bundle, or it is cut short"):
            load(path)
    path.write_bytes(b"hello, I am no archive" * 100)
    with pytest.raises(BundleError, match="is no bundle"):
        load(path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.npz")


def test_strange_files_are_refused(tmp_path, monkeypatch):
    """No pickle is ever loaded, no other archive passes for a bundle, and a small file does not fill the memory."""

    class Harm:
        def __reduce__(self):
            return pytest.fail, ("a pickle was loaded",)

    np.savez(tmp_path / "pickle.npz", header=np.array([Harm()], dtype=object))
    with pytest.raises(BundleError, match="is no bundle"):
        load(tmp_path / "pickle.npz")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(BundleError, match="is no bundle"):
        load(tmp_path / "other.npz")
    np.savez(tmp_path / "json.npz", header=np.frombuffer(b'{"kind": "something"}', np.uint8), digest=np.zeros(32, np.uint8))
    with pytest.raises(BundleError, match="is no bundle of fpsim"):
        load(tmp_path / "json.npz")
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for part in range(3):
            archive.writestr(f"t{part}.npy", bytes(1 << 20))
    monkeypatch.setattr(bundle_module, "_MAX_UNPACKED", 2 << 20)
    with pytest.raises(BundleError, match="would unpack to 3 MB; a bundle has at most 2"):
        load(tmp_path / "bomb.npz")


def test_nothing_is_written_over_the_limit(tmp_path):
    bundle = Bundle({"flags": {}})
    bundle.add_tensor("uint8", (5000,), (1,), np.random.default_rng(0).integers(0, 256, 5000).astype(np.uint8))
    with pytest.raises(TooLarge, match="MB, and a bundle may have 0"):
        bundle.save(tmp_path / "a.npz", limit=4000)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e5m2, torch.bool])
def test_bits_of_any_dtype(dtype):
    x = torch.tensor([[1.0, -2.0, 0.0], [0.5, 4.0, -0.0]]).to(dtype)
    whole, turned = bits_of(x), bits_of(x.T)
    assert whole.dtype == np.dtype(f"u{dtype.itemsize}") and whole.size == 6
    assert np.array_equal(turned.reshape(3, 2).T.reshape(-1), whole)


# What fills a bundle.


def calls(bundle):
    return [record for record in bundle.records if record["kind"] == "call"]


def test_a_model_is_recorded_below_autograd(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Dropout(0.5)).half()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    x = torch.randn(3, 6).half()
    with recording(tmp_path / "a.npz", model) as bundle:
        model(x).sum().backward()
        optimizer.step()
    found = calls(load(tmp_path / "a.npz"))
    assert found == calls(bundle)
    ops = [item["op"] for item in found]
    assert ops[0] == "aten.addmm.default" and found[0]["place"] == "0"
    assert any(item["place"].startswith("backward, AddmmBackward") and item["op"] == "aten.mm.default" for item in found)
    dropped = [item for item in found if item.get("skipped") == "draws random numbers"]
    assert dropped and dropped[0]["place"] == "2"
    step = next(item for item in found if "_foreach_add_" in item["op"] or "add_.Tensor" in item["op"])
    assert step["written"] or step["result"]  # what was written in place is held after the call
    before, after = (bundle.bits(numbers) for numbers in (first_number(step["args"]), written_number(step)))
    assert not np.array_equal(before, after)


def first_number(encoded):
    while isinstance(encoded, list):
        encoded = encoded[0]
    return encoded["tensor"]


def written_number(record):
    written = record["written"]
    return first_number(next(iter(written.values()))) if written else first_number(record["result"])


def test_a_recording_keeps_what_was_done_before_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), recording(tmp_path / "a.npz"):
        torch.ones(3).exp()
        raise ZeroDivisionError("stop here")
    read = load(tmp_path / "a.npz")
    assert [item["op"] for item in calls(read)] == ["aten.exp.default"]
    assert read.stopped == "ZeroDivisionError: stop here"


def test_a_recording_stops_at_its_limit_and_says_so(tmp_path):
    with recording(tmp_path / "a.npz", limit=1 << 20) as bundle:
        for i in range(8):
            torch.full((100_000,), float(i)).exp()
    assert bundle.stopped.startswith("after 2 records, at aten.exp.default: the limit of 1 MB")
    assert len(calls(load(tmp_path / "a.npz"))) == 2


def test_sections_run_here(tmp_path):
    """Every section but the long ones, and nothing in them fails on this machine."""
    chosen = ["elementwise", "scalars", "sums", "normalizations", "convolutions", "instructions"]
    seen = []
    bundle = record(tmp_path / "a.npz", "cpu", chosen, lambda done, total, name: seen.append((done, total, name)))
    assert seen == [*((i, 6, name) for i, name in enumerate(chosen)), (6, 6, "")]
    assert {item["section"] for item in bundle.records} == set(chosen)
    skipped = [item for item in bundle.records if "skipped" in item]
    assert [item["skipped"] for item in skipped] == ["no CUDA device"]
    again = record(tmp_path / "b.npz", "cpu", chosen)
    assert again.records == bundle.records  # the same operands, the same results


def test_an_interruption_keeps_finished_sections(tmp_path):
    def interrupt(done, total, name):
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(tmp_path / "a.npz", "cpu", ["elementwise", "sums"], interrupt)
    read = load(tmp_path / "a.npz")
    assert read.stopped == "interrupted in the section elementwise" and calls(read)


def test_bad_arguments():
    with pytest.raises(ValueError, match="there is no section 'sum'; there are conversions, elementwise"):
        record("x.npz", "cpu", ["sum"])
    with pytest.raises(ValueError, match="device 'meta:x' cannot be used here"):
        record("x.npz", "meta:x")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device 'cuda' cannot be used here"):
            record("x.npz", "cuda")


def test_environment_says_what_results_depend_on(tmp_path):
    found = record(tmp_path / "a.npz", "cpu", ["instructions"]).environment
    assert found["torch"] == torch.__version__ and found["numpy"] == np.__version__ and found["device"] == "cpu"
    assert found["flags"]["float32_matmul_precision"] == torch.get_float32_matmul_precision()
    assert isinstance(found["processor"].get("instructions", []), list)


# The recorder alone.


def test_the_recorder_needs_torch_and_numpy_alone(tmp_path):
    write_recorder(tmp_path / "recorder.pyz")
    code = """
import runpy, sys
sys.argv = ["recorder.pyz", "-o", "a.npz", "--device", "cpu", "--section", "sums"]
try:
    runpy.run_path("recorder.pyz", run_name="__main__")
except SystemExit as end:
    assert end.code == 0, end.code
print(sorted({name.partition(".")[0] for name in sys.modules} & {"fpsim", "numba", "rich", "click", "scipy"}))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert "[0/1] sums" in done.stderr
    assert load(tmp_path / "a.npz").records


SCRIPT = """
import torch
torch.manual_seed(0)
model = torch.nn.Linear(4, 3).bfloat16()
inputs = torch.randn(2, 4).bfloat16()
def step():
    model(inputs).sum().backward()
nothing = 3
"""


def test_models_are_named_by_script_and_name(tmp_path, capsys):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    target = str(tmp_path / "a.npz")
    for name, ops in (("model", ["aten.addmm.default"]), ("step", ["aten.addmm.default", "aten.sum.default"])):
        assert main(["--model", f"{script}:{name}", "-o", target]) == 0
        assert f"{target}: " in capsys.readouterr().out
        assert [item["op"] for item in calls(load(target))][: len(ops)] == ops
    for text in ("none.py:model", str(script), f"{script}:nothing", f"{script}:missing"):
        with pytest.raises(ValueError, match="--model"):
            find_model(text)
    assert main(["--model", f"{script}:nothing", "-o", target]) == 2
    assert "no module or function 'nothing'" in capsys.readouterr().err


def test_public_names():
    assert fpsim.record is record and fpsim.recording is recording
    assert {"conversions", "unary", "products", "masks", "optimizers", "instructions"} <= set(SECTIONS)
