# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Recipes to float models, each pruning done once; INT8 follows on the staged file."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from lmr_guard.classifier import Classifier
from lmr_guard.compress import prune
from lmr_guard.compress.damage import Damage, measured
from lmr_guard.compress.distil import DEAR, distance, distilled, turned
from lmr_guard.compress.groups import Groups
from lmr_guard.compress.recipes import PruneL1, Recipe
from lmr_guard.compress.refit import refit
from lmr_guard.contracts import Clean, Progress, silent
from lmr_guard.results import Achieved

__all__ = ["Cutter", "Form", "torch_forms"]


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """What a recipe makes of a classifier, as far as torch can go.

    Args:
        recipe: What was asked for.
        classifier: Pruned where the recipe prunes; int8 is still to be done on its ONNX file,
            but for weights that were rounded already.
        plan: The channels that went; None where the recipe does not prune.
        achieved: What is gone, and the bits that the file will have.
    """

    recipe: Recipe
    classifier: Classifier
    plan: prune.PrunePlan | None
    achieved: Achieved

    def under(self, recipe: Recipe) -> "Form":
        """The same network under the name of a recipe that prunes alike."""
        bits = 8 if recipe.int8 else 32
        return replace(self, recipe=recipe, achieved=replace(self.achieved, bits=bits))


def torch_forms(
    classifier: Classifier,
    recipes: Sequence[Recipe],
    clean: Clean,
    generator: torch.Generator,
    progress: Progress = silent,
    *,
    groups: Groups | None = None,
) -> Iterator[Form]:
    """Builds the forms one by one, recipes that prune alike together and traced once.

    Args:
        classifier: Left as it is.
        recipes: Taken in the order in which each pruning first appears.
        clean: Layer shares are chosen on ``select``; layers are refit, or BN statistics taken, on
            ``repair``.
        generator: Used by calibrated shares.
        progress: Told by searches for layer shares.
        groups: The traced structure, where the caller has it already.

    Raises:
        StageError: The network cannot be pruned as asked.
    """
    if groups is None and any(recipe.prune for recipe in recipes):
        groups = Groups(classifier)
    cutter = Cutter(classifier, clean, progress)
    for step in dict.fromkeys(recipe.prune for recipe in recipes):
        form = cutter.uncut()
        if step is not None and groups is not None:
            form = cutter.pruned(step, groups, generator)
        for recipe in recipes:
            if recipe.prune == step:
                yield form.under(recipe)


class Cutter:
    """Cuts a classifier in as many ways as are asked for; what they share is measured once.

    Args:
        classifier: Left as it is.
        clean: See ``torch_forms``.
        progress: Told by searches for layer shares.
        working: See ``distilled``.
    """

    def __init__(
        self,
        classifier: Classifier,
        clean: Clean,
        progress: Progress = silent,
        *,
        working: Callable[[Classifier], Classifier] = Classifier.clone,
    ) -> None:
        self._classifier = classifier
        self._working = working
        self._clean = clean
        self._progress = progress
        self._damage: dict[bool, Damage] = {}

    def uncut(self) -> Form:
        """The classifier itself."""
        return Form(Recipe(), self._classifier.clone(), None, Achieved())

    def pruned(self, step: PruneL1, groups: Groups, generator: torch.Generator) -> Form:
        """The float form of one pruning.

        Args:
            step: Which pruning.
            groups: The traced structure of the classifier.
            generator: Used by calibrated shares, by the refit and by the distillation.

        Raises:
            ConfigError: Too few images for the shares that are asked for.
            StageError: The network cannot be pruned as asked.
        """
        model, clean = self._classifier, self._clean
        if step.refit == "layers":
            plan, pruned = self._refit(step, groups, generator)
            if step.distil:
                pruned = distilled(
                    pruned,
                    model,
                    (clean.repair, clean.select),
                    generator,
                    self._progress,
                    steps=step.distil,
                    left=groups.left_to_head(plan.cuts),
                    working=self._working,
                )
        else:
            plan = self._plan(step, groups, generator)
            pruned = prune.apply(plan, model, groups)
            if step.reestimate_bn:
                pruned = prune.reestimate_bn(pruned, clean.repair)
        achieved = prune.achieved(model, pruned, groups=groups)
        return Form(Recipe(prune=step), pruned, plan, achieved)

    def _refit(
        self, step: PruneL1, groups: Groups, generator: torch.Generator
    ) -> tuple[prune.PrunePlan, Classifier]:
        """The cut, refit; where that is dear, the rival's where it is nearer to the uncut."""
        model, clean = self._classifier, self._clean

        def made(step: PruneL1) -> tuple[prune.PrunePlan, Classifier]:
            plan = self._plan(step, groups, generator)
            return plan, refit(model, plan, clean.repair, generator, groups=groups)

        first = made(step)
        if step.shares != "damage" or step.rival in {None, step.shares}:
            return first
        if turned(first[1], model, clean.select) <= DEAR:
            return first
        both = (first, made(replace(step, shares=step.rival)))
        return min(both, key=lambda cut: distance(cut[1], model, clean.select))

    def _plan(self, step: PruneL1, groups: Groups, generator: torch.Generator) -> prune.PrunePlan:
        return prune.plan(
            self._classifier,
            step,
            self._clean.select,
            generator,
            self._progress,
            groups=groups,
            damage=self._measured(step, groups),
        )

    def _measured(self, step: PruneL1, groups: Groups) -> Damage | None:
        if step.shares != "damage" or len(self._clean.select) < prune.FEWEST:
            return None
        how = step.reestimate_bn
        if how not in self._damage:
            self._damage[how] = measured(
                self._classifier,
                groups,
                self._clean.select,
                batch_statistics=how,
                progress=self._progress,
            )
        return self._damage[how]
