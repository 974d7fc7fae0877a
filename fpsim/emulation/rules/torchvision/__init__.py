"""torchvision's operators; loaded when one arrives, so that nothing here needs torchvision before."""

from fpsim.emulation.rules.torchvision import boxes, deformable, regions

__all__ = ["boxes", "deformable", "regions"]
