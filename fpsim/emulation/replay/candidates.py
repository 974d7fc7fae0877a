"""What another machine may have accumulated with: units, orders, and the trees that its masks reveal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from fpsim.accumulation import Accumulator, Tree, get_accumulator
from fpsim.accumulation.accumulator import Products
from fpsim.accumulation.orders import given
from fpsim.accumulation.reveal import tree_of_survivors
from fpsim.accumulation.units import UNITS
from fpsim.emulation.replay.calls import Call
from fpsim.emulation.replay.tensors import tensor_of
from fpsim.formats import FP32, get_format
from fpsim.hardware import product
from fpsim.recorder.bundle import Bundle
from fpsim.rounding import round as round_to

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
    trees: Trees | None = None
    granularity: str = "kernel"

    def replay(self, call: Call) -> list[torch.Tensor]:
        """What the call gives. Raises ValueError where this says nothing about such a call, NotReplayed as the call does."""
        return call.replay(call.policy(self.accumulate(call), self.granularity))

    def accumulate(self, call: Call) -> Any:
        """What `accumulate` is for a call. Raises ValueError where this says nothing about such a call."""
        if self.trees is None:
            return self.accumulator
        tree = self.trees.of(call)
        if self.products == "fma":
            return Accumulator(format=FP32, order=given(tree.chains()), products="fma")
        return Accumulator(format=FP32, order=given(tree), products=self.products)


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


@dataclass
class Trees:
    """The trees of a bundle's masks, by flags, dtype and shape."""

    found: dict[tuple[str, str, tuple[int, ...]], Tree] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)

    @staticmethod
    def of_bundle(bundle: Bundle) -> Trees:
        trees = Trees()
        for record in bundle.records:
            if record["kind"] != "masks":
                continue
            name = f"{record['dtype']} {record['shape']}"
            if "skipped" in record:
                trees.reasons.append(f"{name}: {record['skipped']}")
                continue
            try:
                tree = tree_of_survivors(bundle.bits(record["survivors"]).astype(np.int64))
            except ValueError as error:
                trees.reasons.append(f"{name}: {error}")
                continue
            if not record["alike"]:
                trees.reasons.append(f"{name}: the elements add in several orders; the tree is that of the first one")
            trees.found[_key(record["flags"], record["dtype"], tuple(record["shape"]))] = tree
        return trees

    def of(self, call: Call) -> Tree:
        """The tree of a product's shape; ValueError where no masks tell it."""
        shape = call.shape
        tree = None if shape is None else self.found.get(_key(call.record["flags"], call.dtype, shape))
        if tree is None:
            raise ValueError("no masks were recorded for this shape")
        return tree


def _key(flags: dict[str, Any], dtype: str, shape: tuple[int, ...]) -> tuple[str, str, tuple[int, ...]]:
    return repr(sorted(flags.items())), dtype, shape


def candidates(call: Call, trees: Trees) -> Iterator[Candidate]:
    """Every way to try for calls like this one, the plainest first."""
    if call.family not in ACCUMULATING:
        yield Candidate("")
        if call.dtype in ("float16", "bfloat16"):
            yield Candidate('granularity="primitive"', granularity="primitive")
        return
    is_product = call.family in ("matmul", "convolution")
    if is_product and trees.found:
        for products in _PRODUCTS:
            yield Candidate(f"revealed tree, {products} products", products=products, trees=trees)
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
                    key = (fmt, suffix, accumulator(call.terms).canonical())
                    if key in seen:
                        continue
                    seen.add(key)
                yield Candidate(str(accumulator), accumulator)
    yield Candidate("exact", get_accumulator("exact"))


def unit_groups(name: str) -> list[tuple[list[str], str]]:
    """The units that take a format, with their outputs ("h100:fp16"), and what to call them.

    Units whose rows are equal are one group, those that were compared with hardware first.
    """
    fmt = get_format(name)
    found: dict[Any, list[tuple[bool, str]]] = {}
    for unit in UNITS.values():
        for row in unit.instructions:
            for output_name, output in row.outputs.items():
                if row.takes(fmt):
                    numbers = (row.model, row.block, row.fraction, row.swapped, row.flush)
                    key = (*numbers, output_name, output.format, output.rounding)
                    found.setdefault(key, []).append((not output.verified, f"{unit.name}:{output_name}"))
    groups = []
    for members in found.values():
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
