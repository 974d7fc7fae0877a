"""A small model of each of timm's architectures, at 64 x 64 where it takes that."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import timm
import torch

from experiments.zoo.entries import Entry

NAMES = """
    halonet_h1 mobileone_s0 cait_xxs24_224 coat_tiny convit_tiny convnext_atto cpubone_nano crossvit_tiny_240
    cs3darknet_focus_s cspnext_tiny davit_tiny deit_tiny_distilled_patch16_224 densenet121 dla46x_c dpn48b
    edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientnet_b0 efficientvim_m1 efficientvit_b0
    efficientvit_m0 eva02_tiny_patch14_224 fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny ghostnet_050
    hardcorenas_b hgnetv2_b0 hiera_tiny_224 hrnet_w18_small iformer_t inception_next_atto lcnet_050 levit_128s
    lowformer_b0 mambaout_femto coatnet_0_224 caformer_s18 gmlp_ti16_224 mixer_s32_224 resmlp_12_224
    mobilenetv3_small_050 mobilenetv4_conv_small mobilevit_xxs mobilevitv2_050 mvitv2_tiny nest_tiny nf_resnet26
    pit_ti_224 pvt_v2_b0 rdnet_tiny regnetx_002 repghostnet_050 repvit_m0_9 res2net50_14w_8s resnest14d resnet18
    ecaresnet26t resnetv2_50 rexnet_100 selecsls42 legacy_seresnet18 shvit_s1 skresnet18 starnet_s050 swiftformer_xs
    swin_tiny_patch4_window7_224 swinv2_cr_tiny_224 tiny_vit_5m_224 tnt_s_patch16_224 twins_svt_small visformer_tiny
    vit_tiny_patch16_224 vit_tiny_r_s16_p8_224 vit_relpos_small_patch16_224 ese_vovnet19b_slim_dw legacy_xception
    xcit_nano_12_p16_224
"""
#: Images and their size, where two images of 64 x 64 or one of the model's own size do not do.
SIZES = {"halonet_h1": (1, 256), "efficientvit_m0": (2, 64), "levit_128s": (2, 224)}


def entries() -> Iterator[Entry]:
    for name in NAMES.split():
        inputs = _sized(*SIZES[name]) if name in SIZES else _images
        yield Entry("timm", name, lambda name=name: timm.create_model(name, num_classes=10), inputs)


def _sized(count: int, size: int) -> Any:
    return lambda model: ((torch.randn(count, 3, size, size),), {})


def _images(model: Any) -> Any:
    """Two images; one where the model takes a size of its own alone."""
    settings = model.default_cfg
    if settings.get("fixed_input_size"):
        return (torch.randn(1, *settings["input_size"]),), {}
    return (torch.randn(2, 3, 64, 64),), {}
