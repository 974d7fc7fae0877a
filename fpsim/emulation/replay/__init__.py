"""What another machine recorded, computed again in emulation and compared bit for bit."""

from fpsim.emulation.replay.check import CheckedRow, CrossCheck, crosscheck
from fpsim.emulation.replay.differences import Difference
from fpsim.emulation.replay.model import ModelCheck, crosscheck_model

__all__ = ["CheckedRow", "CrossCheck", "Difference", "ModelCheck", "crosscheck", "crosscheck_model"]
