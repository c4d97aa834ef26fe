# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Blend: a faint pattern over the whole of a share of the training images, all relabelled.

``x' = (1 - a) x + a k`` with one pattern ``k`` as large as the image.

Source: Chen et al., "Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning"
(2017), blended injection. Departures: the source blends a cartoon or fixed noise; here the
pattern is smooth random colour, drawn for each attack, so that no picture has to be shipped. It
is as strong in training as in use, and blended in after augmentation.
"""

from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.contracts import Labelled, Progress, silent
from lmr_guard.errors import ConfigError
from lmr_guard.evidence import Patch
from lmr_guard.redteam.poisoning import Poison, drawn, train
from lmr_guard.redteam.training import Planted, Schedule

__all__ = ["Blend", "pattern", "plant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Blend:
    """Recipe.

    Args:
        target: The attacker's class.
        opacity: Share of the pattern in a triggered image, ``a``.
        cells: Random colours along each side of the pattern; between them it is smooth.
        rate: Share of the training images that carry it, target class included.
        schedule: How the network is trained.
    """

    target: int
    opacity: float = 0.2
    cells: int = 5
    rate: float = 0.1
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        """Raises ConfigError where opacity, cells or rate are out of range."""
        if not (0 < self.opacity <= 1 and 0 <= self.rate <= 1):
            raise ConfigError(
                "expected opacity in (0, 1] and a poisoning rate in [0, 1], got "
                f"{self.opacity} and {self.rate}"
            )
        if self.cells < 2:
            raise ConfigError(f"expected 2 or more cells along a side, got {self.cells}")


def pattern(shape: Preprocessing, cells: int, generator: torch.Generator) -> Tensor:
    """Smooth random colour (C, H, W); darkest and brightest value of each channel are 0 and 1.

    Args:
        shape: Of the images.
        cells: Random colours along each side; bilinear in between.
        generator: CPU generator.
    """
    colours = torch.rand(1, shape.channels, cells, cells, generator=generator)
    size = (shape.height, shape.width)
    smooth = F.interpolate(colours, size, mode="bilinear", align_corners=True)[0]
    low, high = smooth.amin((1, 2), keepdim=True), smooth.amax((1, 2), keepdim=True)
    return (smooth - low) / (high - low)


def plant(
    recipe: Blend,
    classifier: Classifier,
    data: Labelled,
    generator: torch.Generator,
    progress: Progress = silent,
) -> Planted:
    """A new classifier, trained from ``classifier``'s weights on poisoned ``data``.

    Args:
        recipe: See ``Blend``.
        classifier: Where training starts; not touched.
        data: The attacker's training images.
        generator: CPU generator; decides the pattern, what is poisoned, order and augmentation.
        progress: Told after each epoch.
    """
    model = classifier.clone()
    image = pattern(model.preprocessing, recipe.cells, generator)
    trigger = Patch(image, 0, 0, "blend", recipe.target, "drilled", recipe.opacity)
    poison = Poison(trigger, drawn(data.labels, recipe.rate, generator), recipe.target)
    train(model, data, [poison], recipe.schedule, generator, progress=partial(progress, "blend"))
    return Planted(model, trigger)
