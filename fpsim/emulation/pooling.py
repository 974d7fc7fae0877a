"""Pooling with arithmetic: float64 sums in torch's order of the window, one rounding. (Max pooling is in exact.py.)"""

from __future__ import annotations

from fpsim.emulation.elementwise import wide_rule
from fpsim.emulation.table import register_functional

AVERAGES = """avg_pool2d avg_pool3d avg_pool2d_backward avg_pool3d_backward _adaptive_avg_pool2d _adaptive_avg_pool3d
_adaptive_avg_pool2d_backward _adaptive_avg_pool3d_backward adaptive_avg_pool2d avg_pool1d"""

#: Gradients that meet in one element are added in float64.
SCATTERS = """max_pool2d_with_indices_backward max_pool3d_with_indices_backward adaptive_max_pool2d_backward
adaptive_max_pool3d_backward fractional_max_pool2d_backward fractional_max_pool3d_backward"""

register_functional(AVERAGES, "pooling", wide_rule)
register_functional(SCATTERS, "pooling", wide_rule)
