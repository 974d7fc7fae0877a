"""Reports as an emulation could have made them, for tests of what shows them."""

import math
from dataclasses import replace

from fpsim.numbers.formats import get_format
from fpsim.report.counts import Counts, Error, Histogram, Range
from fpsim.report.records import (
    PARTS,
    Distribution,
    Event,
    Fix,
    Limits,
    Link,
    Measurement,
    Module,
    Place,
    Row,
    Treatment,
)
from fpsim.report.report import Report

FP16 = Limits.of(get_format("fp16"))
POLICY = "fmt=fp16, accumulate=fp32, rounding=nearest-even, granularity=kernel"
#: Means something to HTML, to JavaScript in HTML, to the markup of rich, and to a terminal.
HOSTILE = "blocks.<b>&\"'[red]x[/red]</script><!--\x1b[2J"
SQUARE = Place("models/net.py", 41, "forward", "energy = scores.square().mean()")


def quiet(steps=0):
    """Of an emulation that has computed nothing yet, of a model without parameters."""
    return Report(POLICY, limits=(FP16,), observed=PARTS, steps=steps, modules=(Module("", "Identity"),))


def row(module, operation, phase, layer, **counts):
    exponent = 4 - 2 * (layer % 8)
    return Row(
        module, operation, phase, Counts(elements=4096, **counts), "fp16",
        Range(2.0 ** (exponent + 3), 2.0 ** (exponent - 17)),
        Error(4096, 1e-6 * (layer + 1), 4.0, 0.5), Error(4096, 4e-6 * (layer + 1) ** 2, 4.0, 2.0 * layer + 0.5),
        Place("models/net.py", 20 + layer, "forward", f"x = self.layers[{layer}](x)"),
    )  # fmt: skip


def spread(center, width=9):
    counts = tuple(int(4096 * math.exp(-((i - width) ** 2) / width)) for i in range(2 * width + 1))
    return Histogram(center - width, counts, zeros=12)


def broken(layers=4):
    """Of a network that overflows in a square at step 5, and whose last weight stops at step 7."""
    paths = [f"layers.{i}" for i in range(layers - 1)] + [HOSTILE]
    rows = [row("", "aten.mean", "forward", 0)]
    rows += [row(path, "addmm", "forward", i, subnormals=7 * i, additions=10**6, swamped=9 * i) for i, path in enumerate(paths)]
    rows.append(row(paths[1], "square", "forward", 1, overflows=3, made=3, nonfinite=3))
    rows += [row(path, "mm", "backward", i, underflows=100 * i) for i, path in enumerate(paths)]
    rows += [row(path, "_foreach_add_", "optimizer", i, updates=900, lost=50 * i) for i, path in enumerate(paths)]
    rows.append(replace(rows[1], operation="softmax", range=Range(), local=None, cumulative=Error(4, 1.0, 0.0), place=None))
    distributions = [
        Distribution(path, role, "fp16", spread(center - 3 * (i % 4)))
        for i, path in enumerate(paths)
        for role, center in (("weight", -4), ("activation", 2), ("gradient", -14))
    ]
    overflow = Event(
        "overflow", 5, paths[1], "square", "forward", SQUARE, (3, 17), (("scores[3, 17]", 260.0),), 67600.0, math.inf,
        "fp16", 3, 4096, "260 * 260 = 67600 is beyond 65504, the largest number of fp16, and became infinity.",
        (Link(paths[0], "addmm", "forward", "made 260", Place("models/net.py", 20)), Link(paths[1], "square")),
    )  # fmt: skip
    return Report(
        POLICY, tuple(rows), (FP16,), PARTS, 12,
        (Module("", "Net", 0), *(Module(path, "Linear", 4096) for path in paths)),
        tuple(distributions),
        (
            overflow,
            replace(overflow, kind="nonfinite", text="The square of 260 became infinity."),
            Event("passed-on", 5, "", "aten.mean", "forward", SQUARE, text="An infinity came in.", rounded=math.nan),
            Event(
                "stopped", 7, HOSTILE, "_foreach_add_", "optimizer", None, (0,), (("weight", 1.0), ("update", -1e-4)),
                0.9999, 1.0, "fp16", 900, 900, f"No element of {HOSTILE}.weight moved.",
            ),
        ),
        (
            Treatment("addmm", "emulated", 48, "products accumulated as `accumulate` says"),
            Treatment("view", "exact", 96, "the same memory"),
            Treatment("argsort", "library", 12, "integers"),
        ),
        Measurement("relative error of the output", 0.31, 0.22, 0.43, 256, 12),
        (
            Fix("Square in fp32", f"fpsim.run(model, fmt={{'*': 'fp16', {paths[1]!r}: 'fp32'}})", True, 2e-3, "12 steps"),
            Fix("Scale the scores", "scores = scores / 8"),
        ),
        tuple(1 / (step + 1) for step in range(12)),
        "FloatingPointError: models/net.py:41",
    )  # fmt: skip
