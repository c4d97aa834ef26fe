# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Shares by annealing keep the rate, spare what matters, and are scored as the recipe ends."""

from dataclasses import replace

import pytest
from cuttable import classifier, generator, lopsided, noise, uniform
from torch import nn

from lmr_guard.compress import prune
from lmr_guard.compress.groups import Groups
from lmr_guard.compress.recipes import PruneL1
from lmr_guard.measure import accuracy


def test_calibrated_shares_spare_the_layer_that_matters() -> None:
    model, data = lopsided()
    assert accuracy(model, data).value == 1
    recipe = PruneL1(ratio=0.4, shares="calibrated", annealing_steps=40)
    steps: list[tuple[int, int]] = []
    plan = prune.plan(
        model, recipe, data, generator(), lambda _step, done, total: steps.append((done, total))
    )
    pruned = prune.apply(plan, model)
    even = prune.apply(uniform(model, 0.4), model)
    assert accuracy(pruned, data).hits > accuracy(even, data).hits
    assert prune.achieved(model, pruned).channel_sparsity >= 0.4
    assert steps == [(i, 40) for i in range(1, 41)]


@pytest.mark.parametrize("ratio", [0.2, 0.6])
def test_calibrated_shares_keep_the_overall_rate_and_are_reproducible(ratio: float) -> None:
    model = classifier("resnext")
    recipe = PruneL1(ratio=ratio, shares="calibrated", annealing_steps=3, calibration_images=6)
    groups = Groups(model)
    plan = prune.plan(model, recipe, noise(), generator(), groups=groups)
    assert plan == prune.plan(model, recipe, noise(), generator())
    assert plan.shares == "calibrated"
    done = prune.achieved(model, prune.apply(plan, model), groups=groups)
    assert ratio <= done.channel_sparsity < ratio + 0.05


def test_calibrated_shares_are_never_worse_than_uniform_where_they_were_scored() -> None:
    model, data = classifier("plain"), noise(40)
    recipe = PruneL1(ratio=0.3, shares="calibrated", annealing_steps=8, calibration_images=40)
    plan = prune.plan(model, recipe, data, generator())
    calibrated = accuracy(prune.apply(plan, model), data)
    assert calibrated.hits >= accuracy(prune.apply(uniform(model, 0.3), model), data).hits


@pytest.mark.parametrize("count", [2, 65])
def test_candidates_are_scored_as_the_recipe_ends(count: int) -> None:
    model = classifier("resnet")
    # With batch statistics the stored ones, even broken ones, must not count.
    broken = classifier("resnet")
    for module in broken.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            module.running_mean.fill_(float("nan"))
    recipe = PruneL1(ratio=0.4, shares="calibrated", annealing_steps=2)
    plans = [
        prune.plan(m, recipe, noise(count), generator(), groups=GROUPS) for m in (model, broken)
    ]
    assert plans[0] == plans[1]
    fixed = replace(recipe, reestimate_bn=False)
    again = prune.plan(broken, fixed, noise(count), generator(), groups=GROUPS)
    assert again.cuts == uniform(model).cuts, "all candidates are NaN, the start is kept"


GROUPS = Groups(classifier("resnet"))
