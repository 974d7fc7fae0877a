"""A rule for every operation of torch, one file a family: each fills the registry when it is loaded."""

from importlib import import_module
from pkgutil import iter_modules


def load() -> None:
    """Load every family, and then the steps that composite operations of all of them are taken in under "primitive"."""
    for family in iter_modules(__path__):
        if not family.ispkg:
            import_module(f"{__name__}.{family.name}")
    import_module(f"{__name__}.steps").load()
