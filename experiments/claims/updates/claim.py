"""Updates stored in each of the ways that there are, in bf16."""

from __future__ import annotations

from experiments.training import train as measure

__all__ = ["judge", "measure"]
