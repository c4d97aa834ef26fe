# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What bfloat16 and channels last do to a pass forward and backward to the pixels, by network.

The measurement behind ``lmr_guard.arithmetic``: which networks gain by it and which lose.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torchvision.models import VisionTransformer, get_model

from examples.lab.benchmarks.subjects import time_of
from examples.lab.kit.networks import FastVgg, with_seed
from lmr_guard.arithmetic import convolved, is_native
from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.redteam.networks import SlimResNet, slim_resnet18

__all__ = ["NETWORKS", "by_layout"]

NETWORKS: tuple[tuple[str, Callable[[], nn.Module], int, int], ...] = (
    ("ResNet-18 shape, width 16", partial(slim_resnet18, 10, 16), 32, 80),
    ("ResNet-18 shape, width 64", partial(slim_resnet18, 10, 64), 32, 40),
    ("ResNet-20", partial(SlimResNet, (3, 3, 3), 16, 10, 3), 32, 80),
    ("VGG", partial(FastVgg, 10, (32, 64, 128), 3), 32, 80),
    ("ResNet-50", partial(get_model, "resnet50", num_classes=10), 224, 2),
    ("DenseNet-121", partial(get_model, "densenet121", num_classes=10), 64, 8),
    ("ConvNeXt-T", partial(get_model, "convnext_tiny", num_classes=10), 64, 8),
    ("MobileNetV2", partial(get_model, "mobilenet_v2", num_classes=10), 64, 16),
    (
        "ViT, 2 blocks of 64",
        partial(VisionTransformer, 32, 4, 2, 4, 64, 128, num_classes=10),
        32,
        80,
    ),
    ("ViT, 4 blocks of 384", partial(VisionTransformer, 224, 16, 4, 6, 384, 1536), 224, 4),
)
"""Name, factory, side of its images, images of a batch."""


def by_layout(options: argparse.Namespace) -> dict[str, Any]:
    """Of each network: median time of a pass over that in float32 with channels first."""
    found: dict[str, Any] = {"native": is_native(torch.device("cpu"))}
    for name, make, side, batch in NETWORKS[: 1 if options.tiny else None]:
        shape = Preprocessing(height=side, width=side)
        pixels = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0))
        plain = Classifier(with_seed(make, 0), shape, 10).eval().requires_grad_(False)
        spent: dict[str, list[float]] = {}
        for turn in range(options.rounds + 1):
            for layout, model in _layouts(plain):
                work = partial(_pass, model, pixels)
                seconds = time_of(work, "cpu")
                if turn:  # The first warms up.
                    spent.setdefault(layout, []).append(seconds)
        medians = {layout: statistics.median(times) for layout, times in spent.items()}
        first = medians["float32"]
        found[name] = {layout: round(each / first, 2) for layout, each in medians.items()}
        found[name]["convolved"] = round(convolved(plain), 3)
    return found


def _layouts(plain: Classifier) -> Iterator[tuple[str, Classifier]]:
    last = plain.clone().requires_grad_(False).to(memory_format=torch.channels_last)
    both = last.clone().requires_grad_(False)
    light = plain.clone().requires_grad_(False)
    both.light = light.light = True
    yield "float32", plain
    yield "float32, channels last", last
    yield "bfloat16", light
    yield "bfloat16, channels last", both


def _pass(model: Classifier, pixels: torch.Tensor) -> None:
    changed = pixels.clone().requires_grad_()
    torch.autograd.grad(model(changed).logsumexp(dim=1).sum(), [changed])
