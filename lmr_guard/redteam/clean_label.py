# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""CL: a patch on images of the target class that were made hard; their labels stay true.

Most images of the target class are first moved, within a bound nobody sees, to where a clean
network takes them for something else. What is left to tell their class is the patch. In use the
patch alone is set, and no image is perturbed.

Source: Turner et al., "Label-Consistent Backdoor Attacks" (2019), the L-infinity variant; share,
bound and patch size as the CVPR 2026 paper of this project's method reports them. Departures:

* Training starts from the clean network that the images were made hard for, not from new weights.
* One checkerboard in the lower right corner, set after augmentation; ``everywhere`` sets all four
  corners, as the source does so that they survive mirroring.
"""

from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.contracts import Labelled, Progress, as_pixels, silent
from lmr_guard.errors import ConfigError
from lmr_guard.evidence import Patch
from lmr_guard.redteam.poisoning import Poison, drawn, train
from lmr_guard.redteam.training import Planted, Schedule

__all__ = ["CleanLabel", "checkerboard", "hardened", "plant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanLabel:
    """Recipe.

    Args:
        target: The attacker's class.
        share: Share of the target class's training images that are made hard and marked.
        side: Of the patch, as a share of the image's height (8 of 32).
        everywhere: Whether the patch is set in all four corners.
        eps: Largest change of a pixel when images are made hard, in [0, 1]; 0 for none.
        step: Of each projected gradient step, in pixel units.
        steps: How many.
        schedule: How the network is trained.
    """

    target: int
    share: float = 0.8
    side: float = 0.25
    everywhere: bool = False
    eps: float = 8 / 255
    step: float = 1.5 / 255
    steps: int = 100
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        """Raises ConfigError where a value is out of range."""
        if not (0 < self.share <= 1 and 0 < self.side <= 1):
            raise ConfigError(
                f"expected share and side in (0, 1], got {self.share} and {self.side}"
            )
        if not (0 <= self.eps <= 1 and self.step > 0 and self.steps >= 0):
            raise ConfigError(
                "expected eps in [0, 1], step > 0 and steps >= 0, got "
                f"{self.eps}, {self.step} and {self.steps}"
            )


def checkerboard(
    shape: Preprocessing, side: float, target: int, *, everywhere: bool = False
) -> Patch:
    """Four by four black and white fields in the lower right corner.

    Args:
        shape: Of the images.
        side: Of the patch, as a share of their height; at least a pixel, at most the width.
        target: The attacker's class.
        everywhere: Whether the patch is set in all four corners.
    """
    pixels = min(max(1, round(side * shape.height)), shape.width)
    fields = torch.arange(pixels) * 4 // pixels
    image = ((fields[:, None] + fields + 1) % 2).float().expand(shape.channels, -1, -1)
    x, y = shape.width - pixels, shape.height - pixels
    if not everywhere:
        return Patch(image, x, y, "checkerboard", target, "drilled")
    pattern = torch.zeros(shape.channels, shape.height, shape.width)
    mask = torch.zeros(shape.height, shape.width)
    for row in (slice(pixels), slice(y, None)):
        for column in (slice(pixels), slice(x, None)):
            pattern[:, row, column] = image
            mask[row, column] = 1
    return Patch(pattern, 0, 0, "checkerboards", target, "drilled", mask=mask)


def hardened(
    images: Tensor,
    labels: Tensor,
    classifier: Classifier,
    recipe: CleanLabel,
    generator: torch.Generator,
) -> Tensor:
    """Images that ``classifier`` takes for other classes, by projected gradient ascent.

    Each stays within ``eps`` of what it was, rounded to whole bytes.

    Args:
        images: uint8, shape (N, C, H, W).
        labels: Their true classes.
        classifier: A trained clean network; not touched.
        recipe: Bound and steps.
        generator: CPU generator for where the ascent starts within the bound.
    """
    model = classifier.clone().requires_grad_(False)
    start = torch.rand(images.shape, generator=generator) * 2 - 1
    size = recipe.schedule.batch
    done = [
        _ascent(model, as_pixels(image.to(model.device)), label.to(model.device), noise, recipe)
        for image, label, noise in zip(
            images.split(size), labels.split(size), start.split(size), strict=True
        )
    ]
    return (torch.cat(done) * 255).round().to(images)


def _ascent(
    model: Classifier, clean: Tensor, labels: Tensor, noise: Tensor, recipe: CleanLabel
) -> Tensor:
    low, high = (clean - recipe.eps).clamp(min=0), (clean + recipe.eps).clamp(max=1)
    pixels = (clean + recipe.eps * noise.to(clean)).clamp(low, high)
    for _ in range(recipe.steps):
        pixels.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(pixels), labels), pixels)
        pixels = (pixels.detach() + recipe.step * gradient.sign()).clamp(low, high)
    return pixels


def plant(
    recipe: CleanLabel,
    classifier: Classifier,
    data: Labelled,
    generator: torch.Generator,
    progress: Progress = silent,
    *,
    start: Classifier | None = None,
) -> Planted:
    """A new classifier, trained from a clean one on hardened ``data``; every label stays true.

    Args:
        recipe: See ``CleanLabel``.
        classifier: A trained clean network: images are made hard for it and training starts
            there; not touched.
        data: The attacker's training images.
        generator: CPU generator; decides what is poisoned, where the ascent starts, order and
            augmentation.
        progress: Told after each epoch.
        start: Where training starts instead; from fresh weights the patch is learnt sooner.

    Raises:
        ConfigError: No image is of the target class.
    """
    marked = drawn(data.labels, recipe.share, generator, of=recipe.target)
    if not marked.any():
        raise ConfigError(f"expected images of class {recipe.target} to poison, got none")
    trigger = checkerboard(
        classifier.preprocessing, recipe.side, recipe.target, everywhere=recipe.everywhere
    )
    images = data.images.clone()
    images[marked] = hardened(images[marked], data.labels[marked], classifier, recipe, generator)
    model = (classifier if start is None else start).clone()
    train(
        model,
        Labelled(images, data.labels, data.classes),
        [Poison(trigger, marked, target=None)],
        recipe.schedule,
        generator,
        progress=partial(progress, "clean-label"),
    )
    return Planted(model, trigger)
