# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The slim networks: shapes by eye, and torchvision's ResNet-18 at full width."""

import pytest
import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.models.resnet import BasicBlock

from lmr_guard.classifier import find_head
from lmr_guard.redteam.networks import SlimResNet, digits_resnet, slim_resnet18


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_at_full_width_it_is_resnet18_with_a_small_stem() -> None:
    ours, theirs = slim_resnet18(7, width=64), resnet18(num_classes=7)
    stem = 64 * 3 * (7 * 7 - 3 * 3)
    assert count(ours) == count(theirs) - stem
    kinds = [
        [type(m) for m in network.modules() if not list(m.children())] for network in (ours, theirs)
    ]
    kinds[1].remove(nn.MaxPool2d)
    assert sorted(map(str, kinds[0])) == sorted(map(str, kinds[1]))


@pytest.mark.parametrize(
    ("network", "channels", "side", "classes"),
    [
        (digits_resnet(), 1, 16, 10),
        (digits_resnet(3), 1, 8, 3),
        (slim_resnet18(), 3, 32, 10),
        (slim_resnet18(5, width=4), 3, 33, 5),
        (SlimResNet((2, 1), 3, 4, channels=2), 2, 5, 4),
    ],
)
def test_any_size_gives_logits_from_one_head(
    network: SlimResNet, channels: int, side: int, classes: int
) -> None:
    pixels = torch.rand(2, channels, side, side)
    assert network.eval()(pixels).shape == (2, classes)
    name, head = find_head(network, pixels, classes)
    assert (name, head) == ("fc", network.fc)


def test_stages_double_the_width_and_halve_the_size() -> None:
    network = SlimResNet((2, 1, 3), 4, 10).eval()
    shapes, x = [], torch.rand(2, 4, 16, 16)
    for stage in network.stages:
        x = stage(x)
        shapes.append((len(list(stage)), *x.shape[1:]))
    assert shapes == [(2, 4, 16, 16), (1, 8, 8, 8), (3, 16, 4, 4)]
    assert sum(isinstance(m, BasicBlock) for m in network.modules()) == 6


@pytest.mark.parametrize(("make", "channels"), [(digits_resnet, 1), (slim_resnet18, 3)])
def test_the_networks_say_what_they_expect(make: type[SlimResNet], channels: int) -> None:
    said = make().default_cfg  # type: ignore[call-arg]
    assert isinstance(said, dict)
    assert said["input_size"][0] == len(said["mean"]) == len(said["std"]) == channels
