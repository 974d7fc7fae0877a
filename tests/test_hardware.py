"""Hardware units: recorded results bit for bit, wrong models that must differ, oracles in rationals, and the edges."""

import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import fpsim
from fpsim.accumulation.instructions import Instruction, Output
from fpsim.hardware import UNITS, UnconfirmedUnit, get_unit, product
from fpsim.hardware.table import conversions_markdown, markdown, scaled_markdown
from fpsim.numbers.formats import BF16, FP16, FP32, get_format
from fpsim.numbers.rounding import Rounding
from fpsim.sums.units import blocks, chains, products, steps
from fpsim.sums.units.blocks import around_specials
from fpsim.sums.units.products import unit_product
from fpsim.sums.units.step_kernels import step_product
from tests import units_oracle as oracle
from tests.frequency import often

GOLDEN = Path(__file__).parents[2] / "shared" / "golden" / "tensor_cores"
E8M13 = get_format("e8m13")
CHOICES = [
    (unit.name, fmt, output)
    for unit in UNITS.values()
    for row in unit.instructions
    for fmt in row.operands
    for output in row.outputs
]

pytestmark = pytest.mark.filterwarnings("ignore::fpsim.hardware.UnconfirmedUnit")


def accumulator(unit, output):
    return fpsim.get_accumulator(f"{unit}:{output}")


# Recorded results. (file, array, unit), and mismatches of 5000 with one fraction bit less and with half the block, where
# these models differ at all.
RECORDED = [
    ("v100_fp16", "d_fp32", "v100", 2235, 828),
    ("v100_fp16", "d_fp16", "v100:fp16", None, None),
    ("a100_fp16", "d_fp32", "a100", 1685, 1261),
    ("a100_fp16", "d_fp16", "a100:fp16", None, None),
    ("a100_bf16", "d_fp32", "a100", 1003, 741),
    ("a100_tf32", "d_fp32", "a100", 1173, None),
    ("ada_fp16", "d_fp32", "ada", 1654, 1196),
    ("ada_fp16", "d_fp16", "ada:fp16", None, None),
    ("ada_bf16", "d_fp32", "ada", 950, None),
    ("ada_tf32", "d_fp32", "ada", 1198, None),
    ("ada_e4m3", "d_fp32", "ada", 2706, 999),
    ("ada_e4m3", "d_fp16", "ada:fp16", 659, None),
    ("ada_e5m2", "d_fp32", "ada", 2245, 702),
    ("ada_e5m2", "d_fp16", "ada:fp16", 340, None),
    ("h100_fp16", "d_fp32", "h100", 1175, 1533),
    ("h100_fp16", "d_fp16", "h100:fp16", None, None),
    ("h100_bf16", "d_fp32", "h100", 491, 944),
    ("h100_tf32", "d_fp32", "h100", 498, None),
    ("h100_e4m3", "d_fp32", "h100", 1963, 814),
    ("h100_e5m2", "d_fp32", "h100", 1026, 378),
    ("h100_e4m3", "d_fp16", "h100_mma:fp16", None, 2522),
    ("h100_e5m2", "d_fp16", "h100_mma:fp16", None, 2194),
]


class Recording:
    """One file of recorded dot products, each a row."""

    def __init__(self, file, array):
        path = GOLDEN / f"{file}.npz"
        if not path.exists():
            pytest.skip(f"no recorded results at {GOLDEN}")
        name = file.split("_")[1]
        self.fmt = get_format({"e4m3": "e4m3fn"}.get(name, name))
        with np.load(path) as arrays:
            self.a, self.b, self.c, self.wanted = (arrays[key].view(np.float32) for key in ("a", "b", "c", array))
        if array == "d_fp16":
            self.c = fpsim.round(self.c, "fp16")
        elif file in ("h100_e4m3", "h100_e5m2"):
            self.c = np.zeros_like(self.c)

    def mismatches(self, multiply):
        """How many rows differ in a bit; each tile of rows is a product whose diagonal counts."""
        wrong = 0
        for first in range(0, len(self.a), 50):
            rows = slice(first, first + 50)
            result = multiply(self.a[rows], np.ascontiguousarray(self.b[rows].T), np.diag(self.c[rows]))
            got = np.ascontiguousarray(np.diag(result), np.float32).view(np.uint32)
            wrong += int(np.count_nonzero(got != self.wanted[rows].view(np.uint32)))
        return wrong

    def changed(self, unit, **changes):
        """Mismatches with a row of the unit changed."""
        chosen = fpsim.get_accumulator(unit)
        row = chosen.unit.instruction(self.fmt, chosen.format.name)
        output = row.outputs[chosen.format.name]
        rounding = changes.pop("rounding", output.rounding)
        fields = {"block": row.block, "fraction": row.fraction, **changes}
        other = Instruction(row.operands, row.model, fields["block"], fields["fraction"], {})
        target = Output(output.format, rounding, False, "")

        def multiply(a, b, c):
            return around_specials(a, b, self.fmt, other, target, c.astype(np.float64))

        return self.mismatches(multiply)


@pytest.mark.parametrize("file, array, unit, narrower, halved", RECORDED, ids=lambda value: str(value))
def test_recorded_results(file, array, unit, narrower, halved):
    recording = Recording(file, array)
    assert recording.mismatches(lambda a, b, c: product(a, b, unit=unit, fmt=recording.fmt, addend=c)) == 0
    chosen = fpsim.get_accumulator(unit)
    row = chosen.unit.instruction(recording.fmt, chosen.format.name)
    if narrower is not None:
        assert recording.changed(unit, fraction=row.fraction - 1) == narrower
    if halved is not None:
        assert recording.changed(unit, block=row.block // 2) == halved


@pytest.mark.parametrize(
    "file, unit, wrong", [("v100_fp16", "v100", 649), ("a100_fp16", "a100", 1257), ("h100_fp16", "h100", 1782)]
)
def test_nearest_output_is_wrong(file, unit, wrong):
    assert Recording(file, "d_fp32").changed(unit, rounding="nearest-even") == wrong


def simple(recording, block, fraction, variant=""):
    """Block fused multiply-adds as whole arrays, one dot product a row, in another way than the package; or a wrong variant."""
    a, b, total = (x.astype(np.float64) for x in (recording.a, recording.b, recording.c))

    def exponent(x):
        return np.where(x == 0, -5000, np.maximum(np.frexp(x)[1] - 1, recording.fmt.emin))

    def inward(x):
        nearest = x.astype(np.float32)
        beyond = np.abs(nearest.astype(np.float64)) > np.abs(x)
        return np.where(beyond, np.nextafter(nearest, np.float32(0)), nearest).astype(np.float64) + 0.0

    for first in range(0, a.shape[1], block):
        left, right = a[:, first : first + block], b[:, first : first + block]
        terms, tops = left * right, exponent(left) + exponent(right)
        if variant == "normalized":
            tops = np.where(terms == 0, -5000, np.frexp(terms)[1] - 1)
        addend = np.where(total == 0, -5000, np.frexp(total)[1] - 1)
        if variant != "addend after":
            terms, tops = np.c_[terms, total], np.c_[tops, addend]
        top = np.maximum(tops.max(axis=1, keepdims=True), -900)
        cut = np.floor if variant == "floor" else np.trunc
        whole = np.ldexp(cut(np.ldexp(terms, fraction - top)), top - fraction).sum(axis=1)
        if variant == "addend after":  # to nearest
            total = (inward(whole) + total).astype(np.float32).astype(np.float64)
        else:
            total = inward(whole)
    got = np.ascontiguousarray(total, np.float32).view(np.uint32)
    return int(np.count_nonzero(got != recording.wanted.view(np.uint32)))


@pytest.mark.parametrize(
    "file, block, fraction, floor, normalized, after",
    [("v100_fp16", 4, 23, 857, 793, 1652), ("a100_fp16", 8, 24, 847, 626, 1587), ("h100_fp16", 16, 25, 780, 412, 1495)],
)
def test_wrong_variants_differ_from_recorded_results(file, block, fraction, floor, normalized, after):
    """Truncation to floor, products normalized first, the addend added to nearest after the block."""
    recording = Recording(file, "d_fp32")
    assert simple(recording, block, fraction) == 0
    found = [simple(recording, block, fraction, variant) for variant in ("floor", "normalized", "addend after")]
    assert found == [floor, normalized, after]


# Oracles.


def expected(unit, fmt, output, a, b, c):
    """One element by its definition; a, b, c are rationals, or floats that are not finite."""
    return float(model(unit, fmt, output, a, b, c))


def model(unit, fmt, output, a, b, c):
    chosen = accumulator(unit, output)
    row = chosen.unit.instruction(fmt, output)
    target, mode = row.outputs[output].format, Rounding(row.outputs[output].rounding)
    match row.model:
        case "block":
            return oracle.blocks(a, b, c, fmt, row.block, row.fraction, target, mode)
        case "emulated":
            return oracle.emulated(a, b, c, fmt, row.fraction, target)
        case "chain":
            return oracle.vdpbf16ps(a, b, c) if row.swapped else oracle.chain(a, b, c, target)
        case "halves":
            return oracle.amx(a, b, c, row.flush)
        case "odd pairs":
            return oracle.bfdot(a, b, c)
        case "fused pairs":
            return oracle.bfdot_extended(a, b, c)
        case "exact":
            return oracle.cdna1(a, b, c, row.block)
        case "quads":
            return oracle.cdna2(a, b, c, fmt)
        case "floored" | "floored halves":
            return oracle.cdna3(a, b, c, fmt, row.block, row.model == "floored halves")


def values(fmt, shape, generator, spread):
    """Values of a format with exponents over `spread` binades around 1, some zeros, cancellation in neighbors."""
    x = generator.standard_normal(shape) * 2.0 ** generator.integers(-spread, spread + 1, shape)
    x[generator.random(shape) < 0.1] = 0
    limit = fmt.max_finite if fmt.emax < 127 else 2.0**40
    return fpsim.round(np.clip(x, -limit, limit), fmt).astype(np.float32)


@pytest.mark.parametrize("spread", often([1, 6, 14], [6]))
@pytest.mark.parametrize("unit, name, output", CHOICES, ids=lambda value: value)
def test_against_rationals(unit, name, output, spread):
    fmt, generator = get_format(name), np.random.default_rng([spread, len(unit), len(name)])
    leaves = 45 if spread == 6 else 64
    a, b = values(fmt, (3, leaves), generator, spread), values(fmt, (leaves, 5), generator, spread)
    b[1::2, 0] = -b[0 : 2 * (leaves // 2) : 2, 0]  # neighbors cancel where rows of `a` agree
    a[0, 1::2] = a[0, 0 : 2 * (leaves // 2) : 2]
    target = accumulator(unit, output).format
    c = values(target, (3, 5), generator, spread)
    result = product(a, b, unit=f"{unit}:{output}", fmt=fmt, addend=c)
    for i, j in np.ndindex(*result.shape):
        left, right = ([Fraction(float(v)) for v in x] for x in (a[i], b[:, j]))
        want = expected(unit, fmt, output, left, right, Fraction(float(c[i, j])))
        assert np.array_equal(result[i, j], want, equal_nan=True), (i, j, float(result[i, j]).hex(), want.hex())


PAIRS = [
    (unit.name, first, second, output)
    for unit in UNITS.values()
    for row in unit.instructions
    if row.mixes
    for first in row.operands
    for second in row.operands
    if first != second
    for output in row.outputs
]


@pytest.mark.parametrize("unit, first, second, output", PAIRS, ids=lambda value: value)
def test_two_formats_against_rationals(unit, first, second, output):
    """What is subnormal in one format is normal in the other: an operand's power is that of its own."""
    fmt, generator = (get_format(first), get_format(second)), np.random.default_rng([len(unit), len(first)])
    for shape in ((3, 5), (40, 3)):  # the second is computed transposed
        a, b = values(fmt[0], (shape[0], 45), generator, 9), values(fmt[1], (45, shape[1]), generator, 9)
        c = values(accumulator(unit, output).format, shape, generator, 2)
        result = product(a, b, unit=f"{unit}:{output}", fmt=fmt, addend=c)
        for i, j in [*np.ndindex(3, 3), (shape[0] - 1, shape[1] - 1)]:
            left, right = ([Fraction(float(v)) for v in x] for x in (a[i], b[:, j]))
            want = expected(unit, fmt, output, left, right, Fraction(float(c[i, j])))
            assert np.array_equal(result[i, j], want, equal_nan=True), (i, j)


def test_two_formats_where_they_matter():
    """2^-7 is subnormal in e4m3fn: as an operand of that format it is aligned by 2^-6, and more is truncated."""
    a, b = np.array([[2.0**-7, 1.5 * 2.0**-6]], np.float32), np.array([[1.0], [1.25 * 2.0**-12]], np.float32)
    first = product(a, b, unit="ada", fmt=("e4m3fn", "e5m2"))
    second = product(a, b, unit="ada", fmt=("e5m2", "e5m2"))
    assert first == float(oracle.blocks(*pair_of(a, b), Fraction(0), (get_format("e4m3fn"), get_format("e5m2")), 16, 13, E8M13,
                                        Rounding.TOWARD_ZERO))  # fmt: skip
    assert first != second


def pair_of(a, b):
    return [[Fraction(float(v)) for v in x.reshape(-1)] for x in (a, b)]


def test_two_formats_that_no_instruction_takes():
    one = np.ones((1, 1), np.float32)
    for unit, *fmt in (("h100", "fp16", "bf16"), ("mi300", "fp16", "bf16"), ("a100", "fp16", "tf32"), ("h100", "fp16", "e5m2")):
        with pytest.raises(ValueError, match=f"no instruction for {get_format(fmt[0]).name} and {get_format(fmt[1]).name}"):
            product(one, one, unit=unit, fmt=tuple(fmt))
    products._warned.clear()
    with pytest.warns(UnconfirmedUnit, match="float8_e4m3fn by float8_e5m2 and fp32 output is unconfirmed"):
        product(one, one, unit="ada", fmt=("e4m3fn", "e5m2"))


STEPS = [
    (unit.name, row, name)
    for unit in UNITS.values()
    for row in unit.instructions
    if row.model in steps.MODELS
    for name in row.operands
]


@pytest.mark.parametrize("unit, row, name", STEPS, ids=lambda value: value if isinstance(value, str) else value.model)
def test_kernels_of_steps_equal_the_plain_steps(unit, row, name):
    """Wherever they serve, which they do: operands of one size and of very different ones, all signs, whole blocks or not."""
    fmt, generator, served = get_format(name), np.random.default_rng(len(unit)), 0
    for rows, leaves, columns in ((5, 45, 70), (40, 33, 3), (9, 64, 33)):
        for spread in (0, 3, 8, 14, 40):
            a, b = values(fmt, (rows, leaves), generator, spread), values(fmt, (leaves, columns), generator, spread)
            b[1::2, 0] = -b[0 : 2 * (leaves // 2) : 2, 0]
            a[0, 1::2] = a[0, 0 : 2 * (leaves // 2) : 2]
            for start in (np.zeros((rows, columns)), values(FP32, (rows, columns), generator, spread).astype(np.float64)):
                found = step_product(a, b, fmt, row, start)
                if found is not None:
                    wanted = steps.MODELS[row.model](a, b, fmt, row, start)
                    assert np.array_equal(found.view(np.int64), wanted.view(np.int64)), (spread, rows)
                    served += 1
    assert served >= 12


@pytest.mark.parametrize("unit, row, name", STEPS, ids=lambda value: value if isinstance(value, str) else value.model)
def test_kernels_of_steps_leave_the_edges_to_the_plain_steps(unit, row, name):
    fmt, one, nothing = get_format(name), np.ones((1, 4), np.float32), np.zeros((1, 1))
    assert step_product(one, one.T, fmt, row, nothing).item() == 4.0
    for x in (np.inf, np.nan):
        assert step_product(one * np.float32(x), one.T, fmt, row, nothing) is None
    for start in (np.inf, np.nan, -0.0, 2.0**-104, 2.0**126):
        assert step_product(one, one.T, fmt, row, np.full((1, 1), start)) is None
    if fmt.emax == 127:
        assert step_product(one * np.float32(2.0**62), one.T * np.float32(2.0**62), fmt, row, nothing) is None
        assert step_product(one * np.float32(2.0**-60), one.T * np.float32(2.0**-60), fmt, row, nothing) is None


@pytest.mark.parametrize(
    "unit", ["a100", "h100", "avx512_bf16", "amx_bf16", "arm_bf16", "arm_ebf16", "mi100", "mi250", "mi300"]
)
def test_range_of_bf16(unit):
    """Operands over the whole range of bf16, subnormals included, as far as sums stay finite."""
    generator = np.random.default_rng(5)
    shape = (6, 24)
    x, y = (generator.standard_normal(shape) * 2.0 ** generator.integers(-135, 55, shape) for _ in range(2))
    y[0], x[0] = y[0] * 2.0**-60, x[0] * 2.0**-60
    a, b = (fpsim.round(np.clip(z, -(2.0**60), 2.0**60).astype(np.float32), "bf16") for z in (x, y))
    c = fpsim.round(
        (generator.standard_normal((6, 6)) * 2.0 ** generator.integers(-149, 20, (6, 6))).astype(np.float32), "fp32"
    )
    result = product(a, b.T, unit=unit, fmt="bf16", addend=c)
    for i, j in np.ndindex(6, 6):
        left, right = ([Fraction(float(v)) for v in z] for z in (a[i], b[j]))
        assert result[i, j] == expected(unit, BF16, "fp32", left, right, Fraction(float(c[i, j]))), (i, j)


def test_flush_next_to_the_least_normal():
    """VDPBF16PS rounds with an unbounded exponent, then flushes: a fused multiply-add that is then flushed does not."""
    least, y = 2.0**-126, np.full((1, 1), 2.0**-75, np.float32)

    def step(x):
        left, c = np.full((1, 1), x, np.float32), np.full((1, 1), least, np.float32)
        return float(product(left, y, unit="avx512_bf16", fmt="bf16", addend=c)[0, 0])

    for x in (-(2.0**-77), -(2.0**-76), -1.5 * 2.0**-76, -(2.0**-75), 2.0**-75):
        assert step(x) == oracle.vdpbf16ps([Fraction(x)], [Fraction(2.0**-75)], Fraction(least))
    assert step(-(2.0**-76)) == least  # a tie at 24 bits goes to the even 2^-126
    assert step(-(2.0**-75)) == 0  # half a subnormal unit of fp32: a fused multiply-add gives 2^-126


@pytest.mark.parametrize("unit, name, output", CHOICES, ids=lambda value: value)
def test_one_product_equals_its_dots(unit, name, output):
    """Whatever the shape: padding, tiles, transposition and threads change no bit."""
    fmt, generator = get_format(name), np.random.default_rng(3)
    a, b = values(fmt, (37, 19), generator, 4), values(fmt, (19, 70), generator, 4)
    c = values(accumulator(unit, output).format, (37, 70), generator, 4)
    text = f"{unit}:{output}"
    whole = product(a, b, unit=text, fmt=fmt, addend=c)
    for i, j in [(0, 0), (3, 69), (36, 64), (17, 33), (36, 69)]:
        one = product(a[i : i + 1], b[:, j : j + 1], unit=text, fmt=fmt, addend=c[i : i + 1, j : j + 1])
        assert whole[i, j].tobytes() == one[0, 0].tobytes()
    column = product(a, b[:, 5:6], unit=text, fmt=fmt, addend=c[:, 5:6])
    assert whole[:, 5].tobytes() == np.ascontiguousarray(column[:, 0]).tobytes()


@pytest.mark.parametrize("unit, fmt", [("h100", "fp16"), ("h100_mma:fp16", "e4m3fn"), ("avx512_bf16", "bf16")])
def test_threads_change_no_bit(unit, fmt):
    generator = np.random.default_rng(0)
    a, b = values(get_format(fmt), (130, 200), generator, 2), values(get_format(fmt), (200, 70), generator, 2)
    results = []
    try:
        for count in (1, 2, 5):
            fpsim.set_num_threads(count)
            results.append(product(a, b, unit=unit, fmt=fmt))
    finally:
        fpsim.set_num_threads(None)
    assert results[0].tobytes() == results[1].tobytes() == results[2].tobytes()


def test_float64_carrier_equals_float32(monkeypatch):
    """The carrier that is taken for wide exponents gives the same bits as the fast one."""
    generator = np.random.default_rng(1)
    for unit, fmt in (("h100", "fp16"), ("a100", "bf16"), ("v100:fp16", "fp16"), ("ada", "e5m2"), ("a100", "tf32")):
        a, b = values(get_format(fmt), (9, 64), generator, 8), values(get_format(fmt), (64, 40), generator, 8)
        fast = product(a, b, unit=unit, fmt=fmt)
        with monkeypatch.context() as patch:
            patch.setattr(blocks, "_fits_single", lambda *_: False)
            assert fast.tobytes() == product(a, b, unit=unit, fmt=fmt).tobytes()
    generator = np.random.default_rng(2)
    a, b = values(BF16, (9, 64), generator, 8), values(BF16, (64, 40), generator, 8)
    fast = product(a, b, unit="avx512_bf16", fmt="bf16")
    with monkeypatch.context() as patch:
        patch.setattr(chains, "_stays_below", lambda *_: False)
        assert fast.tobytes() == product(a, b, unit="avx512_bf16", fmt="bf16").tobytes()


# Edges.


@pytest.mark.parametrize("unit, name, output", CHOICES, ids=lambda value: value)
def test_specials(unit, name, output):
    fmt, text = get_format(name), f"{unit}:{output}"
    one = np.ones((1, 1), np.float32)

    def of(a, b, c=0.0):
        row, column = np.array([a], np.float32), np.array([b], np.float32).T
        return product(row, column, unit=text, fmt=fmt, addend=one * np.float32(c))[0, 0]

    assert of([1, 1], [1, 1]) == 2
    assert of([1, 1], [1, -1]).tobytes() == np.float32(0).tobytes()
    assert of([1, 0], [1, 0], -1).tobytes() == np.float32(0).tobytes()
    assert of([0, 0], [1, 1], np.inf) == np.inf
    assert of([1, 0], [1, 1], -np.inf) == -np.inf
    assert np.isnan(of([0, 0], [1, 1], np.nan))
    if fmt.has_nan:
        assert np.isnan(of([1, np.nan], [1, 0]))
    if fmt.has_infinity:
        assert of([1, np.inf], [1, -1]) == -np.inf
        assert np.isnan(of([1, np.inf], [1, 0]))
        assert np.isnan(of([np.inf, np.inf], [1, -1]))
        assert np.isnan(of([np.inf, 1], [1, 1], -np.inf))


def endless(fmt, shape, generator, often):
    """Values of either sign over the upper half of a format's range, some zeros, and here and there what is not finite."""
    exponents = generator.integers(fmt.emax // 2, fmt.emax + 1, shape)
    x = np.copysign(2.0 ** np.minimum(exponents, fmt.emax), generator.standard_normal(shape))
    x *= 1 + generator.integers(0, 2, shape) / 2
    x[generator.random(shape) < 0.2] = 0
    x = np.clip(x, -fmt.max_finite, fmt.max_finite)
    if fmt.has_infinity:
        where = generator.random(shape) < often
        x[where] = np.copysign(np.inf, x[where])
    if fmt.has_nan:
        x[generator.random(shape) < often / 30] = np.nan
    return fpsim.round(x, fmt).astype(np.float32)


@pytest.mark.parametrize("shape", [(4, 6), (40, 3)], ids=str)
@pytest.mark.parametrize("unit, name, output", CHOICES, ids=lambda value: value)
def test_infinite_terms_against_the_rules(unit, name, output, shape):
    """Infinite and NaN operands and addends among finite terms that overflow before, in and after their block."""
    fmt, target = get_format(name), accumulator(unit, output).format
    generator = np.random.default_rng([len(unit), len(name), len(output), shape[0]])
    leaves = 69
    a, b = endless(fmt, (shape[0], leaves), generator, 0.02), endless(fmt, (leaves, shape[1]), generator, 0.02)
    b[1::2, 0] = -b[0 : 2 * (leaves // 2) : 2, 0]
    a[0, 1::2] = a[0, 0 : 2 * (leaves // 2) : 2]
    c = endless(target, shape, generator, 0.3)
    result = product(a, b, unit=f"{unit}:{output}", fmt=fmt, addend=c)
    wide = [[[oracle.number(float(value)) for value in line] for line in x] for x in (a, b.T, c)]
    for i, j in [place for place in np.ndindex(*shape) if max(place) < 6]:
        want = expected(unit, fmt, output, wide[0][i], wide[1][j], wide[2][i][j])
        assert np.array_equal(result[i, j], np.float32(want), equal_nan=True), (i, j, float(result[i, j]), want)


@pytest.mark.parametrize("unit", ["v100", "a100", "h100", "v100:fp16", "a100:fp16", "h100:fp16", "mi100", "mi300"])
def test_an_infinite_term_decides(unit):
    """Whatever the finite terms of its block come to, in its block or later; but not what overflowed before."""
    big, row = np.float32(65504), np.zeros((1, 64), np.float32)
    one = np.ones((64, 1), np.float32) * big
    assert product(np.array([[np.inf, -60000]], np.float32), np.array([[1], [2]], np.float32), unit=unit, fmt="fp16") == np.inf
    low = row.copy()
    low[0, 1:16] = -big
    assert product(low, one, unit=unit, fmt="fp16", addend=np.full((1, 1), np.inf, np.float32)) == np.inf
    low[0, 0] = np.inf
    assert product(low, one, unit=unit, fmt="fp16") == np.inf
    assert product(np.roll(low, 17), one, unit=unit, fmt="fp16") == np.inf
    late = row.copy()
    late[0, :16], late[0, 40] = -big, np.inf
    assert np.isnan(product(late, one, unit=unit, fmt="fp16")) == unit.endswith(":fp16")  # -inf before it


def test_overflow():
    big = np.full((1, 32), 65504.0, np.float32)
    assert product(big, big.T, unit="h100", fmt="fp16")[0, 0] == np.float32(32 * 65504.0**2)
    assert product(big, big.T, unit="h100:fp16", fmt="fp16")[0, 0] == np.inf
    assert product(big, -big.T, unit="a100:fp16", fmt="fp16")[0, 0] == -np.inf
    huge = np.full((1, 16), 2.0**127, np.float32)
    assert product(huge, huge.T, unit="a100", fmt="bf16")[0, 0] == np.inf
    # Products beyond the range that cancel within a block leave what is left; after a block the sum has overflowed.
    signs = np.array([1, -1] * 8, np.float32)
    assert product(huge * signs, huge.T, unit="a100", fmt="bf16")[0, 0] == 0
    opposed = np.repeat(np.array([1, -1], np.float32), 8)
    assert product(huge * opposed, huge.T, unit="a100", fmt="bf16")[0, 0] == np.inf


def test_no_terms_give_the_addend():
    empty = np.zeros((2, 0), np.float32)
    assert product(empty, empty.T, unit="h100", fmt="fp16").tobytes() == np.zeros((2, 2), np.float32).tobytes()
    c = np.array([[1, 2], [3, 4]], np.float32)
    assert np.array_equal(product(empty, empty.T, unit="h100", fmt="fp16", addend=c), c)
    assert product(np.zeros((0, 4), np.float32), np.zeros((4, 3), np.float32), unit="h100", fmt="fp16").shape == (0, 3)


# Where `accumulate` goes.


def test_matmul_rounds_to_the_format():
    generator = np.random.default_rng(0)
    a, b = values(FP16, (20, 48), generator, 2), values(FP16, (48, 33), generator, 2)
    for unit in ("h100", "h100:fp16", "a100"):
        wanted = fpsim.round(product(a, b, unit=unit, fmt="fp16"), "fp16")
        assert np.array_equal(fpsim.matmul(a, b, fmt="fp16", accumulate=unit), wanted)
        assert fpsim.dot(a[0], b[:, 0], fmt="fp16", accumulate=unit) == wanted[0, 0]
    addend = values(FP16, (20, 33), generator, 2)
    started = fpsim.round(product(a, b, unit="h100", fmt="fp16", addend=addend), "fp16")
    assert np.array_equal(fpsim.matmul(a, b, fmt="fp16", accumulate="h100", addend=addend), started)
    down = fpsim.round(product(a, b, unit="h100", fmt="fp16"), "fp16", "down")
    assert np.array_equal(fpsim.matmul(a, b, fmt="fp16", accumulate="h100", rounding="down"), down)


@pytest.mark.parametrize("unit", ["h100", "a100:fp16", "mi300"])
def test_split_terms(unit):
    """Parts through the unit from +0, added one after the other in its output format, then the addend."""
    generator = np.random.default_rng(4)
    fmt = FP16
    a, b = values(fmt, (6, 83), generator, 3), values(fmt, (83, 9), generator, 3)
    target = fpsim.get_accumulator(unit).format
    c = values(target, (6, 9), generator, 3)
    total = None
    for part in (slice(0, 28), slice(28, 56), slice(56, 83)):
        own = product(a[:, part], b[part], unit=unit, fmt=fmt)
        total = own if total is None else fpsim.add(total, own, target)
    got = product(a, b, unit=f"{unit}:split(3)", fmt=fmt)
    assert got.tobytes() == total.tobytes()
    with_addend = product(a, b, unit=f"{unit}:split(3)", fmt=fmt, addend=c)
    assert with_addend.tobytes() == fpsim.add(total, c, target).tobytes()
    once = product(a, b, unit=f"{unit}:split(1)", fmt=fmt)
    assert once.tobytes() == product(a, b, unit=unit, fmt=fmt).tobytes()
    assert product(a[:, :2], b[:2], unit=f"{unit}:split(9)", fmt=fmt).shape == (6, 9)


def test_split_units_by_name():
    chosen = fpsim.get_accumulator("h100:fp16:split(4)")
    assert str(chosen) == "h100:fp16:split(4)" and fpsim.get_accumulator(str(chosen)) == chosen
    assert str(fpsim.get_accumulator("H200:split(2)")) == "h100:split(2)"
    for text in ("h100:split(0)", "h100:split(2):fp16", "h100:lanes(2)", "h100:split(2):fma", "h100:split(2)->fp32"):
        with pytest.raises(ValueError, match="accumulate"):
            fpsim.get_accumulator(text)


def test_convolution_is_a_product_that_starts_from_the_bias():
    generator = np.random.default_rng(0)
    x, weight, bias = (
        values(FP16, (2, 3, 6, 6), generator, 1),
        values(FP16, (4, 3, 3, 3), generator, 1),
        values(FP16, (4,), generator, 1),
    )
    got = fpsim.conv(x, weight, bias, fmt="fp16", accumulate="a100")
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))  # n, c, oh, ow, kh, kw
    columns = windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, 27)
    wanted = fpsim.matmul(columns, weight.reshape(4, 27).T.copy(), fmt="fp16", accumulate="a100", addend=bias)
    assert np.array_equal(got, wanted.reshape(2, 4, 4, 4).transpose(0, 3, 1, 2))


def test_sums_are_fp32_chains():
    x = values(FP16, (50,), np.random.default_rng(0), 4)
    for function in (fpsim.sum, fpsim.mean):
        assert function(x, fmt="fp16", accumulate="h100") == function(x, fmt="fp16", accumulate="fp32")
    assert np.array_equal(fpsim.cumsum(x, 0, fmt="fp16", accumulate="h100"), fpsim.cumsum(x, 0, fmt="fp16", accumulate="fp32"))


def test_a_model_runs_on_a_unit():
    import torch

    torch.manual_seed(0)
    model = torch.nn.Linear(24, 7)
    sim = fpsim.run(model, fmt="fp16", accumulate="h100")
    x = torch.randn(5, 24)
    with sim, torch.no_grad():
        y = sim(x)
    weight, bias = (fpsim.round(p.detach().numpy(), "fp16") for p in model.parameters())
    wanted = fpsim.matmul(fpsim.round(x.numpy(), "fp16"), weight.T.copy(), fmt="fp16", accumulate="h100", addend=bias)
    assert np.array_equal(y.numpy(), wanted)
    with pytest.raises(ValueError, match="no instruction for fp32 operands"):
        fpsim.run(model, fmt="fp32", accumulate="h100")


@pytest.mark.parametrize("unit", ["h100", "h100:fp16"])
def test_half_models_run_on_a_unit(unit):
    """A .half() model, each dtype meaning itself, gives what the float32 model gives whose tensors hold fp16 values."""
    import torch

    torch.manual_seed(0)
    model, x = torch.nn.Linear(24, 7).half(), torch.randn(5, 24).half()
    wide, wide_x = torch.nn.Linear(24, 7), x.float()
    wide.load_state_dict({name: value.float() for name, value in model.state_dict().items()})
    native, mapped = fpsim.run(model, fmt="native", accumulate=unit), fpsim.run(wide, fmt="fp16", accumulate=unit)
    with native, torch.no_grad():
        first = native(x)
    with mapped, torch.no_grad():
        second = mapped(wide_x)
    assert torch.equal(first.float(), second)


# Names and errors.


@pytest.mark.parametrize("unit", UNITS.values(), ids=lambda unit: unit.name)
def test_names(unit):
    for name in (unit.name, unit.name.upper(), *unit.aliases):
        assert get_unit(name) is unit
        chosen = fpsim.get_accumulator(name)
        assert chosen.unit is unit and str(chosen) == unit.name
    for output in unit.output_names:
        chosen = fpsim.get_accumulator(f"{unit.name}:{output}")
        assert fpsim.get_accumulator(str(chosen)) == chosen and chosen.format == get_format(output)
        assert hash(chosen) == hash(fpsim.get_accumulator(str(chosen)))


def test_names_are_distinct():
    names = [name for unit in UNITS.values() for name in (unit.name, *unit.aliases)]
    assert len(set(names)) == len(names)
    with pytest.raises(ValueError, match="unknown unit 'h99': known are v100, t4"):
        get_unit("h99")


def test_bad_input():
    x = np.ones((2, 4), np.float32)
    with pytest.raises(ValueError, match=r"unit v100 has no instruction for bf16 .* takes fp16 \(output fp32 or fp16\)"):
        fpsim.matmul(x, x.T, fmt="bf16", accumulate="v100")
    with pytest.raises(ValueError, match="no instruction for bf16 operands with fp16 output"):
        product(x, x.T, unit="h100:fp16", fmt="bf16")
    with pytest.raises(ValueError, match=r"a and b must be \(m, k\) and \(k, n\)"):
        product(x, x, unit="h100", fmt="fp16")
    with pytest.raises(ValueError, match="names no hardware unit"):
        product(x, x.T, unit="fp32", fmt="fp16")
    with pytest.raises(ValueError, match="is no value of fp16"):
        product(x + np.float32(1e-5), x.T, unit="h100", fmt="fp16")
    with pytest.raises(ValueError, match="is no value of fp16"):
        product(x, x.T, unit="h100:fp16", fmt="fp16", addend=np.float32(1e-9))
    with pytest.raises(ValueError, match="does not broadcast"):
        product(x, x.T, unit="h100", fmt="fp16", addend=np.ones(3, np.float32))


@pytest.mark.filterwarnings("default::fpsim.hardware.UnconfirmedUnit")
def test_unconfirmed_units_say_so_once(monkeypatch):
    monkeypatch.setattr(products, "_warned", set())
    x = np.ones((2, 4), np.float32)
    with pytest.warns(UnconfirmedUnit, match="unit t4 with fp16 operands and fp32 output is unconfirmed: published"):
        fpsim.matmul(x, x.T, fmt="fp16", accumulate="t4")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fpsim.matmul(x, x.T, fmt="fp16", accumulate="t4")
        fpsim.matmul(x, x.T, fmt="fp16", accumulate="h100")
    for name in ("t4", "h100"):
        row = get_unit(name).instruction(FP16, "fp32")
        assert row.outputs["fp32"].verified == (name == "h100")


def test_operands_are_left_alone():
    x = np.ones((2, 4), np.float32)
    before = x.copy()
    start = np.zeros((2, 2))
    unit_product(x, x.T, FP16, fpsim.get_accumulator("h100"), start)
    assert np.array_equal(x, before) and not start.any() and FP32.precision == 24


def test_reference_lists_every_row():
    page = (Path(__file__).parents[1] / "docs" / "reference" / "hardware-units.md").read_text()
    for table in (markdown(), scaled_markdown(), conversions_markdown()):
        assert table in page
    for unit in UNITS.values():
        names = ", ".join(f"`{alias}`" for alias in unit.aliases) or "-"
        assert f"| `{unit.name}` | {unit.title} | {names} |" in page
