"""Every model type of transformers that is small once its configuration's sizes are."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModel, logging
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from experiments.zoo.entries import Entry

logging.set_verbosity_error()

#: What configurations call their sizes, and what these become.
SIZES = {
    32: """hidden_size d_model n_embd dim embed_dim emb_dim embedding_size hidden_dim encoder_hidden_size decoder_hidden_size
        model_dim moe_intermediate_size shared_expert_intermediate_size image_size projection_dim""",
    64: """intermediate_size d_ff n_inner ffn_dim encoder_ffn_dim decoder_ffn_dim dim_feedforward encoder_intermediate_size
        ffn_hidden_size mlp_hidden_size max_position_embeddings n_positions n_ctx max_target_positions max_source_positions""",
    2: """num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_encoder_layers num_decoder_layers
        depth encoder_num_hidden_layers decoder_num_hidden_layers num_key_value_heads num_experts_per_tok type_vocab_size
        eos_token_id""",
    4: """num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads attention_heads
        encoder_num_attention_heads decoder_num_attention_heads num_experts num_local_experts n_routed_experts""",
    1: "n_group topk_group n_shared_experts first_k_dense_replace num_hidden_groups bos_token_id decoder_start_token_id",
    8: "head_dim d_kv kv_channels qk_nope_head_dim qk_rope_head_dim v_head_dim patch_size",
    16: "q_lora_rank kv_lora_rank qk_head_dim num_mel_bins sliding_window",
    99: "vocab_size",
    0: "pad_token_id",
}
LARGEST = 30_000_000  # parameters


def entries() -> Iterator[Entry]:
    for kind in MODEL_MAPPING_NAMES:
        yield Entry("transformers", kind, _builder(kind), _inputs)


def _builder(kind: str) -> Callable[[], torch.nn.Module]:
    def build() -> torch.nn.Module:
        configuration = _small(CONFIG_MAPPING[kind])
        with torch.device("meta"):
            count = sum(item.numel() for item in AutoModel.from_config(configuration).parameters())
        if count > LARGEST:
            raise ValueError(f"{count:,} parameters")
        return AutoModel.from_config(configuration)

    return build


def _small(kind: Any, depth: int = 0) -> Any:
    """A configuration of this class, its sizes and those of its parts made small."""
    parts = {
        name: _small(part, depth + 1)
        for name, part in (getattr(kind, "sub_configs", None) or {}).items()
        if hasattr(part, "model_type") and depth < 3
    }
    try:
        whole = kind(**parts)
    except Exception:  # noqa: BLE001 (parts that do not fit its other defaults)
        whole = kind()
    there = {name: getattr(whole, name) for name in vars(whole)}
    sizes = {name: size for size, names in SIZES.items() for name in names.split() if type(there.get(name)) is int}
    return kind(**sizes, **parts)


def _inputs(model: Any) -> Any:
    """What the model's forward pass asks for by name."""
    configuration = model.config
    asked, main = inspect.signature(model.forward).parameters, model.main_input_name
    two_towers = any(name == "logit_scale" for name, _ in model.named_parameters())
    kwargs: dict[str, torch.Tensor] = {}
    if "input_ids" in asked and (main == "input_ids" or two_towers):
        kwargs["input_ids"] = _tokens()
    if "pixel_values" in asked and (main == "pixel_values" or two_towers):
        vision = getattr(configuration, "vision_config", configuration)
        kwargs["pixel_values"] = torch.randn(2, getattr(vision, "num_channels", 3), *_image(vision))
    if main == "input_values":
        bins = getattr(configuration, "num_mel_bins", None)
        kwargs["input_values"] = torch.randn(2, 4000) if bins is None else torch.randn(2, configuration.max_length, bins)
    if main == "input_features":
        kwargs["input_features"] = torch.randn(2, getattr(configuration, "num_mel_bins", 16), 128)
    if getattr(configuration, "is_encoder_decoder", False) and "decoder_input_ids" in asked:
        kwargs["decoder_input_ids"] = _tokens()
    return (), kwargs


def _tokens() -> torch.Tensor:
    return torch.randint(3, 90, (2, 16))


def _image(vision: Any) -> tuple[int, int]:
    size = getattr(vision, "image_size", 32)
    return (size, size) if isinstance(size, int) else tuple(size)
