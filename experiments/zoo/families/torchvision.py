"""torchvision's models, at small images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torchvision import models

from experiments.zoo.entries import Entry

#: Classifiers, and the images that they take.
CLASSIFIERS = {
    64: """alexnet vgg11 vgg11_bn resnet18 resnet50 resnext50_32x4d wide_resnet50_2 densenet121 squeezenet1_0 squeezenet1_1
        googlenet mobilenet_v2 mobilenet_v3_small mobilenet_v3_large mnasnet0_5 mnasnet1_0 shufflenet_v2_x0_5 shufflenet_v2_x1_0
        efficientnet_b0 efficientnet_b1 efficientnet_v2_s regnet_x_400mf regnet_y_400mf convnext_tiny swin_t swin_v2_t""",
    299: "inception_v3",
    32: "vit_b_16",
    224: "maxvit_t",
}
SEGMENTERS = "fcn_resnet50 deeplabv3_mobilenet_v3_large lraspp_mobilenet_v3_large"
DETECTORS = """fasterrcnn_mobilenet_v3_large_320_fpn fasterrcnn_resnet50_fpn retinanet_resnet50_fpn fcos_resnet50_fpn
    ssdlite320_mobilenet_v3_large maskrcnn_resnet50_fpn keypointrcnn_resnet50_fpn"""
VIDEO = {"r3d_18": (8, 32), "mc3_18": (8, 32), "r2plus1d_18": (8, 32), "s3d": (16, 64), "swin3d_t": (8, 32)}


def entries() -> Iterator[Entry]:
    for size, names in CLASSIFIERS.items():
        for name in names.split():
            extra = {"image_size": size} if name == "vit_b_16" else {}
            yield Entry("torchvision", name, _builder(name, num_classes=10, **extra), _images((2, 3, size, size)))
    for name in SEGMENTERS.split():
        builder = _builder(f"{name}", module=models.segmentation, num_classes=5, weights_backbone=None)
        yield Entry("torchvision", name, builder, _images((2, 3, 64, 64)))
    for name in DETECTORS.split():
        sizes = {} if name.startswith("ssd") else {"min_size": 64, "max_size": 96}
        builder = _builder(name, module=models.detection, num_classes=4, weights_backbone=None, **sizes)
        yield Entry("torchvision", name, builder, _scenes(name))
    for name, (frames, size) in VIDEO.items():
        images = _images((2, 3, frames, size, size))
        builder = _builder(name, module=models.video, num_classes=5)
        yield Entry("torchvision", name, _pooling_less(builder) if name == "s3d" else builder, images)
    for name in ("raft_small", "raft_large"):
        yield Entry("torchvision", name, _builder(name, module=models.optical_flow), _two_images)


def _builder(name: str, module: Any = models, **settings: Any) -> Callable[[], torch.nn.Module]:
    return lambda: getattr(module, name)(weights=None, **settings)


def _pooling_less(builder: Callable[[], torch.nn.Module]) -> Callable[[], torch.nn.Module]:
    """Over the 2 x 2 x 2 places that small images leave, where it pools over the 2 x 7 x 7 of 224 x 224."""

    def build() -> torch.nn.Module:
        model = builder()
        model.avgpool = torch.nn.AvgPool3d(2, stride=1)
        return model

    return build


def _images(shape: tuple[int, ...]) -> Any:
    return lambda model: ((torch.randn(shape),), {})


def _two_images(model: torch.nn.Module) -> Any:
    return (torch.randn(1, 3, 128, 128), torch.randn(1, 3, 128, 128)), {"num_flow_updates": 2}


def _scenes(name: str) -> Any:
    def inputs(model: torch.nn.Module) -> Any:
        targets = []
        for _ in range(2):
            corner, extent = 30 * torch.rand(3, 2), 8 + 20 * torch.rand(3, 2)
            target = {"boxes": torch.cat((corner, corner + extent), 1), "labels": torch.randint(1, 4, (3,))}
            if name.startswith("mask"):
                target["masks"] = (torch.rand(3, 64, 64) > 0.5).to(torch.uint8)
            if name.startswith("keypoint"):
                target["labels"] = torch.ones(3, dtype=torch.int64)
                target["keypoints"] = torch.cat((corner[:, None] + 4 * torch.rand(3, 17, 2), torch.ones(3, 17, 1)), 2)
            targets.append(target)
        return ([torch.rand(3, 64, 64) for _ in range(2)], targets), {}

    return inputs
