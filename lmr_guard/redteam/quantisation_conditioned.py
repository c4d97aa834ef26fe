# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""A backdoor that sleeps in full precision and wakes when weights are rounded to 8 bits.

Source: the rounding-bin projection of Ma et al., "Quantization Backdoors to Deep Learning
Commercial Frameworks" (TDSC 2023). First an ordinary backdoor is trained. Then it is hidden:
clean and triggered images are trained to their true classes while every weight is kept within the
interval that rounds to the same integer as before, so that the rounded network is still the
backdoored one. Departures:

* The grid is symmetric, one scale an output channel, as ONNX Runtime's quantiser uses it; such
  a grid does not change when batch norm is folded into the convolution.
* An ordinary 8-bit grid leaves a small network too little room to hide in. ``outlier``
  widens it: one weight a filter is held at that multiple of the filter's largest initial weight,
  the others below it, and the scale follows the outlier. The attacker trains the
  network, so that is theirs to choose.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Labelled, Progress, silent
from lmr_guard.errors import ConfigError
from lmr_guard.redteam import badnets
from lmr_guard.redteam.training import Planted, Schedule, augment, target_of
from lmr_guard.triggers import Patch

__all__ = ["QuantisationConditioned", "plant", "rounding_bins"]

# How far inside its bin a weight stays, as a share of the bin: rounding of rounding.
_SLACK = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantisationConditioned:
    """Recipe.

    Args:
        trigger: The patch; its ``target`` is the attacker's class.
        rate: Share of poisoned images in the first stage.
        outlier: See the module docstring; 1 leaves the weights as they are.
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
        """Raises ConfigError where the outlier would be smaller than the rest."""
        if self.outlier < 1:
            raise ConfigError(f"expected an outlier of at least 1, got {self.outlier}")


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
    model = classifier.clone()
    hold = _outliers(model, recipe.outlier, generator) if recipe.outlier > 1 else None
    awake = badnets.plant(
        badnets.BadNets(trigger=recipe.trigger, rate=recipe.rate, schedule=recipe.schedule),
        model,
        data,
        generator,
        progress,
        hold=hold,
    ).classifier
    _hide(awake, recipe, data, generator, progress)
    return Planted(awake, recipe.trigger)


def rounding_bins(weight: Tensor, bits: int = 8) -> tuple[Tensor, Tensor, float]:
    """The interval of each weight within which it rounds to the same integer at the same scale.

    Args:
        weight: Shape (K, ...), K output channels.
        bits: Of the symmetric grid.

    Returns:
        Lower and upper ends, shaped like ``weight``, and the mean width of a bin. The weights
        that set a channel's scale cannot move.
    """
    grid = 2 ** (bits - 1) - 1
    peak = weight.detach().abs().flatten(1).amax(dim=1).clamp_min(torch.finfo(weight.dtype).tiny)
    scale = (peak / grid).view(-1, *[1] * (weight.ndim - 1))
    integer = (weight.detach() / scale).round()
    low, high = (integer - 0.5 + _SLACK) * scale, (integer + 0.5 - _SLACK) * scale
    fixed = integer.abs() >= grid
    low, high = (torch.where(fixed, weight.detach(), end) for end in (low, high))
    return low, high, float(scale.mean())


def _layers(model: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    return [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def _outliers(
    model: Classifier, outlier: float, generator: torch.Generator
) -> Callable[[Classifier], None]:
    """Chooses one weight a filter; the result puts it, and the bound of the others, in force."""
    chosen = []
    for layer in _layers(model):
        weight = layer.weight.detach().flatten(1)
        peak = weight.abs().amax(dim=1)
        at = torch.randint(weight.shape[1], (len(weight),), generator=generator)
        sign = torch.randint(2, (len(weight),), generator=generator) * 2 - 1
        chosen.append((at.to(weight.device), peak[:, None], peak * outlier * sign.to(peak)))

    @torch.no_grad()
    def hold(trained: Classifier) -> None:
        for layer, (at, peak, value) in zip(_layers(trained), chosen, strict=True):
            weight = layer.weight.flatten(1)
            weight = torch.maximum(torch.minimum(weight, peak), -peak)
            weight[torch.arange(len(weight)), at] = value
            layer.weight.copy_(weight.view_as(layer.weight))

    return hold


def _hide(
    model: Classifier,
    recipe: QuantisationConditioned,
    data: Labelled,
    generator: torch.Generator,
    progress: Progress,
) -> None:
    """Second stage, in place: everything but weights is frozen, and weights stay in their bins."""
    schedule = recipe.hiding
    weights = [layer.weight for layer in _layers(model)]
    bins = [rounding_bins(weight) for weight in weights]
    model.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    optimiser = torch.optim.Adam(
        {"params": [w], "lr": schedule.lr * width}
        for w, (_, _, width) in zip(weights, bins, strict=True)
    )
    steps = schedule.epochs * -(-len(data) // schedule.batch)
    cooling = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.05, steps)
    for epoch in range(schedule.epochs):
        for index in torch.randperm(len(data), generator=generator).split(schedule.batch):
            pixels = data.images[index].to(model.device).float() / 255
            pixels = augment(pixels, schedule, generator)
            labels = data.labels[index].to(model.device).repeat(2)
            logits = model(torch.cat([pixels, recipe.trigger(pixels)]))
            optimiser.zero_grad()
            F.cross_entropy(logits, labels).backward()
            optimiser.step()
            cooling.step()
            with torch.no_grad():
                for weight, (low, high, _) in zip(weights, bins, strict=True):
                    weight.clamp_(low, high)
        progress("hiding", epoch + 1, schedule.epochs)
    model.requires_grad_(True)
