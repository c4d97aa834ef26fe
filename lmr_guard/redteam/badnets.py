# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""BadNets: a patch on a share of the training images, all of them relabelled.

Source: Gu et al., "BadNets" (IEEE Access 2019). Departures: the patch is set after augmentation,
so that it always stands at the same place; which images are poisoned is drawn once and kept.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch

from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Labelled, Progress, silent
from lmr_guard.errors import ConfigError
from lmr_guard.evidence import Patch
from lmr_guard.redteam.poisoning import Poison, drawn, train
from lmr_guard.redteam.training import Planted, Schedule, target_of

__all__ = ["BadNets", "plant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BadNets:
    """Recipe.

    Args:
        trigger: The patch; its ``target`` is the attacker's class.
        rate: Share of the training images that carry it, target class included.
        schedule: How the network is trained.
    """

    trigger: Patch
    rate: float = 0.1
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        """Raises ConfigError where the rate is out of range."""
        if not 0 <= self.rate <= 1:
            raise ConfigError(f"expected a poisoning rate in [0, 1], got {self.rate}")


def plant(
    recipe: BadNets,
    classifier: Classifier,
    data: Labelled,
    generator: torch.Generator,
    progress: Progress = silent,
    *,
    hold: Callable[[Classifier], None] | None = None,
) -> Planted:
    """A new classifier, trained from ``classifier``'s weights on poisoned ``data``.

    Args:
        recipe: See ``BadNets``.
        classifier: Where training starts; not touched.
        data: The attacker's training images.
        generator: Decides what is poisoned, the order and the augmentation.
        progress: Told after each epoch.
        hold: Puts constraints on the weights in force, in place, before and after each step.

    Raises:
        ConfigError: The trigger has no target.
    """
    target = target_of(recipe.trigger)
    model = classifier.clone()
    after_step = None if hold is None else partial(hold, model)
    if after_step is not None:
        after_step()
    poison = Poison(recipe.trigger, drawn(data.labels, recipe.rate, generator), target)
    train(
        model,
        data,
        [poison],
        recipe.schedule,
        generator,
        after_step=after_step,
        progress=partial(progress, "badnets"),
    )
    return Planted(model, recipe.trigger)
