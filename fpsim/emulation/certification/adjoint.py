"""From the logits back: how much each operation's own error can move them.

With ^ the emulated run, every operation gives z^ = g(x^) + delta with |delta| bounded, and g(x^) - g(x) = S (x^ - x) with S
in a range over the box that both runs lie in. So

    logit^ - logit = sum over operations of A delta,    A = the product of the S behind the operation,

and A is carried backwards as middle and bound, signs and all: no |W| is multiplied with the next. What rounding the
parameters and the input changes is known with its sign, and enters as a number.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fpsim.emulation.certification.costs import Costs, LocalError
from fpsim.emulation.certification.forward import Link, Pass, States
from fpsim.emulation.certification.propagation import inherited, signed
from fpsim.emulation.certification.slopes import EPSILON, Operand, transpose, upwards
from fpsim.emulation.certification.steps import Trace
from fpsim.emulation.certification.table import Call, OperationRow
from fpsim.emulation.machine.policy import Policy

_ROWS = 64  # logits that go back together


class Shadow(Pass):
    """The emulated run beside a float64 run: both runs' values are known, and `links` how each operation joined them."""

    def __init__(self, trace: Trace, policy: Policy, library: States, parts: bool = True, squares: bool = False):
        super().__init__(trace)
        self.costs = Costs(policy, run=True, squares=squares)
        self.library, self.parts = library, parts
        self.links: list[Link] = []
        self.overflowed = False

    def visit(self, call: Call, row: OperationRow, number: int) -> Operand:
        exact = self.library[number]
        assert isinstance(exact, Operand) and self.costs is not None
        value = self.recorded(number)
        call.result = value
        local = self.costs.parts(call, row)
        if local is not None:
            total = inherited(call, local.total)
            self.overflowed = self.overflowed or not bool(torch.isfinite(total).all())
            fixed = torch.where(torch.isfinite(local.fixed), local.fixed, total)
            local = LocalError(total, torch.where(total == 0, 0.0, fixed), torch.where(total == 0, 0.0, local.squares))
        if self.parts:
            slopes = row.slopes(call)
            signed_part, rest = signed(call, row, slopes)
            self.links.append(Link(call, slopes, number, local, signed_part, rest))
        return Operand(value, exact.reference, exact.radius)


@dataclass(frozen=True)
class Contributions:
    """For each logit (rows): what operations may add, by the module path of each, and what is known with its sign.

    bounds    path -> a bound on the sum of what its operations add
    squares   path -> the same for independent roundings: the sum of squares
    fixed     path -> what does not come from independent roundings
    signed_part  path -> what enters with its sign
    """

    bounds: dict[str, torch.Tensor]
    squares: dict[str, torch.Tensor]
    fixed: dict[str, torch.Tensor]
    signed_part: dict[str, torch.Tensor]

    @staticmethod
    def joined(parts: list[Contributions]) -> Contributions:
        def join(name: str) -> dict[str, torch.Tensor]:
            return {path: torch.cat([getattr(part, name)[path] for part in parts]) for path in getattr(parts[0], name)}

        return Contributions(join("bounds"), join("squares"), join("fixed"), join("signed_part"))


def contributions(shadow: Shadow, states: States) -> Contributions:
    """What each operation of the run may add to each element of the output, in row-major order."""
    count = shadow.trace.values[shadow.trace.output].numel()
    parts = [_back(shadow, states, first, min(first + _ROWS, count)) for first in range(0, count, _ROWS)]
    return Contributions.joined(parts)


def _back(shadow: Shadow, states: States, first: int, last: int) -> Contributions:
    trace = shadow.trace
    shape = trace.values[trace.output].shape
    seeds = torch.eye(trace.values[trace.output].numel(), dtype=torch.float64)[first:last].reshape(last - first, *shape)
    waiting = {trace.output: (seeds, torch.zeros_like(seeds))}
    contributions = Contributions({}, {}, {}, {})
    for link in reversed(shadow.links):
        rows = waiting.pop(link.number, None)
        if rows is None:
            continue
        _collect(link, *rows, contributions)
        for slope, operand, number in zip(link.slopes, link.call.operands, link.call.numbers, strict=True):
            if slope is None or operand.known:
                continue
            center, rest = slope.adjoint(operand.value.shape, *rows)
            if number in waiting:
                old = waiting[number]
                center, rest = old[0] + center, old[1] + rest + EPSILON * (old[0].abs() + center.abs())
            waiting[number] = (center, upwards(rest))
    if trace.output in waiting:  # the output is an input or a parameter
        _known_leaf(states[trace.output], seeds, contributions)
    return contributions


def _collect(link: Link, center: torch.Tensor, rest: torch.Tensor, contributions: Contributions) -> None:
    """Add what one operation may do to every logit."""
    size, path = upwards(center.abs() + rest), link.call.step.path
    terms = center[0].numel()

    def over(rows: torch.Tensor, errors: torch.Tensor) -> torch.Tensor:
        return upwards(rows.flatten(1) @ errors.flatten(), terms)

    def put(where: dict[str, torch.Tensor], value: torch.Tensor) -> None:
        where[path] = where[path] + value if path in where else value

    zero = torch.zeros(len(center), dtype=torch.float64)
    fixed, bound, squares, signed_part = zero, zero, zero, zero
    if link.local is not None:
        bound = over(size, link.local.total)
        fixed = over(size, link.local.fixed) + over(rest, link.local.squares.sqrt())
        squares = over(center**2, link.local.squares)
    if link.signed_part is not None:
        signed_part = center.flatten(1) @ link.signed_part.flatten()
        lost = over(rest + (terms + 16) * EPSILON * center.abs(), link.signed_part.abs())
        bound, fixed = bound + lost, fixed + lost
    if link.rest is not None:
        more = over(size, link.rest)
        bound, fixed = bound + more, fixed + more
    put(contributions.bounds, upwards(bound))
    put(contributions.squares, upwards(squares))
    put(contributions.fixed, upwards(fixed))
    put(contributions.signed_part, signed_part)


def _known_leaf(state: object, seeds: torch.Tensor, contributions: Contributions) -> None:
    assert isinstance(state, Operand)
    zero = torch.zeros(len(seeds), dtype=torch.float64)
    contributions.signed_part[""] = seeds.flatten(1) @ state.difference().flatten()
    for where in (contributions.bounds, contributions.squares, contributions.fixed):
        where[""] = zero


def shares(links: list[Link], output: int, shape: torch.Size) -> dict[str, float]:
    """The part of the sum of all bounds on the output that each module path's operations bring, when |S| carries them on."""
    ones = torch.ones(1, *shape, dtype=torch.float64)
    waiting, shares = {output: ones}, dict[str, float]()
    for link in reversed(links):
        rows = waiting.pop(link.number, None)
        if rows is None:
            continue
        added = torch.zeros(rows.shape[1:], dtype=torch.float64)
        for part in (None if link.local is None else link.local.total, link.signed_part, link.rest):
            if part is not None:
                added = added + part.abs()
        path = link.call.step.path
        shares[path] = shares.get(path, 0.0) + float((rows[0] * added).sum())
        for slope, operand, number in zip(link.slopes, link.call.operands, link.call.numbers, strict=True):
            if slope is not None and not operand.known:
                back = transpose(slope.size, operand.value.shape)(rows)
                waiting[number] = waiting[number] + back if number in waiting else back
    return dict(reversed(shares.items()))
