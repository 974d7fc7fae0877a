"""Accumulation as data: summation trees, orders, accumulators, and the tree of a black box revealed."""

from fpsim.accumulation.accumulator import Accumulator, get_accumulator
from fpsim.accumulation.orders import Order, blocked, given, lanes, pairwise, parse_order, sequential, split
from fpsim.accumulation.reveal import matmul_function, reveal
from fpsim.accumulation.reveal_shapes import ShapeOrders, reveal_shapes
from fpsim.accumulation.trees import Tree

__all__ = [
    "Accumulator",
    "Order",
    "ShapeOrders",
    "Tree",
    "blocked",
    "get_accumulator",
    "given",
    "lanes",
    "matmul_function",
    "pairwise",
    "parse_order",
    "reveal",
    "reveal_shapes",
    "sequential",
    "split",
]
