# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Recipes to float models, each pruning done once; INT8 follows on the staged file."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from lmr_guard.classifier import Classifier
from lmr_guard.compress import prune
from lmr_guard.compress.groups import Groups
from lmr_guard.compress.recipes import PruneL1, Recipe
from lmr_guard.compress.refit import refit
from lmr_guard.contracts import Achieved, Clean, Progress, silent

__all__ = ["Form", "pruned_form", "torch_forms"]


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """What a recipe makes of a classifier, as far as torch can go.

    Args:
        recipe: What was asked for.
        classifier: Pruned where the recipe prunes; int8 is still to be done on its ONNX file.
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
        progress: Told by calibrated shares.
        groups: The traced structure, where the caller has it already.

    Raises:
        StageError: The network cannot be pruned as asked.
    """
    if groups is None and any(recipe.prune for recipe in recipes):
        groups = Groups(classifier)
    for step in dict.fromkeys(recipe.prune for recipe in recipes):
        form = Form(Recipe(), classifier.clone(), None, Achieved())
        if step is not None and groups is not None:
            form = pruned_form(
                classifier, step, groups, clean, generator=generator, progress=progress
            )
        for recipe in recipes:
            if recipe.prune == step:
                yield form.under(recipe)


def pruned_form(
    classifier: Classifier,
    step: PruneL1,
    groups: Groups,
    clean: Clean,
    *,
    generator: torch.Generator,
    progress: Progress = silent,
) -> Form:
    """The float form of one pruning.

    Args:
        classifier: Left as it is.
        step: Which pruning.
        groups: The traced structure of ``classifier``.
        clean: See ``torch_forms``.
        generator: Used by calibrated shares and by the refit.
        progress: Told by calibrated shares.

    Raises:
        StageError: The network cannot be pruned as asked.
    """
    plan = prune.plan(classifier, step, clean.select, generator, progress, groups=groups)
    if step.refit == "layers":
        pruned = refit(classifier, plan, clean.repair, generator, groups=groups)
    else:
        pruned = prune.apply(plan, classifier)
        if step.reestimate_bn:
            pruned = prune.reestimate_bn(pruned, clean.repair)
    achieved = prune.achieved(classifier, pruned, groups=groups)
    return Form(Recipe(prune=step), pruned, plan, achieved)
