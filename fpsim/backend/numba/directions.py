"""Operations rounded downward, upward or toward zero.

AVX-512 instructions carry their direction. Elsewhere on x86 a register holds one direction for all: a kernel sets it, and
restores the former one before it returns. Of what the other directions give, downward rounding gives all: upward is minus the
result of negated operands, and inward is the one of both that is nearer to zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fpsim.backend.numba.processor import FEATURES, IS_X86
from fpsim.backend.numba.tiles import SIGN, Vector

DOWNWARD, UPWARD, INWARD = 9, 10, 11  # as AVX-512 encodes them, exceptions suppressed

_EMBEDDED = "avx512f" in FEATURES
_HAS_REGISTER = IS_X86 and not _EMBEDDED
HAS_DIRECTIONS = _EMBEDDED or _HAS_REGISTER

# The register's field in MXCSR (Intel SDM, volume 1, section 10.2.3): bits 13 and 14, which AVX-512's codes end in too.
_FIELD, _PLACE = 0x6000, 13


class Embedded:
    """Operations whose instructions carry the direction (AVX-512)."""

    def plus(self, left: Vector, right: Vector, direction: int) -> Vector:
        return self._call("add", direction, left, right)

    def times(self, left: Vector, right: Vector, direction: int) -> Vector:
        return self._call("mul", direction, left, right)

    def times_plus(self, left: Vector, right: Vector, term: Vector, direction: int) -> Vector:
        """left * right + term in one rounding."""
        return self._call("vfmadd", direction, left, right, term)

    @staticmethod
    def _call(name: str, direction: int, first: Vector, *others: Vector) -> Vector:
        suffix = "ps" if first.width == 32 else "pd"
        return first.call(f"llvm.x86.avx512.{name}.{suffix}.512", *others, code=direction)


class Registered:
    """Operations rounded as the register says, `held`; with `held` downward, the other directions too.

    `minus` is -1 in every lane, unknown to the compiler: it holds that -x - y is -(x + y), which is so to nearest alone.
    """

    def __init__(self, held: int, minus: Vector):
        self.held, self.minus = held, minus

    def plus(self, left: Vector, right: Vector, direction: int) -> Vector:
        return self._toward(
            direction, lambda: left + right, lambda: left.times_plus(self.minus, right.negative())
        )

    def times(self, left: Vector, right: Vector, direction: int) -> Vector:
        return self._toward(direction, lambda: left * right, lambda: (left * self.minus) * right)

    def times_plus(self, left: Vector, right: Vector, term: Vector, direction: int) -> Vector:
        """left * right + term in one rounding; without FMA the product must be exact."""
        return self._toward(
            direction,
            lambda: left.times_plus(right, term),
            lambda: (left * self.minus).times_plus(right, term.negative()),
        )

    def _toward(self, direction: int, direct: Callable[[], Vector], negated: Callable[[], Vector]) -> Vector:
        if direction == self.held:
            return direct()
        if self.held != DOWNWARD:
            raise ValueError(f"a register that holds direction {self.held} gives no direction {direction}")
        sign = self.minus.ints() & SIGN[self.minus.width]
        upper = negated().ints() ^ sign
        if direction == UPWARD:
            return upper.floats()
        lower = direct().ints()
        return lower.compare("<", upper).select(lower, upper).floats()  # one sign, but +0 for an exact zero


def operations(held: int | None, minus: Vector) -> Embedded | Registered | None:
    """What rounds in directions in a kernel whose register holds `held`; None where nothing does."""
    if _EMBEDDED:
        return Embedded()
    return None if held is None or not _HAS_REGISTER else Registered(held, minus)


def _register(builder: Any, instruction: str, pointer: Any) -> None:
    byte = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.sse.{instruction}")
    builder.call(function, [builder.bitcast(pointer, byte)])


def direction_setters(held_for: Callable[[int, int], int | None]) -> tuple[Any, Any]:
    """Two intrinsics: `set_direction(mode, flags)` lets the register hold `held_for(mode, flags)`, `restore_direction(...)`
    what it held before. Where there is nothing to set they are no instructions.
    """

    @intrinsic(prefer_literal=True)
    def set_direction(typing_context: Any, mode: Any, flags: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            word = ir.IntType(32)
            held = held_for(mode.literal_value, flags.literal_value)
            if held is None or not _HAS_REGISTER:
                return word(0)
            place = cgutils.alloca_once(builder, word)
            _register(builder, "stmxcsr", place)
            previous = builder.load(place)
            code = word((held & 3) << _PLACE)
            builder.store(builder.or_(builder.and_(previous, word(~_FIELD & 0xFFFFFFFF)), code), place)
            _register(builder, "ldmxcsr", place)
            return previous

        return types.uint32(mode, flags), generate

    @intrinsic(prefer_literal=True)
    def restore_direction(typing_context: Any, previous: Any, mode: Any, flags: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            if held_for(mode.literal_value, flags.literal_value) is not None and _HAS_REGISTER:
                place = cgutils.alloca_once(builder, ir.IntType(32))
                builder.store(arguments[0], place)
                _register(builder, "ldmxcsr", place)
            return context.get_dummy_value()

        return types.void(previous, mode, flags), generate

    return set_direction, restore_direction
