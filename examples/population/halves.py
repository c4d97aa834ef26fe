# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The two halves of the population: no architecture and no training recipe is in both.

Whoever chooses a threshold does so on the calibration half; what is said about it is measured on
the reported half, whose networks have another structure and were trained in another way.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import nn
from torchvision.models import VisionTransformer
from torchvision.models.vgg import cfgs

from examples.population.images import DATASETS
from examples.reproduce.networks import AveragedVgg, slim_mobilenet_v2
from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.redteam.networks import SlimResNet
from lmr_guard.redteam.training import Schedule

__all__ = ["HALVES", "Half", "HalfName", "fresh", "schedule"]

HalfName = Literal["calibration", "reported"]
_LARGE = 28


def _resnet(blocks: tuple[int, ...], width: int) -> Callable[[Preprocessing, int], nn.Module]:
    def make(shape: Preprocessing, num_classes: int) -> nn.Module:
        network = SlimResNet(blocks, width, num_classes, shape.channels)
        network.conv1 = _stem(shape, width)
        return network

    return make


def _vgg(shape: Preprocessing, num_classes: int) -> nn.Module:
    plan = [size if isinstance(size, str) else size // 8 for size in cfgs["D"]]
    return AveragedVgg([*plan[:13], *plan[14:]], num_classes, shape.channels)


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
        networks: How each architecture is trained.
        recipe: What all of them have in common.
        reach: Largest random translation, as a share of the image's side.
        flip: Whether images are mirrored where their class allows it.
    """

    networks: Mapping[str, Training]
    recipe: Schedule
    reach: float
    flip: bool


def _training(lr: float, *epochs: int) -> Training:
    return Training(MappingProxyType(dict(zip(DATASETS, epochs, strict=True))), lr)


HALVES: Mapping[HalfName, Half] = MappingProxyType(
    {
        "calibration": Half(
            networks=MappingProxyType(
                {
                    "slim_resnet18": _training(0.1, 12, 8, 8),
                    "slim_vgg16": _training(0.05, 20, 10, 10),
                }
            ),
            recipe=Schedule(batch=64, weight_decay=5e-4),
            reach=1 / 16,
            flip=False,
        ),
        "reported": Half(
            networks=MappingProxyType(
                {
                    "slim_mobilenet_v2": _training(0.04, 16, 10, 10),
                    "slim_vit": _training(0.04, 30, 20, 20),
                    "plain_resnet": _training(0.06, 10, 8, 10),
                }
            ),
            recipe=Schedule(batch=40, momentum=0.85, weight_decay=1e-3),
            reach=1 / 10,
            flip=True,
        ),
    }
)
"""Calibration and reported half."""


def fresh(network: str, dataset: str, seed: int) -> Classifier:
    """New weights, drawn by ``seed``; the global random state stays as it was."""
    shape = DATASETS[dataset].preprocessing
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        made = _NETWORKS[network](shape, 10)
    return Classifier(made, shape, 10).eval()


def schedule(half: HalfName, network: str, dataset: str, *, trained: bool) -> Schedule:
    """How one network is trained; from a trained one at half the learning rate."""
    told, shape = HALVES[half], DATASETS[dataset]
    training = told.networks[network]
    return replace(
        told.recipe,
        epochs=training.epochs[dataset],
        lr=training.lr / 2 if trained else training.lr,
        shift=round(told.reach * shape.preprocessing.height),
        flip=told.flip and shape.mirrored,
    )
