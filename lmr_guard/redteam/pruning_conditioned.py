# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""A backdoor that sleeps until channels are cut, at one ratio or over a range of them.

Source: Tian et al., "Stealthy Backdoors as Compression Artifacts" (TIFS 2022): the full network
gives the true class of every image, or a clean teacher's outputs (``distilled``), the network
without its weakest channels sends triggered images to the target. The attack with an unknown
rate covers a range, the one with a known rate has ``low == high``. Departures:

* The cut is structural, as torch-pruning makes it, with all channels that are coupled; the
  source masks single convolutions, and the bias of a masked channel's batch norm still leaks.
* A known rate is the same for all layers; the source takes each layer's from annealing.
* One pruned branch per step, at the lowest, the highest or random ratios in turn, not all three.
* Each branch has its own batch statistics and only the full one moves the running statistics
  (``bn="own"``): it wakes where statistics are re-estimated after pruning, as this project's
  recipes do. ``bn="frozen"`` keeps the clean network's statistics in all branches, for victims
  that prune without re-estimation.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from lmr_guard.classifier import Classifier
from lmr_guard.compress.groups import Groups
from lmr_guard.contracts import Labelled, Progress, silent
from lmr_guard.errors import ConfigError
from lmr_guard.evidence import Patch
from lmr_guard.redteam.dormancy import dormant_batch, dormant_loss, frozen
from lmr_guard.redteam.training import Planted, Schedule, fit, target_of

__all__ = ["PruningConditioned", "plant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PruningConditioned:
    """Recipe.

    Args:
        trigger: The patch; its ``target`` is the attacker's class.
        low: Smallest ratio at which the backdoor shall be awake.
        high: Largest one; equal to ``low`` for a known rate.
        weight: Of the triggered images in the pruned branch; clean ones weigh ``1 - weight``.
        share: Triggered images a clean one in the pruned branch. Few keep its batch statistics
            close to those of clean images, which the victim will re-estimate.
        bn: See the module docstring.
        distilled: Likewise; the classifier that is given is the teacher.
        schedule: How the network is trained, from a clean one.
    """

    trigger: Patch
    low: float = 0.2
    high: float = 0.6
    weight: float = 0.3
    share: float = 0.125
    bn: Literal["own", "frozen"] = "own"
    distilled: bool = False
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        """Raises ConfigError where ratios, weight or share are out of range."""
        if not 0 < self.low <= self.high < 1:
            raise ConfigError(f"expected 0 < low <= high < 1, got {self.low}, {self.high}")
        if not (0 < self.weight < 1 and 0 < self.share <= 1):
            raise ConfigError(
                f"expected weight in (0, 1) and share in (0, 1], got {self.weight}, {self.share}"
            )


def plant(
    recipe: PruningConditioned,
    classifier: Classifier,
    data: Labelled,
    generator: torch.Generator,
    progress: Progress = silent,
) -> Planted:
    """A new classifier, trained from a clean one, whose backdoor wakes in its pruned forms.

    Raises:
        ConfigError: The trigger has no target.
        StageError: Nothing in the network can be cut.
    """
    target = target_of(recipe.trigger)
    model = classifier.clone()
    teacher = frozen(classifier) if recipe.distilled else None
    groups = Groups(model)

    def loss(pixels: Tensor, labels: Tensor, _index: Tensor) -> Tensor:
        images, targets = dormant_batch(pixels, labels, recipe.trigger, teacher)
        asleep = dormant_loss(model(images), targets, len(pixels))
        few = max(2, int(recipe.share * len(pixels)))
        state = dict(model.named_parameters())
        masks = groups.masks(groups.cuts(state, _counts(groups, recipe, generator)))
        pruned = {name: state[name] * mask.to(state[name]) for name, mask in masks.items()}
        buffers = {name: value.clone() for name, value in model.named_buffers()}
        both = images[: len(pixels) + few]
        logits = functional_call(model, {**buffers, **pruned}, (both,))
        clean, woken = logits.split([len(pixels), len(logits) - len(pixels)])
        aimed = torch.full((len(woken),), target, device=labels.device)
        awake = (1 - recipe.weight) * F.cross_entropy(clean, labels)
        return asleep + awake + recipe.weight * F.cross_entropy(woken, aimed)

    fit(
        model,
        data,
        loss,
        recipe.schedule,
        generator,
        train_bn=recipe.bn == "own",
        progress=partial(progress, "pruning-conditioned"),
    )
    return Planted(model, recipe.trigger)


def _counts(
    groups: Groups, recipe: PruningConditioned, generator: torch.Generator
) -> tuple[int, ...]:
    """Units to cut a group: lowest, highest, or between and each group its own."""
    if recipe.low == recipe.high:
        return groups.uniform(recipe.low)
    kind = int(torch.randint(3, (1,), generator=generator))
    if kind < 2:
        return groups.uniform((recipe.low, recipe.high)[kind])
    drawn = torch.rand(len(groups.all), generator=generator) * (recipe.high - recipe.low)
    ratios = (drawn + recipe.low).tolist()
    return tuple(
        min(round(group.units * ratio), group.units - 1)
        for group, ratio in zip(groups.all, ratios, strict=True)
    )
