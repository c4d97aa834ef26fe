# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The two halves of the population: in no round is an architecture or a training recipe in both.

Whoever chooses a threshold does so on the calibration half; what is said about it is measured on
the reported half, whose networks have another structure and were trained in another way. From the
second round on the calibration half takes over architectures of which the first round told how
localising fails on them, and the reported half has three that nobody had looked at.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

from torch import nn
from torchvision.models import ConvNeXt, DenseNet, EfficientNet, VisionTransformer
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import MBConvConfig

from examples.lab.kit.networks import slim_mobilenet_v2, slim_vgg, with_seed
from examples.lab.population.images import DATASETS
from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.redteam.networks import SlimResNet
from lmr_guard.redteam.training import Schedule

__all__ = ["HALVES", "Half", "HalfName", "new_network", "schedule"]

HalfName = Literal["calibration", "reported"]
_LARGE = 28


def _resnet(blocks: tuple[int, ...], width: int) -> Callable[[Preprocessing, int], nn.Module]:
    def make(shape: Preprocessing, num_classes: int) -> nn.Module:
        network = SlimResNet(blocks, width, num_classes, shape.channels)
        network.conv1 = _stem(shape, width)
        return network

    return make


def _vgg(shape: Preprocessing, num_classes: int) -> nn.Module:
    return slim_vgg(num_classes, shape.channels)


def _mobilenet(shape: Preprocessing, num_classes: int) -> nn.Module:
    network: Any = slim_mobilenet_v2(num_classes)
    network.features[0][0] = _stem(shape, network.features[0][0].out_channels)
    made: nn.Module = network
    return made


def _vit(shape: Preprocessing, num_classes: int) -> nn.Module:
    side = shape.height // 4
    network = VisionTransformer(shape.height, side, 2, 4, 64, 128, num_classes=num_classes)
    network.conv_proj = nn.Conv2d(shape.channels, 64, side, stride=side)
    made: nn.Module = network
    return made


def _densenet(shape: Preprocessing, num_classes: int) -> nn.Module:
    network: Any = DenseNet(8, (3, 3, 3), 16, bn_size=2, num_classes=num_classes)
    network.features.conv0 = _stem(shape, 16)
    network.features.pool0 = nn.Identity()
    made: nn.Module = network
    return made


def _convnext(shape: Preprocessing, num_classes: int) -> nn.Module:
    stages = [CNBlockConfig(16, 32, 2), CNBlockConfig(32, 64, 2), CNBlockConfig(64, None, 2)]
    network: Any = ConvNeXt(stages, layer_scale=1.0, num_classes=num_classes)
    patch = 4 if shape.height >= _LARGE else 2
    network.features[0][0] = nn.Conv2d(shape.channels, 16, patch, stride=patch)
    made: nn.Module = network
    return made


def _efficientnet(shape: Preprocessing, num_classes: int) -> nn.Module:
    stages = [
        MBConvConfig(1, 3, 1, 8, 8, 1),
        MBConvConfig(4, 3, 2, 8, 16, 2),
        MBConvConfig(4, 5, 2, 16, 24, 2),
        MBConvConfig(4, 3, 1, 24, 32, 1),
    ]
    network: Any = EfficientNet(stages, dropout=0.0, num_classes=num_classes, last_channel=128)
    network.features[0][0] = _stem(shape, 8)
    made: nn.Module = network
    return made


def _stem(shape: Preprocessing, width: int) -> nn.Conv2d:
    """Larger images are halved at once: a quarter of the work in every later layer."""
    stride = 2 if shape.height >= _LARGE else 1
    return nn.Conv2d(shape.channels, width, 3, stride=stride, padding=1, bias=False)


_NETWORKS: Mapping[str, Callable[[Preprocessing, int], nn.Module]] = MappingProxyType(
    {
        "slim_resnet18": _resnet((2, 2, 2, 2), 8),
        "slim_vgg16": _vgg,
        "slim_mobilenet_v2": _mobilenet,
        "slim_vit": _vit,
        "plain_resnet": _resnet((1, 1, 1), 12),
        "slim_densenet": _densenet,
        "slim_convnext": _convnext,
        "slim_efficientnet": _efficientnet,
    }
)


@dataclass(frozen=True, slots=True)
class Training:
    """Epochs by data set and peak learning rate of one architecture."""

    epochs: Mapping[str, int]
    lr: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Half:
    """One half: its architectures and its recipe.

    Args:
        rounds: How each architecture of a round is trained; the last serves all later rounds too.
        recipe: What all of them have in common.
        reach: Largest random translation, as a share of the image's side.
        flip: Whether images are mirrored where their class allows it.
    """

    rounds: tuple[Mapping[str, Training], ...]
    recipe: Schedule
    reach: float
    flip: bool

    def networks(self, number: int) -> tuple[str, ...]:
        """The architectures of a round, counted from 0."""
        return tuple(self.rounds[min(number, len(self.rounds) - 1)])

    def round_of(self, network: str) -> int:
        """The first round that an architecture is in, counted from 0."""
        return next(i for i, each in enumerate(self.rounds) if network in each)

    def training(self, network: str) -> Training:
        """How an architecture is trained, whichever its round."""
        return self.rounds[self.round_of(network)][network]


def _training(lr: float, *epochs: int) -> Training:
    return Training(MappingProxyType(dict(zip(DATASETS, epochs, strict=True))), lr)


HALVES: Mapping[HalfName, Half] = MappingProxyType(
    {
        "calibration": Half(
            rounds=(
                MappingProxyType(
                    {
                        "slim_resnet18": _training(0.1, 12, 8, 8),
                        "slim_vgg16": _training(0.05, 20, 10, 10),
                    }
                ),
                MappingProxyType(
                    {
                        "slim_vit": _training(0.05, 40, 20, 20),
                        "slim_mobilenet_v2": _training(0.05, 20, 12, 12),
                    }
                ),
            ),
            recipe=Schedule(batch=64, weight_decay=5e-4),
            reach=1 / 16,
            flip=False,
        ),
        "reported": Half(
            rounds=(
                MappingProxyType(
                    {
                        "slim_mobilenet_v2": _training(0.04, 16, 10, 10),
                        "slim_vit": _training(0.04, 30, 20, 20),
                        "plain_resnet": _training(0.06, 10, 8, 10),
                    }
                ),
                MappingProxyType(
                    {
                        "slim_densenet": _training(0.05, 12, 10, 10),
                        "slim_convnext": _training(0.05, 20, 15, 15),
                        "slim_efficientnet": _training(0.05, 10, 10, 10),
                    }
                ),
            ),
            recipe=Schedule(batch=40, momentum=0.85, weight_decay=1e-3),
            reach=1 / 10,
            flip=True,
        ),
    }
)
"""Calibration and reported half."""


def new_network(network: str, dataset: str, seed: int) -> Classifier:
    """New weights, drawn by ``seed``; the global random state stays as it was."""
    shape = DATASETS[dataset].preprocessing
    made = with_seed(partial(_NETWORKS[network], shape, 10), seed)
    return Classifier(made, shape, 10).eval()


def schedule(half: HalfName, network: str, dataset: str, *, trained: bool) -> Schedule:
    """How one network is trained; from a trained one at half the learning rate."""
    told, shape = HALVES[half], DATASETS[dataset]
    training = told.training(network)
    return replace(
        told.recipe,
        epochs=training.epochs[dataset],
        lr=training.lr / 2 if trained else training.lr,
        shift=round(told.reach * shape.preprocessing.height),
        flip=told.flip and shape.mirrored,
    )
