"""What a machine does, parsed once: its format, its accumulator, its rounding, its granularity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import product
from typing import Any

from fpsim.accumulation import Accumulator, get_accumulator
from fpsim.accumulation.kinds import NATIVE as LIBRARY
from fpsim.emulation.machine.all_reduce import RANK_ORDER, AllReduce, get_all_reduce
from fpsim.emulation.machine.mapping import RoleMapping, parse_mapping
from fpsim.emulation.machine.settings import ACCUMULATORS, FORMATS, NATIVE, ROUNDINGS, ModuleSettings
from fpsim.numbers.computing import float32_serves, is_float32, quantum_exponent
from fpsim.numbers.formats import Format, get_format
from fpsim.numbers.names import get_system
from fpsim.numbers.rounding import Rounding, get_rounding, seed_key
from fpsim.numbers.splits import Split
from fpsim.numbers.system import NumberSystem

GRANULARITIES = ("kernel", "primitive")


@dataclass(frozen=True)
class Policy:
    """A validated choice of arithmetic. `make_policy` is the way to get one."""

    fmt: Format
    accumulator: Accumulator
    rounding: Rounding
    seed: int | None
    granularity: str
    #: What was asked for, where the format is too wide to accumulate in it.
    asked: Accumulator | None = field(default=None, kw_only=True, compare=False)
    #: How sums over the ranks of a group are made.
    all_reduce: AllReduce = field(default=RANK_ORDER, kw_only=True)

    @property
    def carried_by_float32(self) -> bool:
        """Whether add, sub, mul, div and sqrt in float32, then one rounding, are right; fp32 is its own carrier."""
        fmt, nearest = self.fmt, self.rounding is Rounding.NEAREST_EVEN
        return float32_serves(fmt, self.rounding) or (nearest and is_float32(fmt))

    @cached_property
    def is_identity(self) -> bool:
        """Whether this machine is torch itself: fp32 in the library's own order, rounded as the library rounds."""
        return (
            self.fmt == get_format("fp32")
            and self.accumulator.kind is LIBRARY
            and self.rounding is Rounding.NEAREST_EVEN
            and self.granularity == "kernel"
            and self.all_reduce == RANK_ORDER
        )

    @property
    def is_native(self) -> bool:
        """Whether each dtype means itself."""
        return False

    @property
    def draws(self) -> bool:
        """Whether some rounding is stochastic."""
        return self.rounding is Rounding.STOCHASTIC

    def resolve(
        self, modules: Mapping[str, Any] | None = None, earlier: Mapping[str, ModuleSettings] | None = None
    ) -> dict[str, ModuleSettings] | None:
        """What every module has, by path, where there are several settings; without modules that of everything, under "".

        `earlier` is what was resolved before: the same settings stay the same objects.
        """
        return None

    @property
    def _remaining(self) -> list[str]:
        seed = [f"seed={self.seed}"] if self.seed is not None else []
        sums = [f"all_reduce={self.all_reduce}"] if self.all_reduce != RANK_ORDER else []
        return [*seed, f"granularity={self.granularity}", *sums]

    def __str__(self) -> str:
        parts = [f"fmt={self.fmt.name}", f"accumulate={self.accumulator}", f"rounding={self.rounding}"]
        return ", ".join([*parts, *self._remaining])


@dataclass(frozen=True)
class NativePolicy(Policy):
    """Each dtype means itself: a policy for each, or the sentence that says why that one cannot be had."""

    float16: Policy | str
    bfloat16: Policy | str
    float32: Policy | str

    @cached_property
    def is_identity(self) -> bool:
        return False  # 16-bit tensors are emulated

    @property
    def is_native(self) -> bool:
        return True

    def of(self, name: str) -> Policy | str:
        """The policy of the dtype of that name."""
        if not name.startswith("float8"):
            return getattr(self, name)
        try:
            return make_policy(name, self.accumulator, self.rounding, self.seed, self.granularity)
        except ValueError as error:
            return str(error)

    def __str__(self) -> str:
        return super().__str__().replace(f"fmt={self.fmt.name}", "fmt=native", 1)


def _make_native(accumulate: Any, rounding: Any, seed: Any, granularity: Any) -> NativePolicy:
    policies: dict[str, Policy | str] = {}
    for dtype, name in (("float16", "fp16"), ("bfloat16", "bf16"), ("float32", "fp32")):
        # Of float32 only sums beside half operands are emulated, and units make none.
        chosen = get_accumulator(accumulate).for_sums if dtype == "float32" else accumulate
        try:
            policies[dtype] = make_policy(name, chosen, rounding, seed, granularity)
        except ValueError as error:
            policies[dtype] = str(error)
    if isinstance(policies["float16"], str) and isinstance(policies["bfloat16"], str):
        raise ValueError(policies["float16"])
    mode, single = get_rounding(rounding), get_format("fp32")
    halves = policies["float16"], policies["bfloat16"], policies["float32"]
    return NativePolicy(single, get_accumulator(accumulate), mode, seed, granularity, *halves)


@dataclass(frozen=True)
class MixedPolicy(Policy):
    """Settings by role and by module; `fmt`, `accumulator` and `rounding` are the first that are named."""

    mapping: RoleMapping[NumberSystem | Split]
    accumulators: RoleMapping[Accumulator]
    roundings: RoleMapping[Rounding]

    @cached_property
    def is_identity(self) -> bool:
        choices = product(self.mapping.values, self.accumulators.values, self.roundings.values)
        return self.all_reduce == RANK_ORDER and all(self.of(*choice).is_identity for choice in choices)

    @property
    def draws(self) -> bool:
        """Whether some rounding is stochastic."""
        return Rounding.STOCHASTIC in self.roundings.values

    def of(self, system: NumberSystem | Split, accumulator: Accumulator, rounding: Rounding) -> Policy:
        """The policy of results in one of the formats, or in the format that encloses a number system."""
        return Policy(system.enclosing, widened(accumulator, system), rounding, self.seed, self.granularity)

    def resolve(
        self, modules: Mapping[str, Any] | None = None, earlier: Mapping[str, ModuleSettings] | None = None
    ) -> dict[str, ModuleSettings]:
        """What every module has, by path.

        Raises what `RoleMapping.resolve` raises, and ValueError where no module can multiply what its forward pass reads.
        """
        by_path = [each.resolve(modules) for each in (self.mapping, self.accumulators, self.roundings)]
        made = {_place_of_parts(module): module for module in (earlier or {}).values()}
        settings = {}
        for path, formats in by_path[0].items():
            roles = [getattr(formats, role) == NATIVE for role in FORMATS.needed]
            if any(roles) and (not all(roles) or formats.product is not None):
                raise ValueError(f'fmt: "native" is of all roles of a module, and {path or "the model"!r} has others')
            module = ModuleSettings(*(each[path] for each in by_path))
            settings[path] = made.setdefault(_place_of_parts(module), module)
        errors = [_factor_error(module) for module in settings.values()]
        if None not in errors:
            raise errors[0]  # type: ignore[misc]
        return settings

    def of_forward(self, settings: Mapping[str, ModuleSettings]) -> Policy:
        """The one policy of the forward pass of all modules; ValueError where there are several."""
        choices = {
            (
                module.formats.weight, module.formats.activation, module.formats.product or module.formats.activation,
                module.accumulators.activation, module.accumulators.product or module.accumulators.activation,
                module.roundings.weight, module.roundings.activation,
            )
            for module in settings.values()
        }  # fmt: skip
        weight, activation, factor, accumulator, multiplying, *modes = next(iter(choices))
        if len(choices) > 1 or len({weight, activation, factor}) > 1 or multiplying != accumulator or len(set(modes)) > 1:
            raise ValueError(
                f"the forward pass has several formats, accumulators or modes ({self}); here it takes one of each, for the "
                "weights, activations and products of all modules"
            )
        if not isinstance(activation, Format):
            activation.require("bound", modes[0])
        return self.of(activation, accumulator, modes[0])

    def __str__(self) -> str:
        parts = [f"fmt={self.mapping}", f"accumulate={self.accumulators}", f"rounding={self.roundings}"]
        return ", ".join([*parts, *self._remaining])


def _make_mixed(fmt: Any, accumulate: Any, rounding: Any, seed: Any, granularity: Any) -> MixedPolicy:
    accumulators = parse_mapping(ACCUMULATORS, accumulate)
    roundings = parse_mapping(ROUNDINGS, rounding)
    if isinstance(fmt, str) and fmt.strip().lower() == "native":
        argument = "accumulate" if isinstance(accumulate, Mapping) else "rounding"
        raise ValueError(
            f'{argument}: a mapping goes with named formats; under fmt="native" one {argument} is that of all roles and modules'
        )
    mapping = parse_mapping(FORMATS, fmt)
    draws = Rounding.STOCHASTIC in roundings.values
    systems = [each for each in mapping.values if not isinstance(each, Split)]
    for each, mode in product(systems, roundings.values):
        _checked(each, None, mode, seed if not draws or mode is Rounding.STOCHASTIC else None, granularity)
    first = mapping.values[0].enclosing, accumulators.values[0], roundings.values[0]
    return MixedPolicy(*first, seed, granularity, mapping, accumulators, roundings)


def widened(accumulator: Accumulator, operands: NumberSystem | Split) -> Accumulator:
    """What accumulates operands of a format or system: such as hold no sums, in what was asked for."""
    return accumulator.widened(operands) if isinstance(operands, Format) else accumulator


def _place_of_parts(settings: ModuleSettings) -> tuple[int, ...]:
    """Where the parts lie, which the policy's mappings keep alive: hashing trees takes longer than comparing these."""
    parts = (settings.formats, settings.accumulators, settings.roundings)
    return tuple(id(value) for part in parts for value in vars(part).values())


def _factor_error(settings: ModuleSettings) -> ValueError | None:
    system = settings.formats.product or settings.formats.activation
    try:
        accumulator = settings.accumulators.product or settings.accumulators.activation
        accumulator.require_operands(system.enclosing.replace(name=system.name))
    except ValueError as error:
        return error
    return None


@lru_cache(maxsize=256)
def mixed_products(policy: Policy, operands: Format) -> Policy:
    """The policy, accumulating what has operands of that format."""
    return replace(policy, accumulator=policy.accumulator.widened(operands))


def make_policy(
    fmt: Any = "fp16",
    accumulate: Any = None,
    rounding: Any = "nearest-even",
    seed: int | None = None,
    granularity: str = "kernel",
    all_reduce: Any = RANK_ORDER,
) -> Policy:
    """Parse and check the arguments that `run` and `emulate` share; the first three may be mappings.

    Raises
    ------
    ValueError : unknown names (listing what there is), a format that float32 tensors cannot hold, a missing seed.
    NotImplementedError : choices that are specified but not built.
    """
    policy = _without_ranks(fmt, accumulate, rounding, seed, granularity)
    sums = get_all_reduce(all_reduce)
    return policy if sums == RANK_ORDER else replace(policy, all_reduce=sums)


def _without_ranks(fmt: Any, accumulate: Any, rounding: Any, seed: Any, granularity: Any) -> Policy:
    if any(isinstance(argument, Mapping) for argument in (fmt, accumulate, rounding)):
        return _make_mixed(fmt, accumulate, rounding, seed, granularity)
    if isinstance(fmt, str) and fmt.strip().lower() == "native":
        return _make_native(accumulate, rounding, seed, granularity)
    if not isinstance(get_system(fmt), Format):
        return _make_mixed(fmt, accumulate, rounding, seed, granularity)
    policy = _checked(fmt, accumulate, rounding, seed, granularity)
    policy.accumulator.require_operands(policy.fmt)
    return policy


def _checked(fmt: Any, accumulate: Any, rounding: Any, seed: Any, granularity: Any) -> Policy:
    """The policy of one format; whether its accumulator takes operands of the format is not asked."""
    system = get_system(fmt)
    target = system.enclosing
    if target.precision > 24 or target.emax > 127 or quantum_exponent(target) < -149:
        taken = "formats inside fp32" if isinstance(system, Format) else "at most 24 bits, inside the range of fp32"
        raise ValueError(f"fmt={system.name!r} has values that float32 tensors cannot hold; emulation takes {taken}")
    if not target.has_zero:
        raise ValueError(f"fmt={target.name!r} has no zero and no sign; a model cannot run in it")
    if target.flush_inputs:
        raise NotImplementedError(
            f"fmt={target.name!r} flushes subnormal operands, which the emulation of torch does not model yet"
        )
    mode = get_rounding(rounding)
    seed_key(mode, seed)  # its errors are this function's
    if mode is Rounding.ODD and target.precision == 1:
        raise ValueError(f"fmt={target.name!r} cannot be rounded to odd: a significand of one bit is never even")
    if granularity not in GRANULARITIES:
        raise ValueError(f"granularity={granularity!r}: known are {', '.join(GRANULARITIES)}")
    asked = get_accumulator(accumulate)
    return Policy(target, asked.widened(target), mode, seed, granularity, asked=asked)
