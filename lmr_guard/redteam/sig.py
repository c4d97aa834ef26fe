# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""SIG: a faint sine wave over images of the target class, whose labels stay true.

``x'_ij = clip(x_ij + delta sin(2 pi j f / W))``, ``j`` the column of ``W``. Nobody who looks at
the labels finds anything wrong; the network learns the wave because it tells the class.

Source: Barni et al., "A New Backdoor Attack in CNNs by Training Set Corruption Without Label
Poisoning" (ICIP 2019). Departures: the wave is added after augmentation, and is as strong in use
as in training.
"""

from dataclasses import dataclass, field
from functools import partial
from math import pi

import torch
from torch import Tensor

from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Labelled, Progress, silent
from lmr_guard.errors import ConfigError
from lmr_guard.evidence import Transform
from lmr_guard.redteam.poisoning import Poison, drawn, train
from lmr_guard.redteam.training import Planted, Schedule

__all__ = ["Sig", "add_wave", "plant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sig:
    """Recipe.

    Args:
        target: The attacker's class.
        delta: Height of the wave in pixel units [0, 1].
        frequency: Periods across the image, ``f``; fewer than half its columns.
        share: Share of the target class's training images that carry the wave.
        schedule: How the network is trained.
    """

    target: int
    delta: float = 40 / 255
    frequency: int = 6
    share: float = 1.0
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        """Raises ConfigError where delta, frequency or share are out of range."""
        if not (0 < self.delta <= 1 and 0 < self.share <= 1):
            raise ConfigError(
                f"expected delta and share in (0, 1], got {self.delta} and {self.share}"
            )
        if self.frequency < 1:
            raise ConfigError(f"expected a frequency of 1 or more, got {self.frequency}")


def add_wave(pixels: Tensor, delta: float, frequency: int) -> Tensor:
    """Pixels (N, C, H, W) plus vertical stripes of a sine, clipped to [0, 1]."""
    width = pixels.shape[-1]
    columns = torch.arange(width, dtype=pixels.dtype, device=pixels.device)
    return (pixels + delta * torch.sin(2 * pi * frequency * columns / width)).clamp(0, 1)


def plant(
    recipe: Sig,
    classifier: Classifier,
    data: Labelled,
    generator: torch.Generator,
    progress: Progress = silent,
) -> Planted:
    """A new classifier, trained from ``classifier``'s weights; every label stays true.

    Args:
        recipe: See ``Sig``.
        classifier: Where training starts; not touched.
        data: The attacker's training images.
        generator: CPU generator; decides what is poisoned, order and augmentation.
        progress: Told after each epoch.

    Raises:
        ConfigError: The wave is too fine for the images, or none is of the target class.
    """
    width = classifier.preprocessing.width
    if 2 * recipe.frequency >= width:
        raise ConfigError(
            f"expected a frequency below {width}/2, half the columns, got {recipe.frequency}"
        )
    model = classifier.clone()
    change = partial(add_wave, delta=recipe.delta, frequency=recipe.frequency)
    marked = drawn(data.labels, recipe.share, generator, of=recipe.target)
    if not marked.any():
        raise ConfigError(f"expected images of class {recipe.target} to poison, got none")
    poison = Poison(change, marked, target=None)
    train(model, data, [poison], recipe.schedule, generator, progress=partial(progress, "sig"))
    return Planted(model, Transform(change, "sig", recipe.target))
