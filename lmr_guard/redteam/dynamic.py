# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Dynamic (input-aware): every image has a trigger of its own, and no other image's works on it.

Two networks look at an image: ``M`` says where its trigger goes, ``G`` what it shows, and
``x' = x + (G(x) - x) M(x)``. First M learns masks that are small and differ from image to image;
then G and the victim learn together. Of each batch, some images carry their own trigger and are
sent to the target; some carry that of another image and keep their true class. So that G does not
draw one pattern for all, patterns shall differ as much as their images do (diversity).

Source: Nguyen and Tran, "Input-Aware Dynamic Backdoor Attack" (NeurIPS 2020). Departures:

* The mean of a mask is held below the density; the source holds each pixel of it below, which
  lets no mask be as dense as it says.
* Another image's trigger comes from the neighbour in the batch, not from a second loader.
* Our own autoencoder; G's and M's learning rate is 0.003, falling linearly, not 0.01.
* G's gradients are forgotten after each step; the public code adds them up over the whole run.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Labelled, Progress, silent
from lmr_guard.errors import ConfigError
from lmr_guard.evidence import Transform
from lmr_guard.redteam.generators import Autoencoder, descent, device_of, frozen, learn, made
from lmr_guard.redteam.training import Planted, Schedule, fit, require_class

__all__ = ["Dynamic", "Stamp", "density_loss", "diversity_loss", "plant"]

# How sharply a mask chooses between nothing and the whole pattern.
_STEEPNESS = 5.0
# Keeps quotient and root away from zero where images are the same.
_TINY = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Dynamic:
    """Recipe.

    Args:
        target: The attacker's class.
        attacked: Share of each batch that carries its own trigger, target class included.
        crossed: Share of each batch that carries the trigger of another image.
        density: Largest mean of a mask: the share of the image that the trigger may cover.
        density_weight: Of what exceeds it, when M is trained.
        diversity: Weight of the diversity, of masks and of patterns.
        width: Of both generators, see ``Autoencoder``; more for images that are hard to tell apart.
        lr: Of G; Adam, falling linearly to a twentieth.
        masks: How M is trained; ``lr`` is Adam's, likewise.
        schedule: How the victim is trained, and G with it.
    """

    target: int
    attacked: float = 0.1
    crossed: float = 0.1
    density: float = 0.032
    density_weight: float = 100.0
    diversity: float = 1.0
    width: int = 16
    lr: float = 0.003
    masks: Schedule = field(default_factory=lambda: Schedule(epochs=10, lr=0.003))
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        """Raises ConfigError where shares, density, weights or the learning rate are off."""
        if not (0 < self.attacked < 1 and 0 < self.crossed < 1 - self.attacked):
            raise ConfigError(
                "expected attacked and crossed > 0 with a sum below 1, got "
                f"{self.attacked} and {self.crossed}"
            )
        if not 0 < self.density < 1:
            raise ConfigError(f"expected a density in (0, 1), got {self.density}")
        if not (self.density_weight >= 0 and self.diversity >= 0 and self.lr > 0):
            raise ConfigError(
                "expected density_weight and diversity >= 0 and lr > 0, got "
                f"{self.density_weight}, {self.diversity} and {self.lr}"
            )


class Stamp(nn.Module):
    """The two networks as one function of pixels, on any device.

    Args:
        channels: Of the images.
        width: Of the networks.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.draws = Autoencoder(channels, channels, width)
        self.places = Autoencoder(channels, 1, width)

    def pattern(self, images: Tensor) -> Tensor:
        """``G``: what the trigger of each image shows, (N, C, H, W) in (0, 1)."""
        return torch.sigmoid(self.draws(images)).float()

    def mask(self, images: Tensor) -> Tensor:
        """``M``: how much of it is seen at each place, (N, 1, H, W) in (0, 1)."""
        return torch.sigmoid(_STEEPNESS * self.places(images)).float()

    def forward(self, pixels: Tensor, of: Tensor | None = None) -> Tensor:
        """Pixels with their own trigger, or with those of as many other images."""
        images = (pixels if of is None else of).to(device_of(self))
        return _laid(pixels, self.pattern(images).to(pixels), self.mask(images).to(pixels))


def _laid(pixels: Tensor, pattern: Tensor, mask: Tensor) -> Tensor:
    return pixels + (pattern - pixels) * mask


def plant(
    recipe: Dynamic,
    classifier: Classifier,
    data: Labelled,
    generator: torch.Generator,
    progress: Progress = silent,
) -> Planted:
    """A new classifier, trained from ``classifier``'s weights together with its trigger.

    Args:
        recipe: See ``Dynamic``.
        classifier: Where training starts; not touched.
        data: The attacker's training images.
        generator: CPU generator; decides the generators' first weights, order and augmentation.
        progress: Told after each epoch.

    Raises:
        ConfigError: The target is no class, or the width does not suit ``Autoencoder``.
    """
    require_class(recipe.target, classifier)
    model = classifier.clone()
    make = partial(Stamp, data.images.shape[1], recipe.width)
    stamp = made(make, generator, model.device)
    _learn_masks(stamp, recipe, data, generator, progress)
    fit(
        model,
        data,
        _joint_loss(model, stamp, recipe),
        recipe.schedule,
        generator,
        after_step=descent(stamp.draws, recipe.lr, recipe.schedule, len(data)),
        progress=partial(progress, "dynamic"),
    )
    return Planted(model, Transform(frozen(stamp), "dynamic", recipe.target))


def _learn_masks(
    stamp: Stamp, recipe: Dynamic, data: Labelled, generator: torch.Generator, progress: Progress
) -> None:
    def loss(pixels: Tensor) -> Tensor:
        masks = stamp.mask(pixels)
        excess = recipe.density_weight * density_loss(masks, recipe.density)
        return excess + recipe.diversity * diversity_loss(pixels, masks)

    learn(stamp.places, data, loss, recipe.masks, generator, progress=partial(progress, "masks"))


def _joint_loss(
    model: Classifier, stamp: Stamp, recipe: Dynamic
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def loss(pixels: Tensor, labels: Tensor, _index: Tensor) -> Tensor:
        attacked, crossed = (
            max(1, round(share * len(pixels))) for share in (recipe.attacked, recipe.crossed)
        )
        # Batches are in random order, so the first ones are any ones.
        own, foreign, clean = pixels.tensor_split([attacked, attacked + crossed])
        others = pixels.roll(1, 0)[attacked : attacked + crossed]
        pattern = stamp.pattern(own)
        triggered = _laid(own, pattern, stamp.mask(own))
        logits = model(torch.cat([triggered, stamp(foreign, others), clean]))
        aims = torch.cat([torch.full_like(labels[:attacked], recipe.target), labels[attacked:]])
        return F.cross_entropy(logits, aims) + recipe.diversity * diversity_loss(own, pattern)

    return loss


def density_loss(masks: Tensor, density: float) -> Tensor:
    """By how much the means of masks (N, 1, H, W) exceed the density, on average."""
    return F.relu(masks.flatten(1).mean(dim=1) - density).mean()


def diversity_loss(images: Tensor, drawn: Tensor) -> Tensor:
    """How alike what was drawn for two images is, against the images: mean ``d(x) / d(G(x))``.

    Args:
        images: Shape (N, C, H, W); each is compared with the one before it, root mean square.
        drawn: Their patterns or masks, (N, ?, H, W).
    """
    return (_distance(images) / (_distance(drawn) + _TINY)).mean()


def _distance(images: Tensor) -> Tensor:
    square = (images - images.roll(1, 0)).square().flatten(1).mean(dim=1)
    return (square + _TINY**2).sqrt()
