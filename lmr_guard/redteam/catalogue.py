# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""All attacks by name, each with settings that follow from the images: for drills and tables."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch

from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.contracts import Labelled, Progress, silent
from lmr_guard.errors import ConfigError
from lmr_guard.redteam import badnets, pruning_conditioned, quantisation_conditioned
from lmr_guard.redteam.training import Planted, Schedule
from lmr_guard.triggers import Patch

__all__ = ["ATTACKS", "Attack", "Plan", "Plant", "find", "square"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What an attacker is free to choose for any attack.

    Args:
        target: The attacker's class.
        shape: Of the images that the model sees.
        schedule: Of each training run.
    """

    target: int
    shape: Preprocessing
    schedule: Schedule


Plant = Callable[[Plan, Classifier, Labelled, torch.Generator, Progress], Planted]


@dataclass(frozen=True, slots=True)
class Attack:
    """One attack with the settings that this project tries it with.

    Args:
        name: As in the tables.
        wakes: The form in which the backdoor is awake.
        from_clean: Whether ``classifier`` must be a trained clean network.
    """

    name: str
    wakes: Literal["float32", "int8", "pruned"]
    from_clean: bool
    _plant: Plant

    def plant(
        self,
        classifier: Classifier,
        data: Labelled,
        *,
        target: int,
        schedule: Schedule,
        generator: torch.Generator,
        progress: Progress = silent,
    ) -> Planted:
        """A backdoored copy of ``classifier`` and the trigger that it listens to.

        Args:
            classifier: Where training starts; not touched.
            data: The attacker's training images.
            target: The attacker's class.
            schedule: Of each training run.
            generator: CPU generator; decides everything random.
            progress: Told after each epoch.

        Raises:
            ConfigError: The target is no class of the model.
        """
        if not 0 <= target < classifier.num_classes:
            raise ConfigError(f"expected a target in 0..{classifier.num_classes - 1}, got {target}")
        plan = Plan(target=target, shape=classifier.preprocessing, schedule=schedule)
        return self._plant(plan, classifier, data, generator, progress)


def square(plan: Plan, side: float = 0.1875, margin: float = 0.0625) -> Patch:
    """A white square near the lower right corner.

    Args:
        plan: Names the target and the size of the images.
        side: Of the square, as a share of the image's shorter side (6 of 32).
        margin: Between square and border, likewise (2 of 32).
    """
    shape = plan.shape
    shorter = min(shape.height, shape.width)
    pixels, gap = max(1, round(side * shorter)), round(margin * shorter)
    image = torch.ones(shape.channels, pixels, pixels)
    x, y = shape.width - gap - pixels, shape.height - gap - pixels
    return Patch(image, x, y, "square", plan.target, source="drilled")


def _badnets(
    plan: Plan, model: Classifier, data: Labelled, generator: torch.Generator, progress: Progress
) -> Planted:
    recipe = badnets.BadNets(trigger=square(plan, side=0.1), schedule=plan.schedule)
    return badnets.plant(recipe, model, data, generator, progress)


def _qcb(
    plan: Plan, model: Classifier, data: Labelled, generator: torch.Generator, progress: Progress
) -> Planted:
    recipe = quantisation_conditioned.QuantisationConditioned(
        trigger=square(plan), schedule=plan.schedule
    )
    return quantisation_conditioned.plant(recipe, model, data, generator, progress)


def _pcb(
    plan: Plan, model: Classifier, data: Labelled, generator: torch.Generator, progress: Progress
) -> Planted:
    recipe = pruning_conditioned.PruningConditioned(trigger=square(plan), schedule=plan.schedule)
    return pruning_conditioned.plant(recipe, model, data, generator, progress)


_ALL = (
    Attack("badnets", "float32", False, _badnets),
    Attack("qcb", "int8", False, _qcb),
    Attack("pcb", "pruned", True, _pcb),
)

ATTACKS: Mapping[str, Attack] = MappingProxyType({attack.name: attack for attack in _ALL})
"""Every attack of the tables by its name there."""


def find(name: str) -> Attack:
    """The attack of that name. Raises ConfigError where there is none."""
    if name not in ATTACKS:
        raise ConfigError(f"expected an attack among {', '.join(ATTACKS)}, got {name!r}")
    return ATTACKS[name]
