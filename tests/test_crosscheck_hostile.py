"""Bundles of strangers: whatever a file holds, a cross-check compares it or refuses it in one sentence, and no more happens."""

import importlib
import itertools
import json
import random
import subprocess
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import fpsim
from fpsim.cli import main as cli
from fpsim.cli.replaying import _cells, _ending, _machine
from fpsim.emulation.replay import crosscheck_model
from fpsim.recorder import Bundle, BundleError, load, recording
from fpsim.recorder.bundle import _digest
from fpsim.report.plain import plain
from tests import quick_python
from tests.frequency import often
from tests.hostile import alone, honest_calls, recorded

ROOT = Path(__file__).parents[1]
RECORDINGS = Path(__file__).parent / "recordings"

pytestmark = pytest.mark.usefixtures("quick_children")


def in_another_process(code, *arguments):
    """What a child prints; a signal that ends it fails the test."""
    command = [quick_python.executable(), "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    return done.stdout


CHANGED = """
import sys, torch
from fpsim.emulation.machine.policy import make_policy
from tests.hostile import honest_calls, recorded, replay_changed
torch.set_num_threads(1)
bundle = recorded(honest_calls(getattr(torch, sys.argv[1])))
print(len({record["op"] for record in bundle.records}), replay_changed(bundle, [make_policy("native")]))
"""


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_no_change_of_arguments_ends_the_process(dtype):
    """Operations with indices, lengths, offsets or windows, each argument replaced by other values, dtypes and shapes."""
    operations, counts = in_another_process(CHANGED, dtype).split(" ", 1)
    assert int(operations) >= 60
    assert json.loads(counts.replace("'", '"'))["refused"] > 4000


def test_honest_calls_are_not_refused():
    bundle = recorded(honest_calls(torch.float32))
    rows = fpsim.crosscheck(bundle, accumulate="fp32").rows
    refused = {row.op for row in rows if row.skipped}
    assert len(rows) >= 60
    # which bag an index is in: kept or left out as a kernel needs it
    assert refused <= {"aten._embedding_bag.default", "aten._embedding_bag_forward_only.default"}


# Mutations of three honest bundles: of the header and the arrays, with a digest that fits, and of the raw bytes.

JUNK = (
    None, True, -1, 0, 3, 2**31, 2**63, 10**30, -(2**70), 1.5, "", "x", "[/data/run7]", "\ud800", "\x1b]0;x\x07", "load",
    [], {}, [[]] * 20, [[[[[[[[[[]]]]]]]]]], [2**40] * 3, [-1, 2], [0] * 70, {"tensor": 10**6}, {"tensor": -1},
    {"tensor": 0}, {"tensor": 1}, {"float": "zz"}, {"float": "nan"}, {"float": "0x1p+9999"}, {"dtype": "load"},
    {"dtype": "int64"}, {"tensor": True},
    {"layout": "torch.load"}, {"layout": "torch.sparse_coo"}, {"device": "cuda"}, {"x": 1, "y": 2}, "aten.mm.default",
    "aten.as_strided_.default", "aten.from_file.default", "aten.arange.default", "aten.nonexistent.default", "mma",
    "masks", "call",
    "instruction", "float16", "float8_e8m0fnu", "bool", "uint64", "0", "1",
)  # fmt: skip


def places(value, path=()):
    """The path of everything in a header."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def at(value, path):
    for key in path:
        value = value[key]
    return value


def mutated(header, arrays, draw):
    """Change one to three things of a header and its arrays in place."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        if draw.random() < 0.2 and arrays:
            name = draw.choice(sorted(arrays))
            change = draw.randrange(5)
            bits = arrays[name].copy()
            if change == 0 and bits.size:
                bits.reshape(-1).view(np.uint8)[draw.randrange(bits.nbytes)] ^= 1 << draw.randrange(8)
            elif change == 1:
                bits = bits[: bits.size // 2]
            elif change == 2:
                bits = bits.astype(draw.choice(("u1", "u2", "u4", "u8")))
            elif change == 3 and bits.size:
                bits.reshape(-1)[draw.randrange(bits.size)] = np.iinfo(bits.dtype).max
            else:
                bits = np.resize(bits, (2, 3))
            arrays[name] = bits
            continue
        path = draw.choice([path for path in places(header) if path])
        holder, key = at(header, path[:-1]), path[-1]
        change = draw.random()
        if change < 0.6:
            holder[key] = json.loads(json.dumps(draw.choice(JUNK)))
        elif change < 0.7:
            del holder[key]
        elif change < 0.8 and isinstance(holder, list):
            holder.insert(draw.randrange(len(holder) + 1), holder[key])
        elif isinstance(holder[key], int):
            holder[key] = draw.choice((-1, 1, 2, 10**6)) * holder[key] + draw.choice((-1, 0, 1))
        else:
            holder[key] = json.loads(json.dumps(at(header, draw.choice(list(places(header))))))


def written(path, header, arrays):
    """The file of a header and arrays, stored without compression."""
    text = np.frombuffer(json.dumps(header).encode(), np.uint8)
    path.unlink(missing_ok=True)  # what replaces a file's content is written to the disk at once
    np.savez(path, header=text, digest=np.frombuffer(_digest(text, arrays), np.uint8), **arrays)


def parts(bundle):
    tensors = [[dtype, list(shape), list(strides)] for dtype, shape, strides, _ in bundle.tensors]
    header = {
        "kind": "fpsim bundle", "version": 1, "environment": bundle.environment, "stopped": bundle.stopped,
        "records": bundle.records, "tensors": tensors,
    }  # fmt: skip
    return header, {f"t{number}": bits for number, (*_, bits) in enumerate(bundle.tensors)}


def outcome(path):
    """ "compared" or "refused"; anything else that is raised is a defect."""
    try:
        read = load(path)
        found = fpsim.crosscheck(read, accumulate="fp32")
        json.dumps([_machine(found), [_cells(row) for row in found.rows], _ending(found)])
        if any(record["section"] == "model" for record in read.records):
            str(crosscheck_model(read, fpsim.emulation.machine.policy.make_policy("native")))
    except BundleError as error:
        assert plain(str(error)).count("\n") == 0
        return "refused"
    return "compared"


def honest(name):
    """Three bundles: products, masks and conversions of a processor; single matrix instructions; a model's own operations."""
    if name == "model":
        bundle = recorded(list(honest_calls(torch.float16))[::3])
        for record in bundle.records:
            record["section"] = "model"
        return bundle
    if name == "instruction":
        bundle = Bundle({"flags": {}})
        shapes = {"a": (2, 16, 8), "b": (2, 8, 8), "c": (2, 16, 8), "d": (2, 16, 8)}
        tiles = {}
        for key, shape in shapes.items():
            tiles[key] = {"tensor": bundle.add_tensor("float16", shape, (), np.ones(np.prod(shape), "u2"))}
        common = {"kind": "instruction", "section": "instructions", "op": "mma.sync m16n8k8", "operand": "float16"}
        bundle.records.append(common | tiles)
        return bundle
    bundle = load(RECORDINGS / "zen3_products.npz")
    bundle.records = [item for item in bundle.records if "8, 64, 8" in str(item) or item.get("dtype") == "float16"][:6]
    bundle.records += [item for item in load(RECORDINGS / "zen3_products.npz").records if item["kind"] == "call"][:4]
    return bundle


def answers(name, count, path):
    """How many mutations were compared and refused, and the longest time that one took."""
    bundle, draw = honest(name), random.Random(name)
    smalls = [parts(alone(bundle, record)[0]) for record in bundle.records]
    counts, slowest = {"compared": 0, "refused": 0}, 0.0
    for number in range(count):
        header, arrays = smalls[number % len(smalls)]
        header, arrays = json.loads(json.dumps(header)), dict(arrays)
        if number % 10:
            mutated(header, arrays, draw)
        written(path, header, arrays)
        if number % 10 == 0:
            raw = bytearray(path.read_bytes())
            for _ in range(draw.randrange(1, 4)):
                raw[draw.randrange(len(raw))] = draw.randrange(256)
            path.write_bytes(raw[: draw.choice((len(raw), draw.randrange(len(raw))))])
        start = time.process_time()
        counts[outcome(path)] += 1
        slowest = max(slowest, time.process_time() - start)
    return counts, slowest


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name, count", often(itertools.product(("model", "instruction", "products"), (800, 2500)), lambda case: case[1] == 800)
)
def test_every_mutation_is_compared_or_refused(name, count, tmp_path):
    counts, slowest = answers(name, count, tmp_path / "a.npz")
    assert counts["refused"] > count // 4 and counts["compared"] > count // 20 and slowest < 30, (counts, slowest)


# The command: what a stranger's text may do to a terminal, and what may end the process that replays.


def shell(*words):
    return CliRunner().invoke(cli, words, env={"COLUMNS": "200"})


def one_sentence(result, text):
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1 and text in result.stderr, result.stderr


def test_text_of_a_bundle_is_printed_as_it_is(tmp_path):
    """An honest bundle whose error names a path in brackets, and one that would steer a terminal."""
    with pytest.raises(ValueError, match="run7"), recording(tmp_path / "a.npz"):
        torch.ones(3).exp()
        raise ValueError("[/data/run7] [bold]not[/] :smile: \x1b]0;title\x07\n\ud800")
    result = shell("crosscheck", str(tmp_path / "a.npz"), "--minutes", "5")
    assert result.exit_code == 0, result.output
    assert "stopped ValueError: [/data/run7] [bold]not[/] :smile: \\x1b]0;title\\x07\\n\\ud800" in result.stdout
    assert "\x1b" not in result.output and "\x07" not in result.output


@pytest.mark.parametrize("words", [("explain", "[/b]"), ("run", "[/b].py", "--fmt", "fp16"), ("crosscheck", "[/b].npz")])
def test_text_of_a_user_is_printed_as_it_is(words):
    one_sentence(shell(*words), "[/b]")


def test_layers_named_with_brackets_are_listed():
    model = torch.nn.Sequential()
    model.add_module("[/red]", torch.nn.Linear(3, 2))
    assert "[/red]" in fpsim.certify(model.eval(), torch.ones(1, 3), fmt="fp16").table()


def crafted(path, change):
    """A model's bundle of one max pool and its gradient, one thing of the last record changed, the digest renewed."""
    with recording(path):
        torch.nn.functional.max_pool2d(torch.ones(1, 1, 4, 4).requires_grad_(), 2).sum().backward()
    bundle = load(path)
    record = next(item for item in bundle.records if item["op"] == "aten.max_pool2d_with_indices_backward.default")
    change(bundle, record)
    bundle.save(path)
    return str(path)


def test_indices_beyond_their_planes_are_not_followed(tmp_path):
    def change(bundle, record):
        number = record["args"][-1]["tensor"]
        dtype, shape, strides, bits = bundle.tensors[number]
        bundle.tensors[number] = (dtype, shape, strides, bits + np.uint64(2**40))

    result = shell("crosscheck", crafted(tmp_path / "a.npz", change), "--accumulate", "fp32")
    assert result.exit_code == 0 and "and only 0 to 15 exist" in result.stdout.replace("\n", " "), result.output


def test_a_number_is_no_dtype(tmp_path):
    """Torch's operators take a bare number for a dtype, and look it up without asking whether there is one."""
    bundle = Bundle({"flags": {}})
    number = {"tensor": bundle.add_tensor("float32", (2,), (1,), np.zeros(2, "u4"))}
    call = {"kind": "call", "section": "x", "op": "aten._to_copy.default", "args": [number], "result": number}
    bundle.records = [call | {"kwargs": {"dtype": -1}, "written": {}, "flags": {}}]
    bundle.save(tmp_path / "a.npz")
    code = "import fpsim, sys; print([row.skipped for row in fpsim.crosscheck(sys.argv[1]).rows])"
    assert "its argument 'dtype' is no dtype" in in_another_process(code, str(tmp_path / "a.npz"))


def test_a_malformed_record_is_one_sentence(tmp_path):
    path = crafted(tmp_path / "a.npz", lambda bundle, record: record.pop("kwargs"))
    one_sentence(shell("crosscheck", path), "has no 'kwargs'")
    with pytest.raises(BundleError, match="has no 'kwargs'"):
        fpsim.crosscheck(path)
    with pytest.raises(BundleError, match="has no 'kwargs'"):
        fpsim.run(torch.nn.Linear(2, 2), fmt="fp32").crosscheck(path)


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended the process that replayed it: SIGSEGV"),
        ("raise MemoryError('no room')", "ended the process that replayed it: MemoryError: no room"),
        ("import time; time.sleep(60)", "was not done after 0.1 minutes"),
    ],
)
def test_what_ends_the_process_is_said(code, sentence, monkeypatch, tmp_path):
    command = importlib.import_module("fpsim.cli.crosscheck")  # the package's own `crosscheck` is the command
    monkeypatch.setattr(command, "_COMMAND", f'print(\'{{"at": [3, 9, "x: aten.mm"]}}\', flush=True); {code}')
    one_sentence(shell("crosscheck", str(tmp_path / "a.npz"), "--minutes", "0.1"), f"operation 4 of 9 (x: aten.mm) {sentence}")


# Files that are no bundles.


@pytest.mark.parametrize(
    ("field", "text", "sentence"),
    [
        ("tensors", '[["float32", [1099511627776, 0], [1, 1]]]', "does not fit its arrays"),
        ("records", "[" * 60 + "]" * 60, "nests more than 40 levels"),
        ("records", "[" * 100_000 + "]" * 100_000, "is no JSON"),
        ("environment", "1" + "0" * 6000, "is no JSON"),
        ("environment", "NaN", "is no JSON"),
        ("environment", f'"{"y" * (17 << 20)}"', "its header has 17 MB; a bundle has at most 16"),
    ],
    ids=["tensors", "nesting", "deep-nesting", "digits", "constant", "length"],
)
def test_headers_that_no_recorder_writes_are_refused(field, text, sentence, tmp_path):
    header, arrays = parts(recorded(list(honest_calls(torch.float32))[:1]))
    whole = np.frombuffer(json.dumps({**header, field: "HERE"}).replace('"HERE"', text).encode(), np.uint8)
    np.savez(tmp_path / "a.npz", header=whole, digest=np.frombuffer(_digest(whole, arrays), np.uint8), **arrays)
    with pytest.raises(BundleError, match=sentence):
        load(tmp_path / "a.npz")


def test_entries_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    for name, text in (("../t0.npy", b"x"), ("t0.npy", b"\x93NUMPY\x01\x00\x10\x00{'descr': eval(1)}"), ("t0", b"")):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, text)
        with pytest.raises(BundleError, match="is no bundle"):
            load(path)
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(IsADirectoryError):
        load(tmp_path / "folder.npz")


def test_recording_leaves_results_that_grow(tmp_path):
    """An `out=` without elements grows inside a recording as outside."""
    with recording(tmp_path / "a.npz"):
        assert torch.add(torch.ones(4), 1, out=torch.empty(0)).tolist() == [2.0] * 4
