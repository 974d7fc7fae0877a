"""A convolutional network against fp32."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.answer import Answer
from experiments.claims.parity.claim import against_fp32
from experiments.runs import Record
from experiments.training import train as measure

__all__ = ["judge", "measure"]


def judge(records: Sequence[Record]) -> Answer:
    return against_fp32(records, "shapes, CNN of three convolutions, SGD .05 falling to 0", NOTE)


NOTE = (
    "The two arms of fp32 from weights in 16 bits were added last: rounding the initial weights alone, and all else in fp32, "
    "moves the end as far. So what is seen here is how far any small change carries this training, not the arithmetic, and ten "
    "seeds settle nothing."
)
