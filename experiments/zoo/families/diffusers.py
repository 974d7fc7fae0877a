"""diffusers' networks: U-nets, autoencoders and transformers, of a few channels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import diffusers
import torch

from experiments.zoo.entries import Entry

_BLOCKS = {"layers_per_block": 1, "norm_num_groups": 8, "block_out_channels": (16, 32)}
_CODER = {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8, "latent_channels": 4, "sample_size": 16}
_DOWN_UP = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
_CROSS = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 16, "attention_head_dim": 4,
}  # fmt: skip
_ENCODER = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}

#: Configurations by class.
SETTINGS: dict[str, dict[str, Any]] = {
    "UNet2DModel": {**_BLOCKS, **_DOWN_UP, "sample_size": 16, "attention_head_dim": 8},
    "UNet2DConditionModel": {**_BLOCKS, **_CROSS, "sample_size": 16},
    "UNet3DConditionModel": {
        **_BLOCKS, "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"), "cross_attention_dim": 16,
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"), "attention_head_dim": 4, "sample_size": 16,
    },
    "AutoencoderKL": {**_CODER, **_ENCODER},
    "VQModel": {**_CODER, **_ENCODER, "num_vq_embeddings": 32, "vq_embed_dim": 4},
    "AutoencoderTiny": {
        "encoder_block_out_channels": (16, 16), "decoder_block_out_channels": (16, 16), "num_encoder_blocks": (1, 1),
        "num_decoder_blocks": (1, 1),
    },
    "AutoencoderKLTemporalDecoder": {
        "block_out_channels": (32, 32), "down_block_types": ("DownEncoderBlock2D",) * 2, "layers_per_block": 1,
        "sample_size": 16,
    },
    "DiTTransformer2DModel": {
        "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 8, "in_channels": 4,
        "out_channels": 8,
    },
    "PixArtTransformer2DModel": {
        "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 8, "caption_channels": 16,
        "cross_attention_dim": 16, "use_additional_conditions": False,
    },
    "SD3Transformer2DModel": {
        "sample_size": 8, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 16,
        "caption_projection_dim": 16, "pooled_projection_dim": 16, "in_channels": 4, "out_channels": 4, "pos_embed_max_size": 8,
    },
    "FluxTransformer2DModel": {
        "in_channels": 4, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2,
        "joint_attention_dim": 16, "pooled_projection_dim": 16, "axes_dims_rope": (4, 4, 8),
    },
    "Transformer2DModel": {
        "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 16, "norm_num_groups": 8, "num_layers": 2,
        "cross_attention_dim": 16,
    },
}  # fmt: skip


def entries() -> Iterator[Entry]:
    for name, settings in SETTINGS.items():
        yield Entry("diffusers", name, lambda name=name, settings=settings: getattr(diffusers, name)(**settings), _inputs)


def _inputs(model: Any) -> Any:
    """By the model's class: latents, a time step, and what it is conditioned on."""
    name, kwargs = type(model).__name__, {}
    latents, text = torch.randn(1, 4, 8, 8), torch.randn(1, 7, 16)
    if name.startswith(("Autoencoder", "VQ")):
        return (torch.randn(2, 3, 16, 16),), {"num_frames": 2} if "Temporal" in name else {}
    if name == "UNet2DModel":
        return (torch.randn(1, 3, 16, 16), 10), {}
    if name == "UNet3DConditionModel":
        return (torch.randn(1, 4, 2, 16, 16), 10, text), {}
    if name == "UNet2DConditionModel":
        return (torch.randn(1, 4, 16, 16), 10, text), {}
    if name == "Transformer2DModel":
        return (torch.randn(1, 16, 8, 8), text), {}
    steps = torch.tensor([10])
    if name == "DiTTransformer2DModel":
        return (latents,), {"timestep": steps, "class_labels": torch.tensor([3])}
    if name == "PixArtTransformer2DModel":
        return (latents,), {"encoder_hidden_states": text, "timestep": steps, "added_cond_kwargs": {}}
    kwargs = {"encoder_hidden_states": text, "pooled_projections": torch.randn(1, 16)}
    if name == "SD3Transformer2DModel":
        return (latents,), {**kwargs, "timestep": steps}
    return (torch.randn(1, 16, 4),), {
        **kwargs, "timestep": torch.tensor([0.5]), "img_ids": torch.randint(0, 4, (16, 3)), "txt_ids": torch.zeros(7, 3),
    }  # fmt: skip
