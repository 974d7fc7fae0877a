"""What another machine may have accumulated with: units, orders, and the trees that its masks reveal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from fpsim.accumulation import Accumulator, Order, Tree, get_accumulator
from fpsim.accumulation.accumulator import Products
from fpsim.accumulation.orders import given
from fpsim.accumulation.units import UNITS
from fpsim.arrays.rounding import round as round_to
from fpsim.emulation.replay.calls import Call
from fpsim.emulation.replay.revealed import Orders
from fpsim.emulation.replay.tensors import tensor_of
from fpsim.hardware import product
from fpsim.numbers.formats import FP32, get_format

#: Families of operations whose results depend on how sums accumulate.
ACCUMULATING = frozenset(("matmul", "convolution", "reduction", "statistics"))
_ORDERS = (
    "sequential", "pairwise", *(f"lanes({n}{how})" for n in (2, 4, 8, 16, 32) for how in ("", ",pairwise")),
    *(f"blocked({n})" for n in (16, 32, 64, 128, 192, 256, 384, 512)), *(f"split({n})" for n in (2, 3, 4, 8)),
)  # fmt: skip
_PRODUCTS: tuple[Products, ...] = ("fma", "rounded", "exact")
_SPLITS = (1, 2, 3, 4, 6, 8, 16)


@dataclass(frozen=True)
class Candidate:
    """One way to accumulate, or one way for each call: a revealed tree is that of the call's own shape."""

    name: str
    accumulator: Accumulator | None = None
    products: Products = "rounded"
    revealed: Orders | None = None
    granularity: str = "kernel"

    def replay(self, call: Call) -> list[torch.Tensor]:
        """What the call gives. Raises ValueError where this says nothing about such a call, NotReplayed as the call does."""
        if self.revealed is None:
            return call.replay(call.policy(self.accumulator, self.granularity))
        revealed = self.revealed.of(call)
        return revealed.assemble([call.replay(call.policy(self._along(tree), self.granularity)) for tree in revealed.trees])

    def _along(self, tree: Tree) -> Accumulator:
        order = given(tree.chains() if self.products == "fma" else tree)
        return Accumulator(format=FP32, order=order, products=self.products)


@dataclass(frozen=True)
class Tf32(Candidate):
    """float32 matrices whose elements a tensor core takes as tf32, rounded as said; the result stays float32."""

    rounding: str = "toward-zero"

    def replay(self, call: Call) -> list[torch.Tensor]:
        """As for any candidate; matrix products without an addend alone."""
        if call.name != "aten.mm.default":
            raise ValueError("only products of matrices are tried with tf32 operands")
        a, b = (round_to(tensor_of(call.bundle, item["tensor"]).numpy(), "tf32", self.rounding) for item in call.record["args"])
        assert self.accumulator is not None
        return [torch.from_numpy(product(a, b, unit=str(self.accumulator), fmt="tf32"))]


def candidates(call: Call, revealed: Orders) -> Iterator[Candidate]:
    """Every way to try for calls like this one, the plainest first."""
    if call.family not in ACCUMULATING:
        yield Candidate("")
        if call.dtype in ("float16", "bfloat16"):
            yield Candidate('granularity="primitive"', granularity="primitive")
        return
    is_product = call.family in ("matmul", "convolution")
    if is_product and revealed.found:
        for products in _PRODUCTS:
            yield Candidate(f"revealed tree, {products} products", products=products, revealed=revealed)
    yield from _orders(call, is_product)
    if is_product:
        yield from _units(call.dtype)


def _orders(call: Call, is_product: bool) -> Iterator[Candidate]:
    formats = ["fp32"] + ["fp16"] * (call.dtype == "float16")
    seen = set()
    for fmt in formats:
        for order in _ORDERS:
            for suffix in ("", ":fma") if is_product and order != "pairwise" else ("",):
                accumulator = get_accumulator(f"{fmt}:{order}{suffix}")
                if call.terms is not None:  # for few terms many orders are one
                    key = (fmt, suffix, _canonical(accumulator.order, call.terms))
                    if key in seen:
                        continue
                    seen.add(key)
                yield Candidate(str(accumulator), accumulator)
    yield Candidate("exact", get_accumulator("exact"))


@lru_cache(maxsize=1024)
def _canonical(order: Order, terms: int) -> Tree:
    return order(terms).canonical()


def unit_groups(name: str) -> list[tuple[list[str], str]]:
    """The units that take a format, with their outputs ("h100:fp16"), and what to call them.

    Units whose rows are equal are one group, those that were compared with hardware first.
    """
    fmt = get_format(name)
    alike: dict[Any, list[tuple[bool, str]]] = {}
    for unit in UNITS.values():
        for row in unit.instructions:
            for output_name, output in row.outputs.items():
                if row.takes(fmt):
                    numbers = (row.model, row.block, row.fraction, row.swapped, row.flush)
                    key = (*numbers, output_name, output.format, output.rounding)
                    alike.setdefault(key, []).append((not output.verified, f"{unit.name}:{output_name}"))
    groups = []
    for members in alike.values():
        names = [text for _, text in sorted(members, key=lambda item: item[0])]
        short = [str(get_accumulator(text)) for text in names]
        groups.append((names, f" (as {', '.join(short[1:])})" if short[1:] else ""))
    return groups


def _units(dtype: str) -> Iterator[Candidate]:
    """The units that take the dtype, whole and split."""
    name = {"float16": "fp16", "bfloat16": "bf16", "float32": "tf32"}.get(dtype)
    for names, alike in unit_groups(name) if name is not None else ():
        for splits in _SPLITS:
            accumulator = get_accumulator(names[0] + (f":split({splits})" if splits > 1 else ""))
            if name == "tf32":
                for rounding in ("toward-zero", "nearest-away", "nearest-even"):
                    yield Tf32(f"{accumulator}, tf32 operands {rounding}{alike}", accumulator, rounding=rounding)
            else:
                yield Candidate(f"{accumulator}{alike}", accumulator)
