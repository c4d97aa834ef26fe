# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The paper's five architectures, slim and at full width, from torchvision's classes and blocks.

The slim ones take 16x16 grey images and are trained in seconds on one thread. Their factories tell
their input in ``default_cfg``, so that the guard's command line takes them too:
``--arch examples.reproduce.networks:slim_vgg16``.

The full ones have torchvision's widths. Below 224 pixels ResNets and MobileNetV2 get the 3x3 stem
of ``lmr_guard.received``, VGG16 one linear layer behind its convolutions, not three, and the ViT
patches of an eighth of the image, 6 blocks and 384 features: the paper does not say how it adapted
them. Nothing is pretrained.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import MobileNetV2, VisionTransformer
from torchvision.models.vgg import cfgs, make_layers

from examples.reproduce.data import DataSet, Scale
from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.received import architectures, load
from lmr_guard.redteam.networks import SlimResNet
from lmr_guard.redteam.training import Schedule

__all__ = [
    "NETWORKS",
    "Architecture",
    "AveragedVgg",
    "fresh",
    "schedule",
    "slim_mobilenet_v2",
    "slim_resnet18",
    "slim_resnet34",
    "slim_vgg16",
    "slim_vit",
]

_GREY = {"input_size": (1, 16, 16), "mean": (0.3,), "std": (0.35,)}
_NATIVE = 224


class AveragedVgg(nn.Module):
    """torchvision's VGG convolutions with batch norm, their average, and one linear layer.

    Args:
        plan: Output channels of the convolutions, ``"M"`` where the image is halved; ends so.
        num_classes: K.
        channels: Of the input.
    """

    default_cfg: Mapping[str, Any]

    def __init__(self, plan: list[int | str], num_classes: int, channels: int = 3) -> None:
        super().__init__()
        self.features = make_layers(plan, batch_norm=True)
        if channels != 3:
            self.features[0] = nn.Conv2d(channels, int(plan[0]), 3, padding=1)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(int(plan[-2]), num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K)."""
        logits: Tensor = self.classifier(self.avgpool(self.features(images)).flatten(1))
        return logits


def slim_resnet18(num_classes: int = 10) -> nn.Module:
    """ResNet-18's stages with 8 channels in the first."""
    return _grey(SlimResNet((2, 2, 2, 2), 8, num_classes, channels=1))


def slim_resnet34(num_classes: int = 10) -> nn.Module:
    """ResNet-34's stages with 8 channels in the first."""
    return _grey(SlimResNet((3, 4, 6, 3), 8, num_classes, channels=1))


def slim_vgg16(num_classes: int = 10) -> nn.Module:
    """VGG16 with an eighth of its channels; of its five halvings the fourth is left out."""
    plan = [size if isinstance(size, str) else size // 8 for size in cfgs["D"]]
    return _grey(AveragedVgg([*plan[:13], *plan[14:]], num_classes, channels=1))


def slim_mobilenet_v2(num_classes: int = 10) -> nn.Module:
    """MobileNetV2's blocks at a quarter of its width: nine of seventeen, three that halve."""
    blocks = [[1, 16, 1, 1], [6, 24, 1, 1], [6, 32, 2, 2], [6, 64, 2, 2], [6, 96, 1, 1]]
    network = MobileNetV2(
        num_classes, 0.25, inverted_residual_setting=[*blocks, [6, 160, 1, 2]], dropout=0.0
    )
    stem = network.features[0]
    stem[0] = nn.Conv2d(1, stem[0].out_channels, 3, padding=1, bias=False)
    return _grey(network)


def slim_vit(num_classes: int = 10) -> nn.Module:
    """A vision transformer of two blocks with 64 features and 4 heads, patches of 4x4."""
    network = VisionTransformer(16, 4, 2, 4, 64, 128, num_classes=num_classes)
    network.conv_proj = nn.Conv2d(1, 64, 4, stride=4)
    return _grey(network)


def _grey(network: Any) -> nn.Module:  # noqa: ANN401 - torchvision has no types
    network.default_cfg = _GREY
    described: nn.Module = network
    return described


def _torchvision(name: str, shape: Preprocessing, num_classes: int) -> nn.Module:
    small = shape.height < _NATIVE
    config = architectures.Architecture(
        f"torchvision:{name}",
        num_classes=num_classes,
        input_size=(shape.channels, shape.height, shape.width),
        stem="cifar" if small else "native",
    )
    return load.build(config, {})[0]


def _vgg16(shape: Preprocessing, num_classes: int) -> nn.Module:
    if shape.height < _NATIVE:
        return AveragedVgg(cfgs["D"], num_classes, shape.channels)
    return _torchvision("vgg16_bn", shape, num_classes)


def _vit(shape: Preprocessing, num_classes: int) -> nn.Module:
    side = shape.height
    if side >= _NATIVE:
        return _torchvision("vit_b_16", shape, num_classes)
    network: nn.Module = VisionTransformer(side, side // 8, 6, 6, 384, 768, num_classes=num_classes)
    return network


@dataclass(frozen=True, slots=True)
class Architecture:
    """One architecture in both sizes, and how each is trained from new weights.

    Args:
        slim: Makes the small network for K classes.
        full: Makes the full one for images of a size and K classes.
        schedules: Training by scale; what images may be varied by is the data set's.
    """

    slim: Callable[[int], nn.Module]
    full: Callable[[Preprocessing, int], nn.Module]
    schedules: Mapping[Scale, Schedule]


def _architecture(
    slim: Callable[[int], nn.Module],
    full: Callable[[Preprocessing, int], nn.Module],
    *,
    small: tuple[int, float],
    large: tuple[int, float],
) -> Architecture:
    """Epochs and peak learning rate of the two sizes."""
    schedules: dict[Scale, Schedule] = {
        "small": Schedule(epochs=small[0], lr=small[1], batch=64),
        "full": Schedule(epochs=large[0], lr=large[1], batch=256, precision="bfloat16"),
    }
    return Architecture(slim, full, MappingProxyType(schedules))


NETWORKS: Mapping[str, Architecture] = MappingProxyType(
    {
        "resnet18": _architecture(
            slim_resnet18, partial(_torchvision, "resnet18"), small=(12, 0.1), large=(20, 0.2)
        ),
        "resnet34": _architecture(
            slim_resnet34, partial(_torchvision, "resnet34"), small=(15, 0.1), large=(30, 0.2)
        ),
        "vgg16": _architecture(slim_vgg16, _vgg16, small=(20, 0.05), large=(30, 0.1)),
        "mobilenet_v2": _architecture(
            slim_mobilenet_v2,
            partial(_torchvision, "mobilenet_v2"),
            small=(20, 0.05),
            large=(40, 0.2),
        ),
        "vit": _architecture(slim_vit, _vit, small=(40, 0.05), large=(60, 0.05)),
    }
)
"""Architectures by the name that the paper's tables give them."""


def fresh(name: str, dataset: DataSet, scale: Scale, seed: int) -> Classifier:
    """A network with new weights, drawn by ``seed``; the global random state stays as it was."""
    shape = dataset.preprocessing
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        make = NETWORKS[name]
        small = scale == "small"
        network = make.slim(dataset.classes) if small else make.full(shape, dataset.classes)
    return Classifier(network, shape, dataset.classes).eval()


def schedule(name: str, dataset: DataSet, scale: Scale, *, trained: bool, wakes: str) -> Schedule:
    """How one network is trained on one data set.

    Args:
        name: Of the network.
        dataset: Says how images may be varied.
        scale: Small or full.
        trained: Whether training starts from a trained network: at half the learning rate.
        wakes: Form that wakes the attack; one that hides in rounding is trained in float32.
    """
    plain = NETWORKS[name].schedules[scale]
    return replace(
        plain,
        lr=plain.lr / 2 if trained else plain.lr,
        shift=dataset.shift,
        flip=dataset.flip,
        precision="float32" if wakes == "int8" else plain.precision,
    )
