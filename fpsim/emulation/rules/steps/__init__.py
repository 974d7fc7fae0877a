"""granularity="primitive": composite operations as steps, each an elementary operation with a rounding of its own.

Elementary are additions, subtractions, multiplications, divisions and square roots, what makes no new numbers, products and
sums through the accumulator, fpsim's elementary functions and special functions. Everything else has steps here, written in
torch's operations, or is refused under "primitive".
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import torch

from fpsim.emulation.machine.protocol import Machine
from fpsim.emulation.registry import PRIMITIVE, RULES, STEPS, TABLE, WHOLE, Rule
from fpsim.emulation.schemas import name_of, names, tensors_in

#: Families whose operations are all composite.
COMPOSITE_FAMILIES = frozenset(
    names("softmax normalization loss pooling interpolation optimizer") + ["linear algebra"]
)

#: Operations of other families that are composite.
COMPOSITE = frozenset(
    names(
        """
        gelu silu mish softplus elu celu logit log_sigmoid_forward xlogy logaddexp logaddexp2 sinc special_entr
        special_xlog1py mvlgamma
        sigmoid_backward tanh_backward gelu_backward silu_backward mish_backward softplus_backward elu_backward
        log_sigmoid_backward logit_backward hardswish hardswish_backward hardsigmoid hardsigmoid_backward
        _prelu_kernel_backward glu glu_backward linalg_cross rrelu_with_noise_backward
        linalg_vector_norm norm var std var_mean std_mean logsumexp logcumsumexp prod cumprod renorm dist
        _cdist_forward _cdist_backward _pdist_forward _pdist_backward segment_reduce _segment_reduce_backward histc histogram
        index_reduce _embedding_bag _embedding_bag_forward_only _embedding_bag_backward _embedding_bag_dense_backward
        _embedding_bag_per_sample_weights_backward
        grid_sampler_2d grid_sampler_3d grid_sampler_2d_backward grid_sampler_3d_backward
        reflection_pad1d_backward reflection_pad2d_backward reflection_pad3d_backward replication_pad1d_backward
        replication_pad2d_backward replication_pad3d_backward unfold_backward col2im
        """
    )
)


def is_composite(op: torch._ops.OpOverload) -> bool:
    """Whether an operation of the table computes more than one elementary step."""
    name = name_of(op)
    return TABLE[op].family in COMPOSITE_FAMILIES or name in COMPOSITE or name in WHOLE or op in STEPS


def _refusing(rule: Rule) -> Rule:
    def refuse(machine: Machine, *args: Any, **kwargs: Any) -> Any:
        if any(tensor.dtype is torch.float32 for tensor in tensors_in((*args, *kwargs.values()))):
            raise machine.refuse('this operation is rounded as a whole; granularity="primitive" has no steps for it')
        return rule(machine, *args, **kwargs)

    return refuse


def load() -> None:
    """Load the steps of every family; composite operations without steps are refused from then on. Rules come first."""
    for family in iter_modules(__path__):
        import_module(f"{__name__}.{family.name}")
    for op in TABLE:
        if is_composite(op) and op not in STEPS:
            PRIMITIVE[op] = _refusing(RULES[op])
