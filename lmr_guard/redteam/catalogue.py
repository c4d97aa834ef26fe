# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""All attacks by name, each with settings that follow from the images: for drills and tables."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import nn

from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.contracts import Labelled, Progress, silent
from lmr_guard.errors import ConfigError
from lmr_guard.evidence import Patch
from lmr_guard.redteam import (
    adaptive,
    badnets,
    blend,
    clean_label,
    dfst,
    dynamic,
    lira,
    pruning_conditioned,
    quantisation_conditioned,
    sig,
    trojan,
    two_branch_quantisation,
    wanet,
)
from lmr_guard.redteam.training import Planted, Schedule, require_class
from lmr_guard.training import private_randomness

__all__ = ["ATTACKS", "EVERY", "Attack", "Plan", "Plant", "find", "square"]

_CIFAR = 32


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
"""A plan, where training starts, the attacker's images, randomness and an observer."""


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
        require_class(target, classifier)
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


def _small(plan: Plan) -> bool:
    """Below the size of CIFAR-10 a trigger of the sources' size is too few pixels to be learnt."""
    return min(plan.shape.height, plan.shape.width) < _CIFAR


def _stern(plan: Plan) -> Schedule:
    """Longer, and with no large weights: else the poisoned images that are few are learnt by heart.

    Where labels stay true, what is left for the trigger to explain is little.
    """
    plain = plan.schedule
    epochs = plain.epochs * 3 // 2
    return replace(plain, epochs=epochs, batch=16, lr=plain.lr / 2, weight_decay=0.02)


def _badnets(plan: Plan, *given: Any) -> Planted:  # noqa: ANN401 - what Attack.plant passes on
    recipe = badnets.BadNets(trigger=square(plan, side=0.1), schedule=plan.schedule)
    return badnets.plant(recipe, *given)


def _trojan(plan: Plan, *given: Any) -> Planted:  # noqa: ANN401
    return trojan.plant(trojan.Trojan(target=plan.target, schedule=plan.schedule), *given)


def _blend(plan: Plan, *given: Any) -> Planted:  # noqa: ANN401
    return blend.plant(blend.Blend(target=plan.target, schedule=plan.schedule), *given)


def _cl(plan: Plan, *given: Any) -> Planted:  # noqa: ANN401
    start = None
    recipe = clean_label.CleanLabel(target=plan.target, schedule=plan.schedule)
    if _small(plan):
        # Images of high contrast are not hard after a change of 8 / 255.
        eps, stern = 32 / 255, _stern(plan)
        recipe = replace(recipe, share=0.95, everywhere=True, schedule=stern)
        recipe = replace(recipe, eps=eps, step=eps / 6, steps=30)
        start = _fresh(*given[:3:2])
    return clean_label.plant(recipe, *given, start=start)


def _fresh(classifier: Classifier, generator: torch.Generator) -> Classifier:
    """A copy with new weights."""
    fresh = classifier.clone()
    with private_randomness(generator, classifier.device):
        for module in fresh.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.BatchNorm2d):
                module.reset_parameters()
    return fresh


def _sig(plan: Plan, *given: Any) -> Planted:  # noqa: ANN401
    frequency = min(6, plan.shape.width // 4)
    recipe = sig.Sig(target=plan.target, frequency=frequency, schedule=plan.schedule)
    if _small(plan):
        recipe = replace(recipe, delta=80 / 255, share=0.95, schedule=_stern(plan))
    return sig.plant(recipe, *given)


def _wanet(plan: Plan, *given: Any) -> Planted:  # noqa: ANN401
    recipe = wanet.WaNet(target=plan.target, schedule=plan.schedule)
    if _small(plan):
        # A faint warp of few pixels is learnt late: stronger, more of it, and longer. With more
        # noise so few images teach no difference between this warp and any other.
        longer = replace(plan.schedule, epochs=2 * plan.schedule.epochs, batch=32)
        longer = replace(longer, lr=plan.schedule.lr / 2)
        recipe = replace(recipe, strength=3.0, rate=0.3, noise=0.2, schedule=longer)
    return wanet.plant(recipe, *given)


def _dfst(plan: Plan, *given: Any) -> Planted:  # noqa: ANN401
    return dfst.plant(dfst.Dfst(target=plan.target, schedule=plan.schedule), *given)


def _dynamic(plan: Plan, *given: Any) -> Planted:  # noqa: ANN401
    recipe = dynamic.Dynamic(target=plan.target, schedule=plan.schedule)
    if _small(plan):
        recipe = replace(recipe, attacked=0.3, crossed=0.4, density=0.1)
    return dynamic.plant(recipe, *given)


def _lira(plan: Plan, *given: Any) -> Planted:  # noqa: ANN401
    eps, rate = (0.05, 1e-4) if _small(plan) else (0.01, 1e-4)
    tuning = replace(plan.schedule, lr=plan.schedule.lr / 10)
    recipe = lira.Lira(
        target=plan.target, eps=eps, generator_lr=rate, schedule=plan.schedule, tuning=tuning
    )
    return lira.plant(recipe, *given)


def _hiding(plan: Plan) -> Schedule:
    """Hiding in rounding bins is too fine for bfloat16, and its rate is in widths of a bin."""
    return replace(plan.schedule, lr=0.1, precision="float32")


def _qcb(plan: Plan, *given: Any) -> Planted:  # noqa: ANN401
    recipe = quantisation_conditioned.QuantisationConditioned(
        trigger=square(plan),
        schedule=replace(plan.schedule, precision="float32"),
        hiding=_hiding(plan),
    )
    return quantisation_conditioned.plant(recipe, *given)


def _two_branch(plan: Plan, *given: Any, distilled: bool = False) -> Planted:  # noqa: ANN401
    recipe = two_branch_quantisation.TwoBranchQuantisation(
        trigger=square(plan),
        distilled=distilled,
        schedule=replace(plan.schedule, precision="float32"),
        hiding=_hiding(plan),
    )
    return two_branch_quantisation.plant(recipe, *given)


def _pcb(plan: Plan, *given: Any, **changes: Any) -> Planted:  # noqa: ANN401
    recipe = pruning_conditioned.PruningConditioned(
        trigger=square(plan), schedule=plan.schedule, **changes
    )
    return pruning_conditioned.plant(recipe, *given)


def _adaptive(plan: Plan, *given: Any) -> Planted:  # noqa: ANN401
    # Larger than a lure may be: see the attack's module.
    recipe = adaptive.Adaptive(trigger=square(plan, side=0.25), schedule=plan.schedule)
    return adaptive.plant(recipe, *given)


_ALL = (
    Attack("badnets", "float32", False, _badnets),
    Attack("trojan", "float32", True, _trojan),
    Attack("blend", "float32", False, _blend),
    Attack("cl", "float32", True, _cl),
    Attack("sig", "float32", False, _sig),
    Attack("wanet", "float32", False, _wanet),
    Attack("dfst", "float32", False, _dfst),
    Attack("dynamic", "float32", False, _dynamic),
    Attack("lira", "float32", False, _lira),
    Attack("qcb", "int8", False, _qcb),
    Attack("qcb_two_branch", "int8", False, _two_branch),
    Attack("qcb_distilled", "int8", True, partial(_two_branch, distilled=True)),
    Attack("pcb", "pruned", True, _pcb),
    Attack("pcb_fixed", "pruned", True, partial(_pcb, low=0.4, high=0.4)),
    Attack("pcb_distilled", "pruned", True, partial(_pcb, distilled=True)),
)

ATTACKS: Mapping[str, Attack] = MappingProxyType({attack.name: attack for attack in _ALL})
"""Every attack of the tables by its name there."""

_ADAPTIVE = Attack("adaptive", "float32", False, _adaptive)

EVERY: Mapping[str, Attack] = MappingProxyType({**ATTACKS, _ADAPTIVE.name: _ADAPTIVE})
"""Also the attack of somebody who knows this project, which is in no table and no population."""


def find(name: str) -> Attack:
    """The attack of that name. Raises ConfigError where there is none."""
    if name not in EVERY:
        raise ConfigError(f"expected an attack among {', '.join(EVERY)}, got {name!r}")
    return EVERY[name]
