"""Certificates: rigorous bounds on what emulated arithmetic does to a model's logits."""

from fpsim.emulation.certification.certificate import Certificate, classification_tolerance
from fpsim.emulation.certification.comparison import Tolerance, tolerance
from fpsim.emulation.certification.entry import certify
from fpsim.emulation.certification.table import TABLE, register

# Each of these fills the table with the rows of its family.
from fpsim.emulation.certification import (  # isort: skip
    structure,  # noqa: F401
    products,  # noqa: F401
    elementwise,  # noqa: F401
    normalization,  # noqa: F401
    attention,  # noqa: F401
    pooling,  # noqa: F401
    other_layouts,  # noqa: F401
)

__all__ = ["TABLE", "Certificate", "Layer", "Tolerance", "certify", "classification_tolerance", "register", "tolerance"]
