"""A character GPT against fp32."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.answer import Answer
from experiments.claims.parity.claim import against_fp32
from experiments.runs import Record
from experiments.training import train as measure

__all__ = ["judge", "measure"]


def judge(records: Sequence[Record]) -> Answer:
    return against_fp32(records, "topics, GPT of one layer, Adam .01 falling to 0, 100 steps")
