"""Pooling with arithmetic: float64 sums in torch's order of the window, one rounding. (Max pooling is in exact.py.)"""

from __future__ import annotations

from fpsim.emulation.registry import register_functional
from fpsim.emulation.rules.elementwise import wide_rule

AVERAGES = """avg_pool2d avg_pool3d avg_pool2d_backward avg_pool3d_backward _adaptive_avg_pool2d _adaptive_avg_pool3d
_adaptive_avg_pool2d_backward _adaptive_avg_pool3d_backward adaptive_avg_pool2d avg_pool1d"""

#: Gradients that meet in one element are added in float64.
SCATTERS = """max_pool2d_with_indices_backward max_pool3d_with_indices_backward adaptive_max_pool2d_backward
adaptive_max_pool3d_backward fractional_max_pool2d_backward fractional_max_pool3d_backward"""

#: Weighted sums of neighbors; scale factors are geometry, not data.
INTERPOLATIONS = """upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d
upsample_bicubic2d upsample_trilinear3d _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
_upsample_bilinear2d_aa _upsample_bicubic2d_aa"""

#: Weighted sums at given places, and gradients of selections in which elements may have been selected more than once.
OVERLAPS = """grid_sampler_2d grid_sampler_3d grid_sampler_2d_backward grid_sampler_3d_backward
reflection_pad1d_backward reflection_pad2d_backward reflection_pad3d_backward replication_pad1d_backward
replication_pad2d_backward replication_pad3d_backward unfold_backward col2im"""

register_functional(AVERAGES, "pooling", wide_rule)
register_functional(OVERLAPS, "scatter", wide_rule)
for _name in INTERPOLATIONS.split():
    for _op in (_name, f"{_name}_backward"):
        register_functional(_op, "interpolation", lambda op: wide_rule(op, scalars=False))
register_functional(SCATTERS, "pooling", wide_rule)
