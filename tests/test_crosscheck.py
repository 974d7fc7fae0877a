"""Cross-checks: recordings of real processors bit for bit, machines that are simulated, single bits that differ, models."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import fpsim
from fpsim.accumulation import Accumulator
from fpsim.cli import main as cli
from fpsim.emulation.replay import crosscheck_model
from fpsim.emulation.replay.calls import Call
from fpsim.emulation.replay.differences import compare
from fpsim.emulation.replay.revealed import Orders
from fpsim.hardware import product
from fpsim.recorder import Bundle, instructions, load, masks, record, recording, suite
from fpsim.recorder.calls import CallRecorder
from fpsim.recorder.environment import flags
from tests.test_processors import LEVELS, environment_of

RECORDINGS = Path(__file__).parent / "recordings"

pytestmark = pytest.mark.filterwarnings("ignore::fpsim.hardware.UnconfirmedUnit")


# Recordings of processors with oneDNN's and MKL's kernels: AMD Zen 3 (AVX2, F16C, no AVX-512), Zen 5 (AVX-512, AVX512-BF16).


def differing(name):
    """(operation, dtype, shape) to how many elements differ, for a recording's rows that do; and all rows."""
    found = fpsim.crosscheck(RECORDINGS / f"{name}.npz")
    assert all(not row.skipped for row in found.rows)
    return {(row.op.split(".")[1], row.dtype, row.shape): row.differing for row in found.rows if not row.equal}, found


def test_recordings_are_small():
    paths = sorted(RECORDINGS.glob("*.npz"))
    assert len(paths) >= 6 and all(path.stat().st_size <= 1 << 20 for path in paths)


def test_recorded_conversions():
    """F16C's VCVTPS2PH and VCVTPH2PS, and torch's own conversions. torch converts float64 by way of float32, and
    saturates e4m3fn."""
    found, everything = differing("zen3_conversions")
    assert "f16c" in everything.environment["processor"]["instructions"]
    assert found == {
        ("_to_copy", "float16", "from float64"): 2269,
        ("_to_copy", "bfloat16", "from float64"): 2327,
        ("_to_copy", "float8_e4m3fn", "from float32"): 4359,
    }
    assert len(everything.rows) == 15


def test_recorded_products():
    """Matrix products of oneDNN (fp16, bf16: four lanes, whatever the shape) and MKL (fp32), every bit.

    MKL adds in several orders within one product of 5 x 1000 x 7, and vectors go through other kernels.
    """
    found, everything = differing("zen3_products")
    assert {key[0] for key in found if key[1] != "float32"} <= {"mv", "dot"}
    assert {key: count for key, count in found.items() if key[0] == "mm"} == {("mm", "float32", "5 x 1000 x 7"): 12}
    rows = {(row.dtype, row.shape): row for row in everything.rows if row.op == "aten.mm.default"}
    assert len(rows) == 24 and len(everything.masks) == 21
    assert {row.fit for (dtype, _), row in rows.items() if dtype == "float16"} == {"fp32:lanes(4)"}
    assert {row.fit for (dtype, _), row in rows.items() if dtype == "bfloat16"} == {"fp32:lanes(4):fma"}
    assert rows["float32", "24 x 96 x 16"].fit == "fp32:fma"
    assert everything.without_tree == [
        "mm float32 [5, 1000, 7]: the elements add in several orders; the tree is that of the first one"
    ]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_revealed_trees_give_recorded_products(dtype):
    """The tree that masks reveal, and nothing else, gives every bit of the product of its shape."""
    read = load(RECORDINGS / "zen3_products.npz")
    whole, right = list(read.records), []
    for revealed in Orders.of_bundle(read).found.values():
        shape, tree = revealed.shape, revealed.tree
        if revealed.dtype != dtype or shape == (5, 1000, 7):
            continue
        read.records = [item for item in whole if item["op"] == "aten.mm.default" and item["kind"] == "call"]
        read.records = [item for item in read.records if (Call(read, item).dtype, Call(read, item).shape) == (dtype, shape)]
        # MKL multiplies small matrices without fused multiply-adds.
        products = "rounded" if dtype == "float32" and shape in ((16, 16, 8), (8, 64, 8), (1, 256, 1)) else "fma"
        order = tree.chains() if products == "fma" else tree
        accumulator = Accumulator(format=fpsim.get_format("fp32"), order=order, products=products)
        found = fpsim.crosscheck(read, accumulate=accumulator)
        assert [row.equal for row in found.rows] == [True], (shape, str(found.rows[0].first))
        right.append(shape)
    assert len(right) >= 6


@pytest.mark.parametrize("name, count", [("zen5_products_halves", 24), ("zen5_products_float32", 12)])
def test_every_recorded_product_of_a_processor_with_avx512_bf16(name, count):
    """Matrices and vectors in float16, bfloat16 (through VDPBF16PS) and float32, all bits, with each element's own order."""
    found, everything = differing(name)
    assert not found and len(everything.rows) == count and not everything.without_tree
    assert "avx512_bf16" in everything.environment["processor"]["instructions"]
    several = {(item.op.split(".")[1], item.dtype): item.orders for item in everything.masks if len(item.trees) > 1}
    if name == "zen5_products_float32":  # MKL adds otherwise below the diagonal of four rows, and in the last row
        assert set(several) == {("mm", "float32"), ("mv", "float32")}
        assert np.array_equal(several["mm", "float32"], np.pad(np.tri(4, 4, -1), ((0, 1), (0, 3))))
        assert several["mv", "float32"].ravel().tolist() == [0] * 32 + [1]
    else:
        fits = {row.fit for row in everything.rows if row.op == "aten.mm.default" and row.dtype == "float16"}
        assert fits == {"fp32:lanes(4)"}


def test_products_through_the_bfloat16_instruction():
    """The unit alone, without a tree that masks revealed, gives every bit of the long sums that oneDNN does not cut."""
    read = load(RECORDINGS / "zen5_products_halves.npz")
    read.records = [item for item in read.records if item["kind"] == "call" and item["op"] == "aten.mm.default"]
    rows = fpsim.crosscheck(read, accumulate="avx512_bf16").rows
    equal = {row.shape for row in rows if row.dtype == "bfloat16" and row.equal}
    assert equal >= {"33 x 100 x 17", "64 x 64 x 64", "32 x 512 x 32"}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_recorded_elementwise(dtype):
    """Correctly rounded operations are equal; what torch rounds twice, or whose zero has another sign, is counted."""
    found, everything = differing("zen3_elementwise")
    own = {key[0]: count for key, count in found.items() if key[1] == dtype}
    assert own == {"float16": {"lerp": 5, "add": 379}, "bfloat16": {"addcmul": 2, "lerp": 21, "add": 367}}[dtype]
    fits = {row.op: row.fit for row in everything.rows if row.section == "scalars" and row.dtype == dtype}
    assert fits["aten.sub.Tensor"] == fits["aten.rsub.Scalar"] == 'granularity="primitive"'  # scalars are rounded first
    assert fits["aten.mul.Tensor"] == ""


def test_recorded_kernels():
    found, everything = differing("zen3_kernels")
    equal = {(row.op.split(".")[1], row.dtype) for row in everything.rows if row.equal}
    for dtype in ("float16", "bfloat16"):
        wanted = "sum mean cumsum var native_layer_norm native_group_norm convolution avg_pool2d mul_"
        assert {(op, dtype) for op in wanted.split()} <= equal
    # torch keeps statistics of half batches in half precision, and gradients of convolutions in an order of its own.
    for op in ("native_batch_norm", "convolution_backward"):
        assert found[op, "float16", ""] > 300, op
    first = next(row for row in everything.rows if row.op == "aten._softmax.default" and row.dtype == "float16")
    assert str(first.first) == "[3, 41]: 0x233a -> 0x2339 (0.0141144 -> 0.0141068, -1 ulp)"


@pytest.mark.exhaustive
def test_recordings_do_not_depend_on_instructions():
    """The same rows from kernels compiled for a processor without F16C, FMA and AVX: a level of `test_processors.py`."""
    code = (
        "import fpsim, sys\n"
        "for name in ('conversions', 'elementwise', 'products'):\n"
        "    found = fpsim.crosscheck(f'{sys.argv[1]}/zen3_{name}.npz')\n"
        "    print([(row.op, row.dtype, row.shape, row.differing, row.fit, str(row.first)) for row in found.rows])\n"
    )
    outputs = []
    older = next(environment_of(*row.values[:2]) for row in LEVELS if row.values[0] == "x86 without FMA")
    for env in ({**os.environ, "PYTHONWARNINGS": "ignore"}, older):
        command = [sys.executable, "-c", code, str(RECORDINGS)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    assert outputs[0] == outputs[1]


# Machines that are simulated: the recorder runs inside emulation, and the cross-check must find out which.


@pytest.fixture
def short_suite(monkeypatch):
    monkeypatch.setattr(suite, "SHAPES", ((16, 16, 8), (33, 100, 17), (64, 64, 64)))
    monkeypatch.setattr(masks, "SHAPES", ((16, 16, 8), (8, 40, 4)))
    monkeypatch.setattr(suite, "_FLOATS", (torch.float16,))
    monkeypatch.setattr(masks, "DTYPES", (torch.float16,))


@pytest.mark.parametrize(
    "machine, fit",
    [
        ("h100", "h100 (as h100_mma, b200, b200_mma)"),
        ("a100", "a100 (as ada, t4)"),
        ("h100:fp16", "h100:fp16 (as h100_mma:fp16, b200:fp16, b200_mma:fp16)"),
        ("a100:split(3)", "a100:split(3) (as ada, t4)"),
        ("mi300", "mi300"),
        ("fp32:blocked(64)", "fp32:blocked(64)"),
    ],
)
def test_a_simulated_machine_is_found(short_suite, tmp_path, machine, fit):
    with fpsim.emulate(fmt="native", accumulate=machine):
        record(tmp_path / "a.npz", "cpu", ["products"])
    found = fpsim.crosscheck(tmp_path / "a.npz")
    assert found.equal
    products = [row for row in found.rows if row.op == "aten.mm.default" and row.shape != "16 x 16 x 8"]
    assert len(products) == 3 and {row.fit for row in products} == {fit}
    assert fpsim.crosscheck(tmp_path / "a.npz", accumulate=machine).equal
    other = fpsim.crosscheck(tmp_path / "a.npz", accumulate="ada" if machine == "h100" else "h100")
    assert not other.equal and all(row.fit != fit for row in other.rows if row.op == "aten.mm.default")


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "machine, trees",
    [
        ("a100", {16: (tuple(range(8)), *range(8, 16))}),
        ("fp32:lanes(2)", {16: None, 40: None}),
    ],
)
def test_masks_of_a_simulated_machine_give_its_tree(short_suite, tmp_path, machine, trees):
    with fpsim.emulate(fmt="native", accumulate=machine):
        record(tmp_path / "a.npz", "cpu", ["masks"])
    found = fpsim.crosscheck(tmp_path / "a.npz")
    assert not found.without_tree
    own = [item for item in found.masks if item.dtype == "float16"]
    mine = {item.shape[1]: item.tree for item in own if item.op == "aten.mm.default"}
    assert set(mine) == {16, 40} and all(len(item.trees) == 1 for item in own)
    vectors = {item.op: item.shape for item in own if item.op != "aten.mm.default"}
    assert vectors == {"aten.mv.default": (33, 100, 1), "aten.dot.default": (1, 100, 1)}
    for terms, nested in trees.items():
        wanted = fpsim.Tree.from_nested(nested) if nested is not None else fpsim.get_accumulator(machine)(terms)
        assert mine[terms] == wanted.canonical()


def test_elements_that_add_in_several_orders(short_suite, tmp_path, monkeypatch):
    """A library that gives the last rows and columns of a product to another kernel."""
    orders = ["fp32", "fp32:lanes(4)", "fp32:pairwise"]

    def product_in_parts(a, b):
        parts = []
        for accumulate in orders:
            with fpsim.emulate(fmt="native", accumulate=accumulate):
                parts.append(torch.mm(a, b))
        found, where = parts[0].clone(), np.zeros(found_shape := parts[0].shape, int)
        where[found_shape[0] // 2 :], where[:, -1] = 1, 2
        for number in (1, 2):
            place = torch.from_numpy(where == number)
            found[place] = parts[number][place]
        product_in_parts.where = where
        return found

    monkeypatch.setitem(masks.MULTIPLY, "aten.mm.default", product_in_parts)
    monkeypatch.setattr(masks, "SHAPES", ((8, 40, 4),))
    bundle = record(tmp_path / "masks.npz", "cpu", ["masks"])
    torch.manual_seed(0)
    x, y = torch.randn(8, 20).half(), torch.randn(20, 4).half()
    a, b = torch.cat([x, x], 1), torch.cat([y, -y])  # sums of nothing but rounding errors
    with recording(tmp_path / "calls.npz"):
        torch.mm(a, b)
    calls = with_results(load(tmp_path / "calls.npz"), [product_in_parts(a, b)])
    (revealed,) = (item for item in fpsim.crosscheck(bundle).masks if item.op == "aten.mm.default")
    trees = [fpsim.get_accumulator(name)(40).canonical() for name in orders]
    number = {0: trees.index(revealed.trees[0]), 1: trees.index(revealed.trees[1]), 2: trees.index(revealed.trees[2])}
    assert sorted(number.values()) == [0, 1, 2]
    assert np.array_equal(np.vectorize(number.get)(revealed.orders), product_in_parts.where)
    calls.records += [item for item in bundle.records if item["kind"] == "masks" and item["op"] == "aten.mm.default"]
    for item in calls.records:  # the tables of one file, in the other
        for key in ("survivors", "orders") if item["kind"] == "masks" else ():
            item[key] = calls.add_tensor(*bundle.tensors[item[key]])
        if item["kind"] == "masks":
            item["others"] = [calls.add_tensor(*bundle.tensors[which]) for which in item["others"]]
    (row,) = fpsim.crosscheck(calls).rows
    assert row.equal and row.fit.startswith("revealed tree,") and not fpsim.crosscheck(calls, accumulate="fp32").equal


def test_tables_that_do_not_fit_their_product_are_refused():
    bundle = load(RECORDINGS / "zen5_products_float32.npz")
    bundle.records = [item for item in bundle.records if item["kind"] == "masks" and "others" in item]
    assert len(bundle.records) == 2
    for item in bundle.records:
        item["others"] = item["others"][1:]
    assert all("the tables do not fit the shape" in reason for reason in fpsim.crosscheck(bundle).without_tree)


def with_results(bundle, results):
    """The bundle with other results of its calls, in order."""
    for item, result in zip(bundle.records, results, strict=True):
        shape, values = tuple(result.shape), np.ascontiguousarray(result)
        bits = values.view(f"u{values.itemsize}").reshape(-1)
        number = bundle.add_tensor(values.dtype.name, shape, (shape[1], 1), bits)
        item["result"] = {"tensor": number}
    return bundle


@pytest.mark.parametrize("rounding", ["toward-zero", "nearest-away"])
def test_tf32_operands_are_found(tmp_path, rounding):
    """float32 matrices through a tensor core that takes them as tf32."""
    generator = np.random.default_rng(0)
    a, b = (generator.standard_normal(shape).astype(np.float32) for shape in ((9, 64), (64, 12)))
    with recording(tmp_path / "a.npz"):
        torch.from_numpy(a) @ torch.from_numpy(b)
    rounded = [fpsim.round(x, "tf32", rounding) for x in (a, b)]
    bundle = with_results(load(tmp_path / "a.npz"), [product(*rounded, unit="a100", fmt="tf32")])
    (row,) = fpsim.crosscheck(bundle).rows
    assert row.equal and row.fit == f"a100, tf32 operands {rounding} (as ada)"


class Library:
    """Stands for the compiled CUDA source: each instruction as a unit computes it."""

    def __init__(self, unit):
        self.unit = unit

    def run(self, number, a, b, c, d, tiles):
        _, operand, output, terms, _ = instructions.INSTRUCTIONS[number]
        shapes = ((tiles, 16, terms), (tiles, terms, 8), (tiles, 16, 8))
        dtypes = [getattr(torch, name) for name in (operand, operand, output)]
        given = []
        for pointer, shape, dtype in zip((a, b, c), shapes, dtypes, strict=True):
            memory = bytearray(ctypes.string_at(pointer, int(np.prod(shape)) * dtype.itemsize))
            given.append(torch.frombuffer(memory, dtype=dtype).reshape(shape).float().numpy())
        fmt = {"float32": "tf32", "float8_e4m3fn": "e4m3fn", "float8_e5m2": "e5m2"}.get(operand, operand)
        unit = f"{self.unit}:{'fp16' if output == 'float16' else 'fp32'}"
        results = np.stack([product(x, y, unit=unit, fmt=fmt, addend=z) for x, y, z in zip(*given, strict=True)])
        bits = torch.from_numpy(results).to(dtypes[2]).contiguous()
        ctypes.memmove(d, bits.data_ptr(), bits.numel() * bits.element_size())
        return 0


@pytest.mark.parametrize("unit", ["a100", "ada", "h100_mma"])
def test_instructions_of_a_simulated_machine_are_found(unit):
    bundle = Bundle({"flags": flags()})
    recorder = CallRecorder(bundle, 1 << 24)
    probe = suite.Probe(torch.device("cpu"), recorder)
    for number, (name, operand, output, terms, _) in enumerate(instructions.INSTRUCTIONS):
        if unit == "a100" and operand.startswith("float8"):
            continue
        for kind in ("narrow", "wide", "cancelling", "special"):
            record = {"kind": "instruction", "section": "instructions", "op": f"mma.sync {name}"}
            instructions.record_instruction(recorder, Library(unit), probe, number, kind, operand, output, terms, record)
    found = fpsim.crosscheck(bundle)
    assert found.equal and len(found.rows) == (4 if unit == "a100" else 8)
    fits = {row.op.split()[1]: row.fit for row in found.rows}
    assert fits["m16n8k16.f32.f16.f16.f32"] == {"h100_mma": "h100 (as h100_mma, b200, b200_mma)"}.get(unit, "a100 (as ada, t4)")
    if unit != "a100":
        fp8 = fits["m16n8k32.f16.e4m3.e4m3.f16"]
        assert fp8 == {"ada": "ada:fp16", "h100_mma": "h100_mma:fp16 (as b200_mma:fp16)"}[unit]
    forced = fpsim.crosscheck(bundle, accumulate="v100").rows
    assert [row.equal for row in forced][:3] == [False, False, None] and forced[2].skipped == {"no unit takes it": 1}


# Differences.


def test_one_bit_is_found(tmp_path):
    """A bundle whose results differ from emulation in one known bit."""
    x = torch.linspace(-3, 3, 60).half().reshape(6, 10)
    with fpsim.emulate(fmt="native"), recording(tmp_path / "a.npz"):
        x.exp()
    assert fpsim.crosscheck(tmp_path / "a.npz").equal
    read = load(tmp_path / "a.npz")
    number = read.records[0]["result"]["tensor"]
    dtype, shape, strides, bits = read.tensors[number]
    changed = bits.copy()
    changed[23] += 3
    read.tensors[number] = (dtype, shape, strides, changed)
    row = fpsim.crosscheck(read).rows[0]
    assert (row.equal, row.differing, row.elements) == (False, 1, 60)
    assert row.first.index == (2, 3) and row.first.ulps == -3
    assert row.first.recorded == row.first.emulated + 3 == int(changed[23])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_ulps_count_values(dtype):
    one, tiny = torch.ones(1, dtype=dtype), torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    least = torch.full((1,), tiny, dtype=dtype)
    assert compare(one, one) is None
    assert compare(one, torch.nextafter(one, 2 * one) if dtype.itemsize > 2 else one + torch.finfo(dtype).eps).ulps == 1
    assert compare(-least, least).ulps == 2 and compare(least, 0 * least).ulps == -1
    zeros = compare(torch.zeros(1, dtype=dtype), -torch.zeros(1, dtype=dtype))
    assert zeros.count == 1 and zeros.ulps == 0
    nan = torch.full((1,), float("nan"), dtype=dtype)
    assert compare(nan, -nan) is None and compare(nan, one).ulps is None
    with pytest.raises(ValueError, match="recorded"):
        compare(one, torch.ones(2, dtype=dtype))


def test_what_has_no_rule_is_said(tmp_path):
    x = torch.ones(4, 4)
    with recording(tmp_path / "a.npz"):
        torch._addmm_activation(x[0], x, x)
        torch.fft.fft(x)
        x.exp()
    rows = {row.op: row for row in fpsim.crosscheck(tmp_path / "a.npz").rows}
    assert rows["aten._addmm_activation.default"].skipped == {"no rule for it": 1}
    assert any("complex64" in reason for row in rows.values() for reason in row.skipped)
    assert [op for op, row in rows.items() if row.equal is not None] == ["aten.exp.default"]


def test_only_operations_of_the_table_are_called():
    """A bundle names an operation; whatever it names, nothing without a rule is ever called."""
    bundle = Bundle({"flags": {}})
    call = {"kind": "call", "section": "model", "args": [], "kwargs": {}, "result": None, "written": {}, "flags": {}}
    bundle.records += [call | {"op": op} for op in ("aten.from_file.default", "os.system", "aten.add.__class__")]
    assert all(row.skipped == {"no rule for it": 1} for row in fpsim.crosscheck(bundle).rows)


# A user's own model.


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.ReLU(), torch.nn.LayerNorm(30), torch.nn.Linear(30, 4))


def recorded_on(machine, path):
    """The network's training step as a machine computes it, recorded."""
    model = network().half()
    x = torch.randn(7, 40).half()
    with fpsim.emulate(fmt="native", accumulate=machine), recording(path, model):
        model(x).float().pow(2).sum().backward()
    return path


def test_the_first_operation_that_differs(tmp_path):
    path = recorded_on("h100:fp16", tmp_path / "a.npz")
    same = fpsim.run(network(), fmt="fp16", accumulate="h100:fp16").crosscheck(path)
    assert same.first is None and "no operation differs" in str(same)
    other = fpsim.run(network(), fmt="fp16", accumulate="a100:fp16").crosscheck(path)
    assert other.first.number == 0 and other.first.op == "aten.addmm.default" and other.first.place == "0"
    assert "the first is number 0, aten.addmm.default in 0: " in str(other)
    # Every operation is judged on its recorded operands: what follows the first difference is equal again.
    assert any(step.equal for step in other.steps[1:])
    native = fpsim.run(network().half(), fmt="native", accumulate="h100:fp16").crosscheck(path)
    assert [step.equal for step in native.steps] == [step.equal for step in same.steps]


def test_a_simulation_of_other_dtypes_says_so(tmp_path):
    path = recorded_on("fp32", tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"the bundle holds .*float16.* and this simulation is fmt='bf16': record model.half"):
        fpsim.run(network(), fmt="bf16").crosscheck(path)
    assert crosscheck_model(path, fpsim.run(network(), fmt="fp16").policy).steps


# The command line.


def shell(*words):
    return CliRunner().invoke(cli, words, env={"COLUMNS": "160"})


def test_the_command_line(tmp_path, quick_children):
    script, target = tmp_path / "script.py", str(tmp_path / "a.npz")
    script.write_text(
        "import torch\ntorch.manual_seed(0)\nmodel = torch.nn.Linear(64, 3).half()\ninputs = torch.randn(5, 64).half()\n"
    )
    made = shell("record", "--model", f"{script}:model", "-o", target)
    assert made.exit_code == 0 and made.stdout.startswith(f"{target}: 1 records"), made.output
    read = shell("crosscheck", target)
    assert read.exit_code == 0 and "1 of 1 operations compared" in read.stdout
    assert "addmm.default" in read.stdout and "recorded on " in read.stdout
    forced = shell("crosscheck", target, "--accumulate", "mi250", "--differing")
    assert forced.exit_code == 0 and "accumulate=mi250" in forced.stdout
    Path(target).write_bytes(Path(target).read_bytes()[:500])
    cut = shell("crosscheck", target)
    assert cut.exit_code == 2 and "is no bundle, or it is cut short" in cut.stderr
    missing = shell("record")
    assert missing.exit_code == 2 and "record needs -o" in missing.stderr
    assert shell("record", "-o", target, "--section", "none").exit_code == 2


# A processor with AVX512-BF16: oneDNN's products through VDPBF16PS.


def test_bf16_products_of_this_processor(tmp_path):
    """torch.bfloat16 products here equal the chain of VDPBF16PS pairs, or AMX's halves, where the processor has either."""
    cpu = Path("/proc/cpuinfo")
    if not cpu.exists() or "avx512_bf16" not in cpu.read_text():
        pytest.skip("this processor has no AVX512-BF16")
    record(tmp_path / "a.npz", "cpu", ["products"])
    rows = [row for row in fpsim.crosscheck(tmp_path / "a.npz").rows if row.op == "aten.mm.default" and row.dtype == "bfloat16"]
    equal = [row for row in rows if row.equal]
    fits = [(row.shape, row.fit, row.differing) for row in rows]
    unit = "amx_bf16" if "amx_bf16" in cpu.read_text() else "avx512_bf16"
    assert len(equal) >= 3 and any(unit in row.fit for row in equal), fits


def test_bf16_products_by_amx():
    """Cancelling, tiny and widely spread factors, through torch's own product: sums as TDPBF16PS makes them."""
    cpu = Path("/proc/cpuinfo")
    if not cpu.exists() or "amx_bf16" not in cpu.read_text():
        pytest.skip("this processor has no AMX-BF16")
    generator, size = torch.Generator().manual_seed(1), 128
    for leaves in (32, 96, 256):
        a, b = torch.randn(size, leaves, generator=generator), torch.randn(leaves, size, generator=generator)
        again = torch.randperm(leaves // 2, generator=generator)
        nudge = 1 + 2.0**-7 * torch.randint(-1, 2, (leaves // 2, size), generator=generator).float()
        cancelling = (
            torch.cat([a[:, : leaves // 2], a[:, : leaves // 2][:, again]], 1),
            torch.cat([b[: leaves // 2], -b[: leaves // 2][again] * nudge]),
        )
        spread = torch.exp2(torch.randint(-12, 12, a.shape, generator=generator).float())
        tiny = torch.exp2(torch.randint(-62, -50, b.shape, generator=generator).float())
        for left, right in ((a, b), cancelling, (a * spread, b), (a * 2.0**-70, b * tiny)):
            left, right = left.bfloat16(), right.bfloat16()
            made = fpsim.matmul(left.float(), right.float(), fmt="bf16", accumulate="amx_bf16")
            assert torch.equal(made.view(torch.int32), (left @ right).float().view(torch.int32))

