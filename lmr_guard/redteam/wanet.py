# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""WaNet: the trigger is a faint warp of the whole image, the same for all images.

A few random displacements are made into a smooth field ``F``, and an image is read at ``g = clamp(
identity + s F / size)`` instead of at the identity grid. So that the network learns this very warp
and not just any, more images are warped with noise on top of ``F``, and keep their true classes
(noise mode).

Source: Nguyen and Tran, "WaNet: Imperceptible Warping-based Backdoor Attack" (ICLR 2021).
Departures: the field is added after augmentation; which images are poisoned is drawn once and kept,
while the noise is drawn anew each time; columns and rows may differ in number.
"""

from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.contracts import Labelled, Progress, silent
from lmr_guard.errors import ConfigError
from lmr_guard.evidence import Transform
from lmr_guard.redteam.poisoning import Poison, drawn, train
from lmr_guard.redteam.training import Planted, Schedule

__all__ = ["WaNet", "field_of", "jittered", "plant", "warped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WaNet:
    """Recipe.

    Args:
        target: The attacker's class.
        cells: Random displacements along each side, ``k``; between them the field is smooth.
        strength: ``s``; pixels move by about ``s / 2`` on average, whatever the image's size. Small
            or smooth images need more of it to show anything.
        rate: Share of the training images that are warped and relabelled, target class included.
        noise: Images of the noise mode for each of those; 0 for none.
        schedule: How the network is trained.
    """

    target: int
    cells: int = 4
    strength: float = 0.5
    rate: float = 0.1
    noise: float = 2.0
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        """Raises ConfigError where cells, strength or shares are out of range."""
        if self.cells < 2:
            raise ConfigError(f"expected 2 or more cells along a side, got {self.cells}")
        if not self.strength > 0:
            raise ConfigError(f"expected a strength > 0, got {self.strength}")
        if not (self.rate >= 0 and self.noise >= 0 and self.rate * (1 + self.noise) <= 1):
            raise ConfigError(
                "expected a poisoning rate and noise >= 0 with rate (1 + noise) <= 1, got "
                f"{self.rate} and {self.noise}; lower one of them"
            )


def field_of(
    shape: Preprocessing, cells: int, strength: float, generator: torch.Generator
) -> Tensor:
    """What is added to the identity grid, ``s F / size``: (H, W, 2), to the right and down.

    Args:
        shape: Of the images.
        cells: ``k``; ``k * k`` displacements from U(-1, 1), divided by their mean absolute value,
            bicubic in between.
        strength: ``s``.
        generator: CPU generator.
    """
    coarse = 2 * torch.rand(1, 2, cells, cells, generator=generator) - 1
    coarse = coarse / coarse.abs().mean()
    size = (shape.height, shape.width)
    smooth = F.interpolate(coarse, size, mode="bicubic", align_corners=True)[0]
    return strength * smooth.permute(1, 2, 0) / _per_axis(*size)


def jittered(offsets: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """The field with noise of U(-1, 1) / size on top: (count, H, W, 2), one for each image.

    Args:
        offsets: The field, (H, W, 2).
        count: Images to warp.
        generator: CPU generator.
    """
    height, width, _ = offsets.shape
    noise = 2 * torch.rand(count, height, width, 2, generator=generator) - 1
    return offsets + (noise / _per_axis(height, width)).to(offsets)


def warped(pixels: Tensor, offsets: Tensor) -> Tensor:
    """Pixels (N, C, H, W) read at ``clamp(identity + offsets)``, bilinear between pixels.

    Args:
        pixels: In [0, 1].
        offsets: (H, W, 2), or (N, H, W, 2) for a field of each image; a grid from corner to corner
            runs from -1 to 1.
    """
    count, _, height, width = pixels.shape
    rows = torch.linspace(-1, 1, height, device=pixels.device)
    columns = torch.linspace(-1, 1, width, device=pixels.device)
    identity = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
    grid = (identity + offsets.to(pixels)).expand(count, -1, -1, -1)
    # Padding with the border is what clamping the grid to [-1, 1] would give.
    return F.grid_sample(pixels, grid, padding_mode="border", align_corners=True)


def _per_axis(height: int, width: int) -> Tensor:
    return torch.tensor([width, height])


def plant(
    recipe: WaNet,
    classifier: Classifier,
    data: Labelled,
    generator: torch.Generator,
    progress: Progress = silent,
) -> Planted:
    """A new classifier, trained from ``classifier``'s weights on warped ``data``.

    Args:
        recipe: See ``WaNet``.
        classifier: Where training starts; not touched.
        data: The attacker's training images.
        generator: CPU generator; decides the field, its noise, what is poisoned, order and
            augmentation.
        progress: Told after each epoch.
    """
    model = classifier.clone()
    offsets = field_of(model.preprocessing, recipe.cells, recipe.strength, generator)
    offsets = offsets.to(model.device)
    change = partial(warped, offsets=offsets)

    def noisy(pixels: Tensor) -> Tensor:
        return warped(pixels, jittered(offsets, len(pixels), generator))

    either = drawn(data.labels, recipe.rate * (1 + recipe.noise), generator)
    marked = either & drawn(data.labels, 1 / (1 + recipe.noise), generator)
    poisons = [Poison(change, marked, recipe.target), Poison(noisy, either & ~marked, None)]
    train(model, data, poisons, recipe.schedule, generator, progress=partial(progress, "wanet"))
    return Planted(model, Transform(change, "warp", recipe.target))
