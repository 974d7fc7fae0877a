"""A rule for every operation of torch, one file a family: each fills the registry when it is loaded.

Other packages' operators have a folder of their package's name, which is loaded when the first of them arrives.
"""

from functools import partial
from importlib import import_module
from pkgutil import iter_modules

from fpsim.emulation.registry import ARRIVING, enter_other_forms


def load() -> None:
    """Load every family, and then the steps that composite operations of all of them are taken in under "primitive"."""
    for family in iter_modules(__path__):
        if not family.ispkg:
            import_module(f"{__name__}.{family.name}")
    enter_other_forms(("exact", "constant", "complex", "reduction", "softmax", "random", "scatter"))
    import_module(f"{__name__}.steps").load()
    for package in ("torchvision",):
        ARRIVING[package] = partial(import_module, f"{__name__}.{package}")
