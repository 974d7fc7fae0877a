"""Operations that emulation does not have, and what to use instead."""

from __future__ import annotations

from typing import Any

from fpsim.emulation.errors import NESTED
from fpsim.emulation.machine.protocol import Machine
from fpsim.emulation.registry import Rule, register
from fpsim.emulation.schemas import names, overloads

_NESTED = f"{NESTED} or compute with them one by one"
_FUSED = "the fused inference path of an attention module: torch.backends.mha.set_fastpath_enabled(False) takes the other one"
_INTEGERS = "integer kernels of another machine: prepare_qat, or fake quantization, keeps the model in floating point"
_LIBRARY = "a layout of oneDNN's own: leave the model as it is, to_mkldnn() changes no number"

INSTEAD = {
    "_nested_tensor_from_tensor_list _nested_tensor_from_mask _nested_from_padded _nested_from_padded_and_nested_example "
    "_nested_view_from_buffer _nested_view_from_buffer_copy _nested_tensor_softmax_with_shape nested_to_padded_tensor": _NESTED,
    "quantize_per_tensor quantize_per_tensor_dynamic quantize_per_channel dequantize int_repr": _INTEGERS,
    "to_mkldnn mkldnn_convolution mkldnn_linear": _LIBRARY,
    "_transformer_encoder_layer_fwd _native_multi_head_attention _transform_bias_rescale_qkv": _FUSED,
}


def _refusing(reason: str) -> Rule:
    def refuse(machine: Machine, *args: Any, **kwargs: Any) -> Any:
        raise machine.refuse(reason)

    return refuse


for _names, _reason in INSTEAD.items():
    for _name in names(_names):
        for _op in overloads(_name).values():
            register(_op, family="refused")(_refusing(_reason))
