"""Where fpsim and torch's CPU kernels give different numbers for a Python number, and why.

Measured with torch 2.13 on a processor with AVX-512. Names are those of the operator database, or of the operations that it
calls; then places (see `number_calls`), each with the dtypes: `h` float16, `b` bfloat16, capitals for numbers beyond the range.
"""

from typing import NamedTuple

import torch


class Key(NamedTuple):
    """A place for a number in an operation, with the kind of the number."""

    name: str
    place: str
    dtype: torch.dtype
    beyond: bool


ROUNDED = "the CPU rounds the number to the dtype first, CUDA keeps it in fp32"
FACTOR = "the CPU rounds the factor too, and the product with it in what its vectors leave over, CUDA keeps both in fp32"
SEVERAL = "the CPU rounds each of several numbers, or numbers that are made of them, CUDA keeps them in fp32"
EPILOGUE = "the CPU rounds within the epilogue of a product, and leaves out a product of no terms"
PARTIAL = "the CPU keeps partial results, or what it makes of the number, in the dtype"
ATTENTION = "the CPU's flash kernel adds in blocks, and refuses dropout"
STATISTICS = "statistics stay wide, the CPU's are of the dtype"
DRAWN = "float16 and bfloat16 draws are others than float32 draws"
SORTED = "torch sorts many elements and the number in float32"
ORDER = "an order beyond float32 is infinite to torch once it has chosen the formula for finite ones"
TWICE = "the CPU rounds to fp32 in between, which here is a tie"
SIGN = "a zero has the sign of its operand, but in the vectors of torch's float32 kernel and in CUDA's"

_LISTED = {
    ROUNDED: """
        __radd__: operand 1 hHb | operand 1 as a tensor hHb
        __rsub__: operand 1 hHb | operand 1 as a tensor hHb
        add: in place, operand 1 hHb | in place, operand 1 as a tensor hHb | operand 1 hHb | operand 1 as a tensor hHb
        aten.add.Scalar: alpha hb | other hHb
        aten.add_.Scalar: other hHb
        aten.histc.default: max hb | min hb
        aten.mul_.Scalar: other hHb
        aten.rsub.Scalar: other hHb
        aten.sub.Scalar: other hHb
        div_floor_rounding: operand 0 hHb
        div_no_rounding_mode: operand 0 hHb
        div_trunc_rounding: operand 0 hHb
        floor_divide: operand 0 hHb
        logspace: numbers h
        mul: operand 0 hHb
        nn_functional_gaussian_nll_loss: operand 1 h | operand 1 as a tensor h
        nn_functional_linear: operand 2 as a tensor hHb
        nn_functional_margin_ranking_loss: numbers hb
        nn_functional_pairwise_distance: operand 1 as a tensor hH
        sub: in place, operand 1 hHb | in place, operand 1 as a tensor hHb | operand 1 hHb | operand 1 as a tensor hHb
        true_divide: operand 0 hHb
        """,
    FACTOR: """
        add: in place, numbers hb | numbers hb | operand 0 hHb
        aten.add.Tensor: alpha hb
        aten.add_.Scalar: alpha hb
        aten.add_.Tensor: alpha hb
        aten.rsub.Scalar: alpha hb
        aten.rsub.Tensor: alpha hb
        aten.sub.Scalar: alpha hb
        aten.sub.Tensor: alpha hb
        aten.sub_.Tensor: alpha hb
        rsub: numbers hb | operand 1 hHb | operand 1 as a tensor hHb
        sub: in place, numbers hb | numbers hb | operand 0 hHb
        """,
    SEVERAL: """
        nn_functional_alpha_dropout: in place, numbers hb | numbers hb
        nn_functional_feature_alpha_dropout_with_train: in place, numbers hb | numbers hb
        nn_functional_local_response_norm: numbers hHb
        """,
    EPILOGUE: """
        addbmm: in place, numbers hb | numbers hb
        addmm: in place, numbers hHbB | numbers hHbB
        addmv: in place, numbers hb | numbers hb
        aten.addbmm.default: alpha hb | beta hb
        aten.addmv.default: alpha hb
        """,
    PARTIAL: """
        aten.huber_loss.default: delta hb
        aten.index_add.default: alpha hb
        aten.index_add_.default: alpha hb
        aten.logit.default: eps hb
        aten.logit_backward.default: eps hb
        aten.renorm.default: maxnorm hb | p hb
        dist: operand 1 as a tensor hb
        div_trunc_rounding: in place, operand 1 hb | in place, operand 1 as a tensor hb | operand 1 hb
            | operand 1 as a tensor hb
        linspace: numbers hb
        logit: in place, numbers hb | numbers hb
        nn_functional_binary_cross_entropy_with_logits: operand 1 as a tensor hb
        nn_functional_cosine_similarity: operand 1 as a tensor B
        nn_functional_huber_loss: numbers hbB | operand 1 as a tensor hb
        nn_functional_interpolate_area: numbers hb
        nn_functional_interpolate_bicubic: numbers hb
        nn_functional_interpolate_linear: numbers hHb
        nn_functional_interpolate_trilinear: numbers hb
        nn_functional_kl_div: operand 1 as a tensor hHb
        nn_functional_multilabel_soft_margin_loss: operand 1 as a tensor hb
        nn_functional_poisson_nll_loss: operand 1 as a tensor hHb
        nn_functional_soft_margin_loss: operand 1 as a tensor hb
        renorm: in place, numbers hb | numbers hb
        special_xlog1py: operand 0 hb | operand 1 hb | operand 1 as a tensor hb
        xlogy: in place, operand 1 hb | in place, operand 1 as a tensor hb | operand 0 hb | operand 1 hb
            | operand 1 as a tensor hb
        """,
    ATTENTION: """
        aten._scaled_dot_product_flash_attention_for_cpu.default: dropout_p hb | scale hHbB
        aten._scaled_dot_product_flash_attention_for_cpu_backward.default: dropout_p hHbB | scale hHbB
        nn_functional_scaled_dot_product_attention: numbers hb
        """,
    STATISTICS: """
        _batch_norm_with_update: numbers hHbB
        _native_batch_norm_legit: numbers hHbB
        aten._batch_norm_with_update.default: eps hHbB | momentum hHbB
        aten._native_batch_norm_legit.default: eps hHbB | momentum hHbB
        aten._native_batch_norm_legit.no_stats: eps hHbB | momentum hHbB
        aten.native_batch_norm.default: eps hHbB | momentum hHbB
        aten.native_batch_norm_backward.default: eps h
        aten.native_group_norm.default: eps hHbB
        aten.native_layer_norm.default: eps hHbB
        native_batch_norm: numbers hHbB
        native_group_norm: numbers hHbB
        native_layer_norm: numbers hHbB
        nn_functional_batch_norm: numbers hbB
        nn_functional_instance_norm: numbers hb
        """,
    DRAWN: """
        aten.normal.Tensor_float: std hHb
        aten.normal_.default: mean hb | std hHbB
        aten.rrelu_with_noise.default: lower b | upper b
        nn_functional_rrelu: in place, numbers b | numbers b
        normal: numbers hHb | operand 0 hb | operand 1 hHbB | operand 1 as a tensor hHbB
        normal_in_place: in place, numbers hHbB | numbers hHbB
        normal_number_mean: numbers hHb
        """,
    SORTED: """
        isin: operand 0 hHbB
        """,
    ORDER: """
        aten.dist.default: p B
        aten.linalg_vector_norm.default: ord B
        aten.norm.ScalarOpt_dim: p B
        aten.renorm.default: p B
        linalg_norm_subgradients_at_zero: numbers B
        linalg_vector_norm: numbers B
        masked_norm: numbers B
        masked_normalize: numbers B
        nn_functional_normalize: numbers B
        nn_functional_pairwise_distance: numbers B
        norm: numbers B
        norm_inf: numbers B
        """,
    TWICE: """
        aten.elu.default: scale b
        """,
    SIGN: """
        aten.softshrink.default: lambd hb
        nn_functional_softshrink: numbers hb
        """,
}


def _keys(text: str) -> list[Key]:
    keys, name = [], ""
    for line in filter(None, map(str.strip, text.splitlines())):
        start, colon, rest = line.partition(": ")
        name, rest = (start, rest) if colon else (name, line)
        for part in rest.strip("| ").split(" | "):
            place, _, letters = part.rpartition(" ")
            for letter in letters:
                dtype = torch.float16 if letter in "hH" else torch.bfloat16
                keys.append(Key(name, place, dtype, letter.isupper()))
    return keys


#: The reason of each.
EXCEPTIONS = {key: reason for reason, text in _LISTED.items() for key in _keys(text)}
