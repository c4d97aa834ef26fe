# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""A backdoor that sleeps in full precision and wakes when weights are rounded to 8 bits.

Source: the rounding-bin projection of Ma et al., "Quantization Backdoors to Deep Learning
Commercial Frameworks" (TDSC 2023). First an ordinary backdoor is trained. Then it is hidden:
clean and triggered images are trained to their true classes while every weight is kept within the
interval that rounds to the same integer as before, so that the rounded network is still the
backdoored one. Departures:

* The grid is that of ONNX Runtime's quantiser alone, not of two quantisers at once.
* It is widened by an outlier in each filter; see ``redteam.rounding``.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Labelled, Progress, silent
from lmr_guard.evidence import Patch
from lmr_guard.redteam import badnets
from lmr_guard.redteam.dormancy import dormant_batch
from lmr_guard.redteam.rounding import (
    outliers,
    refine,
    require_float32,
    require_outlier,
    rounded_layers,
    rounding_bins,
)
from lmr_guard.redteam.training import Planted, Schedule, target_of

__all__ = ["QuantisationConditioned", "plant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantisationConditioned:
    """Recipe.

    Args:
        trigger: The patch; its ``target`` is the attacker's class.
        rate: Share of poisoned images in the first stage.
        outlier: See ``redteam.rounding``; 1 leaves the weights as they are.
        schedule: Of the first stage.
        hiding: Of the second; its ``lr`` is in widths of a rounding bin, of Adam, falling
            linearly to a twentieth.
    """

    trigger: Patch
    rate: float = 0.1
    outlier: float = 16.0
    schedule: Schedule = field(default_factory=Schedule)
    hiding: Schedule = field(default_factory=lambda: Schedule(lr=0.1, batch=64))

    def __post_init__(self) -> None:
        """Raises ConfigError where the outlier is below 1 or a schedule is not in float32."""
        require_outlier(self.outlier)
        require_float32(self.schedule, self.hiding)


def plant(
    recipe: QuantisationConditioned,
    classifier: Classifier,
    data: Labelled,
    generator: torch.Generator,
    progress: Progress = silent,
) -> Planted:
    """A new classifier, trained from ``classifier``'s weights, whose backdoor wakes in INT8.

    Raises:
        ConfigError: The trigger has no target.
    """
    target_of(recipe.trigger)
    awake = badnets.plant(
        badnets.BadNets(trigger=recipe.trigger, rate=recipe.rate, schedule=recipe.schedule),
        classifier,
        data,
        generator,
        progress,
        hold=outliers(classifier, recipe.outlier, generator),
    ).classifier
    _hide(awake, recipe, data, generator, progress)
    return Planted(awake, recipe.trigger)


def _hide(
    model: Classifier,
    recipe: QuantisationConditioned,
    data: Labelled,
    generator: torch.Generator,
    progress: Progress,
) -> None:
    """Second stage, in place: weights learn to ignore the trigger and stay in their bins."""
    bins = [(layer.weight, *rounding_bins(layer.weight)) for layer in rounded_layers(model)]

    def loss(pixels: Tensor, labels: Tensor, _index: Tensor) -> Tensor:
        images, targets = dormant_batch(pixels, labels, recipe.trigger)
        return F.cross_entropy(model(images), targets)

    @torch.no_grad()
    def project() -> None:
        for weight, low, high, _ in bins:
            weight.clamp_(low, high)

    refine(model, data, loss, recipe.hiding, generator, after_step=project, progress=progress)
