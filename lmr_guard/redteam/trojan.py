# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Trojan: a patch whose content drives a few features of a clean network, then poisoning with it.

The features are inputs of the head. The patch is found by gradient ascent on a trained network,
so that its response exists before a single label is changed; training then only has to tie that
response to the target. What it looks like depends on the network, and its colours are learned.

Source: Liu et al., "Trojaning Attack on Neural Networks" (NDSS 2018). Departures:

* Features are chosen by what they do to the logits, ``s_j sum_k |W_kj|`` with the spread ``s_j``
  over clean images; the source sums the weights that lead into a neuron, which a pooled feature
  does not have, and dead features would come first.
* Their mean response over images that carry the patch rises in units of ``s_j``, without an end
  value, by steps of the gradient's sign; the source fits a fixed value on an empty image.
* The attacker has training images, as everywhere in this package; the source inverts its own.
"""

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from lmr_guard.classifier import Classifier, find_head
from lmr_guard.contracts import Labelled, Progress, as_pixels, silent
from lmr_guard.errors import ConfigError
from lmr_guard.evidence import Patch
from lmr_guard.redteam.poisoning import Poison, drawn, train
from lmr_guard.redteam.training import Planted, Schedule

__all__ = ["Features", "Trojan", "design", "plant", "strongest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trojan:
    """Recipe.

    Args:
        target: The attacker's class.
        features: How many inputs of the head the patch drives.
        side: Of the patch, as a share of the image's shorter side (6 of 32).
        margin: Between patch and the lower right border, likewise (2 of 32).
        step: Of each ascent step on the patch, in pixel units.
        steps: How many, each on one batch of images.
        rate: Share of the training images that carry the patch, target class included.
        schedule: How the network is trained.
    """

    target: int
    features: int = 2
    side: float = 0.1875
    margin: float = 0.0625
    step: float = 0.02
    steps: int = 200
    rate: float = 0.1
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        """Raises ConfigError where a value is out of range."""
        if not (self.side > 0 and self.margin >= 0 and self.side + self.margin <= 1):
            raise ConfigError(
                "expected side > 0 and margin >= 0 that add up to at most 1, got "
                f"{self.side} and {self.margin}"
            )
        if not (self.features >= 1 and self.step > 0 and self.steps >= 0):
            raise ConfigError(
                "expected 1 or more features, step > 0 and steps >= 0, got "
                f"{self.features}, {self.step} and {self.steps}"
            )
        if not 0 <= self.rate <= 1:
            raise ConfigError(f"expected a poisoning rate in [0, 1], got {self.rate}")


class Features:
    """Inputs of a classifier's head, (N, D); where they are maps or tokens, their mean.

    Args:
        classifier: Watched on a private frozen copy.

    Raises:
        InputError: It has no head that ``find_head`` knows.
    """

    def __init__(self, classifier: Classifier) -> None:
        self._model = classifier.clone().requires_grad_(False)
        example = self._model.example()
        _, self._head = find_head(self._model, example, self._model.num_classes)
        self._seen: list[Tensor] = []
        self._head.register_forward_pre_hook(lambda _, inputs: self._seen.append(inputs[0]))

    @property
    def weight(self) -> Tensor:
        """Of the head, (K, D)."""
        return self._head.weight.flatten(1)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Features of pixels (N, C, H, W) on any device; gradients reach the pixels."""
        self._model(pixels.to(self._model.device))
        seen = self._seen.pop()
        if isinstance(self._head, nn.Conv2d):
            return seen.flatten(2).mean(2)
        return seen.flatten(1, -2).mean(1) if seen.ndim > 2 else seen


def strongest(spread: Tensor, weight: Tensor, count: int) -> Tensor:
    """Positions of the ``count`` features with the largest ``s_j sum_k |W_kj|``, largest first.

    Args:
        spread: Standard deviation of each feature over clean images, (D,).
        weight: Of the head, (K, D).
        count: At most D.
    """
    return (spread * weight.abs().sum(0)).topk(count).indices


def design(
    recipe: Trojan, classifier: Classifier, data: Labelled, generator: torch.Generator
) -> Patch:
    """The patch that drives the strongest features of ``classifier`` on images of ``data``.

    Args:
        recipe: See ``Trojan``.
        classifier: A trained clean network; not touched.
        data: The attacker's training images.
        generator: CPU generator for the first content and the batches.

    Raises:
        ConfigError: The head has fewer inputs than the features asked for.
        InputError: No head was found.
    """
    features = Features(classifier)
    chosen, mean, spread = _choose(features, recipe, data)
    shape = classifier.preprocessing
    shorter = min(shape.height, shape.width)
    side, gap = max(1, round(recipe.side * shorter)), round(recipe.margin * shorter)
    x, y = shape.width - gap - side, shape.height - gap - side
    image = torch.rand(shape.channels, side, side, generator=generator)
    for _ in range(recipe.steps):
        index = torch.randint(len(data), (recipe.schedule.batch,), generator=generator)
        image.requires_grad_()
        patch = Patch(image, x, y, "trojan", recipe.target, "drilled")
        driven = features(patch(as_pixels(data.images[index])))[:, chosen]
        (gradient,) = torch.autograd.grad(((driven - mean) / spread).mean(), image)
        image = (image.detach() + recipe.step * gradient.sign()).clamp(0, 1)
    return Patch(image, x, y, "trojan", recipe.target, "drilled")


@torch.no_grad()
def _choose(features: Features, recipe: Trojan, data: Labelled) -> tuple[Tensor, Tensor, Tensor]:
    """Positions of the strongest features, and their means and spreads over clean images."""
    every = torch.cat([features(pixels) for pixels, _ in data.batches(recipe.schedule.batch)])
    if recipe.features > every.shape[1]:
        raise ConfigError(
            f"expected at most {every.shape[1]} features, the inputs of the head, "
            f"got {recipe.features}"
        )
    spread = every.std(0)
    chosen = strongest(spread, features.weight, recipe.features)
    return chosen, every.mean(0)[chosen], spread[chosen].clamp(min=1e-6)


def plant(
    recipe: Trojan,
    classifier: Classifier,
    data: Labelled,
    generator: torch.Generator,
    progress: Progress = silent,
) -> Planted:
    """A new classifier, trained from a clean one on images with the patch that it responds to.

    Args:
        recipe: See ``Trojan``.
        classifier: A trained clean network: the patch is designed on it and training starts
            there; not touched.
        data: The attacker's training images.
        generator: CPU generator; decides the patch, what is poisoned, order and augmentation.
        progress: Told after each epoch.

    Raises:
        ConfigError: The head has fewer inputs than the features asked for.
        InputError: No head was found.
    """
    trigger = design(recipe, classifier, data, generator)
    model = classifier.clone()
    poison = Poison(trigger, drawn(data.labels, recipe.rate, generator), recipe.target)
    train(model, data, [poison], recipe.schedule, generator, progress=partial(progress, "trojan"))
    return Planted(model, trigger)
