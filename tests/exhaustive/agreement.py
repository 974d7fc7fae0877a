"""Every operation that torch has for float16 on the CPU, against the emulation; run as a script it writes the page."""

import argparse
import json
import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

import fpsim
from fpsim.emulation import UnsupportedOp
from fpsim.emulation.schemas import names
from tests.operators import (
    SAVES_STATISTICS,
    UNSUPPORTED,
    UNWRITTEN,
    array_of,
    evaluate,
    indices,
    op_db,
    samples_of,
    switched,
    widened,
)

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "agreement.md"
#: The instructions that torch's kernels are held to for the page, so that every processor that has them writes the same one.
LEVEL = "AVX2"
HELD = {"ATEN_CPU_CAPABILITY": LEVEL.lower(), "ONEDNN_MAX_CPU_ISA": LEVEL}
HALF = torch.float16
DIFFERENCES = """\
## Where fpsim differs from the CPU on purpose

- A float64 tensor's `.half()` rounds once; torch on a CPU rounds twice, through float32 (1 + 2^-11 + 2^-40 becomes 1).
- Python numbers stay in fp32 in arithmetic, as in CUDA's kernels; the CPU's round them first in `x + 0.3`,
  `torch.mul(0.3, x)`, `torch.div(0.3, x)`, `add(alpha=...)` and divisions that truncate. Comparisons, `fmod`, `remainder`,
  `pow`, `isin` and what else both compute in the tensor's dtype see the number rounded to it; torch's
  `isin(number, tensor)` sorts long tensors in float32 and does not.
- `nll_loss` with a mean over more targets than float16 counts: the CPU's total weight overflows. CUDA's kernel
  (`aten/src/ATen/native/cuda/Loss.cu`) adds losses and weights in float32 and divides there, so does fpsim; it then
  stores the total weight in float16, so that its gradients become 0 where it overflows; fpsim's stays wide, and they do not.
  Its kernel for images (`NLLLoss2d.cu`) divides by the stored total and loses the mean too.
"""
ATTENTION = """\
## Attention

`scaled_dot_product_attention` in float16 and bfloat16 is one kernel with one rounding of its result, here as in torch. Both
leave the scores of queries and keys wide, and both round the probabilities to 16 bits before they multiply the values: torch
before it divides them by their sum, fpsim after. So results differ in their last places, by no more than each differs from
float64's: where queries and keys are of size 6 in bfloat16 (64 of 64 channels), torch errs by at most 0.008 and fpsim by 0.012;
rounding the scores too, as `torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)` asks for, errs by 0.33.

One kernel costs no more than the products and the softmax one by one: forward and backward of (1, 8, 256, 64), causal, in bf16
with fp32 accumulation, took 0.52 s, and 0.64 s in single operations (medians of 7 on two cores of a Xeon with AVX-512, which
others used too: the second digit is noise).
"""
SAMPLES, LARGEST = 12, 20_000

#: Operations that draw: torch draws float16 numbers in another way than float32 ones.
DRAWN = frozenset(
    names(
        """
        normal uniform randn randn_like rand_like randint randint_like bernoulli cauchy exponential geometric log_normal
        multinomial nn.functional.rrelu nn.functional.dropout nn.functional.dropout2d nn.functional.dropout3d
        nn.functional.alpha_dropout nn.functional.feature_alpha_dropout_with_train
        nn.functional.feature_alpha_dropout_without_train svd_lowrank pca_lowrank
        """
    )
)


@dataclass
class Row:
    """Counts of an operation's elements: all, those that differ, those beyond an ulp, those of them that torch has better.

    `torch_error` and `own_error` are the largest distances to float64's result, in ulps, among those beyond an ulp.
    """

    name: str
    elements: int = 0
    differ: int = 0
    beyond: int = 0
    worse: int = 0
    torch_error: float = 0.0
    own_error: float = 0.0

    def __str__(self):
        errors = f"{self.torch_error:.3g} | {self.own_error:.2g}" if self.beyond else " | "
        return f"| {self.name} | {self.elements} | {self.differ} | {self.beyond} | {errors} |"


def _places(array):
    """The place of each float16 among all of them, so that neighbors differ by 1; both zeros are in place 0."""
    bits = array.view(np.int16).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFF), bits)


def _ulps(array, wide):
    """Distances to a float64 result in ulps of float16; 0 where it overflows and so does the array."""
    with np.errstate(all="ignore"):
        exponent = np.where(wide == 0, -14, np.floor(np.log2(np.abs(wide))))
        distance = np.abs(array.astype(np.float64) - wide) / 2.0 ** (np.maximum(exponent, -14) - 10)
        beyond = np.where(np.abs(wide) >= 65520, np.copysign(np.inf, wide), wide)
    same = (array == beyond) | (np.isnan(array) & np.isnan(wide))
    return np.where(same, 0.0, np.where(np.isnan(distance), np.inf, distance))


def _compare(row, own, plain, wide):
    a, b = array_of(own), array_of(plain)
    both, either = np.isnan(a) & np.isnan(b), np.isnan(a) | np.isnan(b)
    apart = np.where(both, 0, np.where(either, 1 << 20, np.abs(_places(a) - _places(b))))
    row.elements += a.size
    row.differ += int((apart > 0).sum())
    far = apart > 1
    if far.any():
        ours, theirs = (_ulps(x, array_of(wide))[far] for x in (a, b))
        row.beyond += int(far.sum())
        row.worse += int((ours > theirs).sum())
        row.torch_error = max(row.torch_error, float(theirs.max()))
        row.own_error = max(row.own_error, float(ours.max()))


def row_of(index):
    """What comparing an operation's samples counts; None if there is nothing to compare."""
    op = op_db[index]
    row = Row(op.formatted_name)
    for sample in samples_of(index, HALF, SAMPLES):
        try:
            plain, _ = evaluate(op, sample, switched(), dtype=HALF)
        except (RuntimeError, NotImplementedError, ValueError, IndexError):
            continue
        plain = plain[: 1 if op.name in SAVES_STATISTICS else None]
        if not plain or max(item.numel() for item in plain) > LARGEST:
            continue
        try:
            own, _ = evaluate(op, sample, fpsim.emulate("native", "fp32"), dtype=HALF)
        except UnsupportedOp:
            assert op.name in UNSUPPORTED or "sparse" in str(sample.kwargs)
            continue
        try:
            wide, _ = evaluate(op, sample, switched(), widened, torch.float64)
        except RuntimeError:  # float64 is refused
            wide = plain
        for tensors in zip(own, plain, wide, strict=False):
            _compare(row, *tensors)
    return row if row.elements else None


def compared():
    """The places in `op_db` of what is compared."""
    return [index for index in indices(HALF) if op_db[index].name not in UNWRITTEN | DRAWN]


def measured(part, parts, held=True):
    """(rows of every so many operations, from that one on; the level of instructions that torch used), by a process of its own.

    Only there torch can be held to the page's level.
    """
    command = [sys.executable, "-m", "tests.exhaustive.agreement", "--part", f"{part}", f"{parts}"]
    env = {**os.environ, **(HELD if held else {})}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    level, *rows = map(json.loads, done.stdout.splitlines())
    return [Row(**row) for row in rows], level


def print_part(part, parts):
    """What `measured` reads."""
    print(json.dumps(torch.backends.cpu.get_cpu_capability()))
    for row in map(row_of, compared()[part::parts]):
        if row is not None:
            print(json.dumps(asdict(row)))


def page(rows):
    """The page, from a row for each operation that was compared."""
    same = [row for row in rows if not row.differ]
    near = [row for row in rows if row.differ and not row.beyond]
    far = [row for row in rows if row.beyond]
    head = ["| operation | elements | differ | beyond one ulp | torch's error there (ulps) | fpsim's |", "| --- " * 6 + "|"]
    refused = [f"| `{name}` | {reason} |" for name, reason in sorted(UNSUPPORTED.items())]
    lines = [
        "# Agreement with torch.half, and what does not run",
        "",
        f"Results of torch's operator database in float16 (at most {SAMPLES} samples an operation),",
        by_torch(),
        'and by fpsim under `fmt="native"`, `accumulate="fp32"`. Errors are distances to the result in float64.',
        "Operations that draw numbers are left out. Written by `python -m tests.exhaustive.agreement`.",
        "",
        f"{len(same)} operations agree bit for bit, {len(near)} within one ulp, {len(far)} have elements beyond it:",
        "there torch's kernels keep partial results in float16, or add in an order that loses more. In every such element",
        "fpsim is at least as near to float64's result as torch, but for those of the last table.",
        "",
        "## Within one ulp",
        "",
        *head,
        *map(str, near),
        "",
        "## Beyond one ulp",
        "",
        *head,
        *(str(row) for row in far if not row.worse),
        "",
        "## Beyond one ulp, and torch nearer in some elements",
        "",
        "Operations with results inside that are rounded to float16 in both.",
        "",
        *head,
        *(str(row) for row in far if row.worse),
        "",
        ATTENTION,
        "## The same bits",
        "",
        ", ".join(f"`{row.name}`" for row in same),
        "",
        DIFFERENCES,
        "## What does not run",
        "",
        "Operations of the database that take float32 and raise `UnsupportedOp` on some sample, in results or gradients:",
        "",
        "| operation | reason |",
        "| --- | --- |",
        *refused,
        "",
    ]
    return "\n".join(lines)


def by_torch():
    """The line of the page that says what it was written with."""
    return f"by torch {torch.__version__.split('+')[0]} on a CPU with {LEVEL}"


def write(processes):
    """The page anew."""
    with ThreadPoolExecutor(processes) as pool:
        parts = list(pool.map(lambda part: measured(part, processes), range(processes)))
    if any(level != LEVEL for _, level in parts):
        raise SystemExit(f"this processor has no {LEVEL}, with which the page is written")
    places = {op_db[index].formatted_name: place for place, index in enumerate(compared())}
    PAGE.write_text(page(sorted((row for rows, _ in parts for row in rows), key=lambda row: places[row.name])))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", nargs=2, type=int, help="print what one of so many parts gives")
    chosen = parser.parse_args().part
    if chosen:
        print_part(*chosen)
    else:
        write(os.cpu_count())
