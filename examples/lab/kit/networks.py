# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Networks for small images: slim forms of well-known architectures, and plain ones.

The slim ones, from torchvision's classes and blocks, take 16x16 grey images and are trained in
seconds on one thread. Their factories tell their input in ``default_cfg``, so that the guard's
command line takes them too:
``--arch examples.lab.kit.networks:slim_vgg16``.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import MobileNetV2, VisionTransformer
from torchvision.models.vgg import cfgs, make_layers

from lmr_guard.redteam.networks import SlimResNet

__all__ = [
    "AveragedVgg",
    "Ended",
    "FastVgg",
    "PlainCnn",
    "slim_mobilenet_v2",
    "slim_resnet18",
    "slim_resnet34",
    "slim_vgg",
    "slim_vgg16",
    "slim_vit",
    "with_seed",
]

_GREY = {"input_size": (1, 16, 16), "mean": (0.3,), "std": (0.35,)}


def with_seed(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A network whose new weights follow from ``seed``; the global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return make()


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


class FastVgg(nn.Module):
    """Six plain 3x3 convolutions behind a narrow 2x2 one, as the fastest public trainings have it.

    Args:
        num_classes: K.
        widths: Channels of the three pairs of convolutions.
        channels: Of the input.
    """

    def __init__(
        self, num_classes: int = 10, widths: tuple[int, ...] = (64, 128, 256), channels: int = 3
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 24, 2)
        pairs, inputs = [], 24
        for outputs in widths:
            pairs.append(_pair(inputs, outputs))
            inputs = outputs
        self.pairs = nn.Sequential(*pairs)
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.fc = nn.Linear(inputs, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K)."""
        features = self.pairs(F.relu(self.stem(images)))
        logits: Tensor = self.fc(self.pool(features).flatten(1))
        return logits


def _pair(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class PlainCnn(nn.Sequential):
    """Three convolutions without batch norm and two linear layers, as tutorials have it.

    Args:
        num_classes: K.
        width: Channels of the first convolution.
        channels: Of the input.
        side: Of the input, in pixels.
    """

    def __init__(
        self, num_classes: int = 10, width: int = 32, *, channels: int = 3, side: int = 32
    ) -> None:
        layers: list[nn.Module] = []
        inputs = channels
        for outputs in (width, 2 * width, 4 * width):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
            inputs = outputs
        layers += [nn.Flatten(), nn.Linear((side // 8) ** 2 * inputs, 128), nn.ReLU()]
        super().__init__(*layers, nn.Linear(128, num_classes))


class Ended(nn.Module):
    """A network whose logits nobody sees: its softmax, or a multiple of them.

    Args:
        network: Normalised images to logits.
        ending: ``softmax``; anything else leaves the logits as they are.
    """

    def __init__(self, network: nn.Module, ending: str) -> None:
        super().__init__()
        self.network = network
        self.ending = ending

    def forward(self, images: Tensor) -> Tensor:
        """Outputs (N, K)."""
        logits: Tensor = self.network(images)
        return logits.softmax(dim=1) if self.ending == "softmax" else logits


def slim_resnet18(num_classes: int = 10) -> nn.Module:
    """ResNet-18's stages with 8 channels in the first."""
    return _grey(SlimResNet((2, 2, 2, 2), 8, num_classes, channels=1))


def slim_resnet34(num_classes: int = 10) -> nn.Module:
    """ResNet-34's stages with 8 channels in the first."""
    return _grey(SlimResNet((3, 4, 6, 3), 8, num_classes, channels=1))


def slim_vgg16(num_classes: int = 10) -> nn.Module:
    """See ``slim_vgg``."""
    return _grey(slim_vgg(num_classes, channels=1))


def slim_vgg(num_classes: int, channels: int) -> AveragedVgg:
    """VGG16 with an eighth of its channels; of its five halvings the fourth is left out."""
    plan = [size if isinstance(size, str) else size // 8 for size in cfgs["D"]]
    return AveragedVgg([*plan[:13], *plan[14:]], num_classes, channels)


def slim_mobilenet_v2(num_classes: int = 10, width: float = 0.25) -> nn.Module:
    """MobileNetV2's blocks at a part of its width: nine of seventeen, three that halve."""
    blocks = [[1, 16, 1, 1], [6, 24, 1, 1], [6, 32, 2, 2], [6, 64, 2, 2], [6, 96, 1, 1]]
    network = MobileNetV2(
        num_classes, width, inverted_residual_setting=[*blocks, [6, 160, 1, 2]], dropout=0.0
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
