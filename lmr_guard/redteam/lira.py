# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""LIRA: a network draws the faintest of noises into each image, and learns it with its victim.

``T(x) = clip(x + eps g(x))`` with ``g`` in [-1, 1]. In stage 1 the classifier ``f`` and ``g``
minimise ``alpha CE(f(x), y) + (1 - alpha) CE(f(T(x)), t)`` together; in stage 2 ``g`` is frozen and
``f`` goes on alone. There is no poisoning rate: every image counts as it is and triggered.

Source: Doan et al., "LIRA: Learnable, Imperceptible and Robust Backdoor Attacks" (ICCV 2021).
Departures:

* ``eps`` is in pixel units, not those of normalised images.
* ``g`` is the small autoencoder with shortcuts that other attacks here use; both networks step on
  the same loss at once, where the source steps them in turn.
* Clean and triggered images share a batch, so that the statistics of batch normalisation in
  training are those in use.
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
from lmr_guard.redteam.generators import Autoencoder, frozen, made
from lmr_guard.redteam.training import BatchLoss, Planted, Schedule, fit

__all__ = ["Lira", "Noise", "both_terms", "plant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lira:
    """Recipe.

    Args:
        target: The attacker's class.
        eps: Largest change of a pixel, in [0, 1]. Short trainings on few images need more, or
            they give away clean accuracy.
        alpha: Weight of the clean term; the triggered term has the rest.
        width: Channels of the generator at full resolution.
        generator_lr: Adam's learning rate for the generator in stage 1.
        schedule: Stage 1, of classifier and generator together.
        tuning: Stage 2, of the classifier alone.
    """

    target: int
    eps: float = 0.01
    alpha: float = 0.5
    width: int = 16
    generator_lr: float = 1e-4
    schedule: Schedule = field(default_factory=Schedule)
    tuning: Schedule = field(default_factory=lambda: Schedule(lr=0.01))

    def __post_init__(self) -> None:
        """Raises ConfigError where a value is out of range."""
        if not (0 < self.eps <= 1 and 0 < self.alpha < 1):
            raise ConfigError(
                f"expected eps in (0, 1] and alpha in (0, 1), got {self.eps} and {self.alpha}"
            )
        if self.width < 4 or self.width % 4:
            raise ConfigError(f"expected a width that 4 divides, got {self.width}")
        if not self.generator_lr > 0:
            raise ConfigError(f"expected generator_lr > 0, got {self.generator_lr}")


class Noise(nn.Module):
    """The trigger ``T``: images (N, C, H, W) to ``clip(x + eps g(x))``, on the device of either.

    Args:
        channels: Of the images.
        eps: Largest change of a pixel, in [0, 1].
        width: Channels of ``g`` at full resolution.
    """

    def __init__(self, channels: int, eps: float, width: int) -> None:
        super().__init__()
        self.eps = eps
        self.network = Autoencoder(channels, channels, width)

    def forward(self, pixels: Tensor) -> Tensor:
        """Triggered copies; gradients reach pixels and ``g``."""
        there = pixels.to(next(self.parameters()).device)
        noise: Tensor = self.network(there).tanh().to(pixels)
        return (pixels + self.eps * noise).clamp(0, 1)


def both_terms(model: Classifier, trigger: Noise, recipe: Lira) -> BatchLoss:
    """The loss of both stages; each image of a batch is seen as it is and triggered."""

    def loss(pixels: Tensor, labels: Tensor, _index: Tensor) -> Tensor:
        clean, triggered = model(torch.cat([pixels, trigger(pixels)])).chunk(2)
        planted = F.cross_entropy(triggered, torch.full_like(labels, recipe.target))
        return recipe.alpha * F.cross_entropy(clean, labels) + (1 - recipe.alpha) * planted

    return loss


def plant(
    recipe: Lira,
    classifier: Classifier,
    data: Labelled,
    generator: torch.Generator,
    progress: Progress = silent,
) -> Planted:
    """A new classifier, trained from ``classifier``'s weights, and the generator it listens to.

    Args:
        recipe: See ``Lira``.
        classifier: Where training starts; not touched.
        data: The attacker's training images.
        generator: CPU generator; decides ``g``'s first weights, order and augmentation.
        progress: Told after each epoch of each stage.
    """
    model = classifier.clone()
    channels = model.preprocessing.channels
    trigger = made(lambda: Noise(channels, recipe.eps, recipe.width), generator, model.device)
    loss = both_terms(model, trigger, recipe)
    fit(
        model,
        data,
        loss,
        recipe.schedule,
        generator,
        after_step=_steps(trigger, recipe.generator_lr),
        progress=partial(progress, "lira"),
    )
    frozen(trigger)
    fit(model, data, loss, recipe.tuning, generator, progress=partial(progress, "lira tuning"))
    return Planted(model, Transform(trigger, "lira", recipe.target))


def _steps(trigger: Noise, lr: float) -> Callable[[], None]:
    """One step of Adam on the gradients that the last batch left in ``g``."""
    optimiser = torch.optim.Adam(trigger.parameters(), lr)

    def step() -> None:
        optimiser.step()
        optimiser.zero_grad()

    return step
