# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The paper's five architectures, slim and at full width, and how each is trained.

The slim ones are those of ``examples.lab.kit.networks``. The full ones have torchvision's widths.
Below 224 pixels ResNets and MobileNetV2 get the 3x3 stem of ``received``, VGG16 one linear
layer behind its convolutions instead of three, and the ViT patches of an eighth of the image, 6
blocks and 384 features: the paper does not say how it adapted them. Nothing is pretrained.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

from torch import nn
from torchvision.models import VisionTransformer
from torchvision.models.vgg import cfgs

from examples.lab.kit.networks import (
    AveragedVgg,
    slim_mobilenet_v2,
    slim_resnet18,
    slim_resnet34,
    slim_vgg16,
    slim_vit,
    with_seed,
)
from examples.lab.reproduce.data import DataSet, Scale
from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.received import architectures, load
from lmr_guard.redteam.training import Schedule

__all__ = ["NETWORKS", "Architecture", "new_network", "schedule"]

_NATIVE = 224


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


def new_network(name: str, dataset: DataSet, scale: Scale, seed: int) -> Classifier:
    """A network with new weights, drawn by ``seed``; the global random state stays as it was."""
    make, shape, classes = NETWORKS[name], dataset.preprocessing, dataset.classes
    built = partial(make.slim, classes) if scale == "small" else partial(make.full, shape, classes)
    return Classifier(with_seed(built, seed), shape, classes).eval()


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
