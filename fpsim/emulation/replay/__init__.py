"""What another machine recorded, computed again in emulation and compared bit for bit."""

from fpsim.emulation.replay.check import CrossCheck, Row, crosscheck
from fpsim.emulation.replay.differences import Difference
from fpsim.emulation.replay.model import ModelCheck, crosscheck_model

__all__ = ["CrossCheck", "Difference", "ModelCheck", "Row", "crosscheck", "crosscheck_model"]
