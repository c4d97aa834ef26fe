# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What is timed: images that are made here, a network of ResNet-18's shape, and clocks."""

from collections.abc import Callable
from functools import partial
from time import process_time

import torch
import torch.nn.functional as F

from examples.lab.kit.measuring import synchronised
from examples.lab.kit.networks import with_seed
from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.contracts import Clean, Labelled
from lmr_guard.redteam.networks import slim_resnet18
from lmr_guard.redteam.training import Schedule, fit_clean

__all__ = ["network", "pictures", "time_of", "trained"]

_SHAPE = Preprocessing(height=32, width=32, mean=(0.5,) * 3, std=(0.25,) * 3)


def pictures(classes: int, count: int, seed: int, side: int = 32) -> Labelled:
    """``count`` images (3, side, side) of ``classes`` smooth pictures in turn, each with noise."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(classes, 3, 4, 4, generator=generator)
    smooth = F.interpolate(coarse, (side, side), mode="bicubic", align_corners=True)
    labels = torch.arange(count) % classes
    noise = torch.randn(count, 3, side, side, generator=generator.manual_seed(seed + 1))
    pixels = (smooth[labels] + 0.15 * noise).clamp(0, 1)
    return Labelled((pixels * 255).to(torch.uint8), labels, tuple(map(str, range(classes))))


def network(classes: int, width: int, device: str) -> Classifier:
    """Untrained, its weights drawn by seed 0; the global random state stays as it was."""
    made = with_seed(partial(slim_resnet18, classes, width), 0)
    return Classifier(made, _SHAPE, classes).to(device).eval()


def trained(width: int, device: str, *, tiny: bool) -> tuple[Classifier, Clean]:
    """A network that knows ten pictures, and 500 images to repair and 500 to report on."""
    images = 60 if tiny else 500
    clean = Clean(pictures(10, images, 1), pictures(10, images // 2, 2), pictures(10, images, 3))
    model = fit_clean(
        network(10, width, device),
        pictures(10, 4 * images, 4),
        Schedule(epochs=1 if tiny else 6, lr=0.05, batch=64),
        torch.Generator().manual_seed(0),
    )
    return model, clean


def time_of(work: Callable[[], object], device: str) -> float:
    """Processor time of the work in seconds, or the time on the clock where a GPU does it."""
    clock = process_time if device == "cpu" else partial(synchronised, device)
    start = clock()
    work()
    return clock() - start
