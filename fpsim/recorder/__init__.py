"""Recording what a machine computes. Needs torch and NumPy alone, so that it runs where the rest of fpsim is not installed.

`fpsim record --write-recorder recorder.pyz` packs this folder into one file, and `python recorder.pyz -o bundle.npz` runs it.
"""

from .bundle import Bundle, BundleError, TooLarge, load
from .recording import SECTIONS, record, recording

__all__ = ["SECTIONS", "Bundle", "BundleError", "TooLarge", "load", "record", "recording"]
