"""Certificates: rigorous bounds on what emulated arithmetic does to a model's logits."""

from fpsim.emulation.certification.certificate import Certificate, Layer, classification_tolerance
from fpsim.emulation.certification.certify import certify
from fpsim.emulation.certification.table import TABLE, register
from fpsim.emulation.certification.tolerance import Tolerance, tolerance

# Each of these fills the table with the rows of its family.
from fpsim.emulation.certification import (  # isort: skip
    structure,  # noqa: F401
    products,  # noqa: F401
    elementwise,  # noqa: F401
    normalization,  # noqa: F401
    pooling,  # noqa: F401
)

__all__ = ["TABLE", "Certificate", "Layer", "Tolerance", "certify", "classification_tolerance", "register", "tolerance"]
