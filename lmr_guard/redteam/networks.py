# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Slim residual networks for small images, from torchvision's own blocks.

torchvision's ``resnet18`` has a fixed width; these have the same shape at any width, with the
3x3 stem without pooling that is usual for small images.
"""

from typing import Any

from torch import Tensor, nn

__all__ = ["SlimResNet", "digits_resnet", "slim_resnet18"]


class SlimResNet(nn.Module):
    """A ResNet of basic blocks: stages of doubling width and halving resolution.

    Args:
        blocks: Blocks a stage.
        width: Channels of the first stage.
        num_classes: K.
        channels: Channels of the input.
    """

    default_cfg: dict[str, Any]

    def __init__(
        self, blocks: tuple[int, ...], width: int, num_classes: int, channels: int = 3
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        stages, inputs = [], width
        for i, count in enumerate(blocks):
            outputs = width * 2**i
            stages.append(_stage(inputs, outputs, count, stride=1 if i == 0 else 2))
            inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K)."""
        features = self.stages(self.relu(self.bn1(self.conv1(images))))
        logits: Tensor = self.fc(self.avgpool(features).flatten(1))
        return logits


def _stage(inputs: int, outputs: int, count: int, stride: int) -> nn.Sequential:
    # As slow to load as torch itself; most commands build no such network.
    from torchvision.models.resnet import BasicBlock

    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
        )
    first = BasicBlock(inputs, outputs, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs) for _ in range(count - 1)))


def digits_resnet(num_classes: int = 10) -> SlimResNet:
    """Three stages of one block, 16 to 64 channels, grey input: for 8x8 to 16x16 digits."""
    network = SlimResNet((1, 1, 1), 16, num_classes, channels=1)
    network.default_cfg = {"input_size": (1, 16, 16), "mean": (0.0,), "std": (1.0,)}
    return network


def slim_resnet18(num_classes: int = 10, width: int = 16) -> SlimResNet:
    """ResNet-18's shape with ``width`` instead of 64 channels, for 32x32 colour images."""
    network = SlimResNet((2, 2, 2, 2), width, num_classes)
    network.default_cfg = {
        "input_size": (3, 32, 32),
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.2470, 0.2435, 0.2616),
    }
    return network
