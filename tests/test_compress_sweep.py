# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Recipes to forms: each pruning once, on the right part of the clean images."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from cuttable import grey
from modules import ROOT
from torch import nn

from lmr_guard.classifier import Classifier, Preprocessing, weights_sha256
from lmr_guard.compress import prune, sweep
from lmr_guard.compress.damage import Damage, measured
from lmr_guard.compress.distil import DEAR, distance, distilled, turned
from lmr_guard.compress.groups import Groups
from lmr_guard.compress.recipes import Int8, PruneL1, Recipe, parse
from lmr_guard.compress.refit import refit
from lmr_guard.compress.sweep import Cutter, torch_forms
from lmr_guard.contracts import Clean, Labelled, Progress
from lmr_guard.errors import StageError
from lmr_guard.measure import predict
from lmr_guard.results import Achieved

K = 3
GREY = Preprocessing(channels=1, height=8, width=8, mean=(0.5,), std=(0.5,))


def classifier() -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(1, 10, 3),
            nn.BatchNorm2d(10),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(10, K),
        )
    return Classifier(network, GREY, K).eval()


def part(seed: int) -> Labelled:
    return grey(12, seed, "abc")


CLEAN = Clean(repair=part(0), select=part(1), report=part(2))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_int8_shares_the_pruned_model_of_its_float_sibling() -> None:
    model = classifier()
    recipes = parse(["float32", "int8", "l1-0.2", "l1-0.2+int8", "l1-0.5+int8"])
    forms = list(torch_forms(model, recipes, CLEAN, generator()))
    assert [form.recipe for form in forms] == list(recipes)
    plain, eight, pruned, both, deep = forms
    assert plain.classifier is eight.classifier is not model
    assert weights_sha256(plain.classifier) == weights_sha256(model)
    assert plain.plan is None
    assert plain.achieved == Achieved()
    assert eight.achieved == Achieved(bits=8)
    assert pruned.classifier is both.classifier
    assert pruned.plan == both.plan
    assert (pruned.achieved.bits, both.achieved.bits) == (32, 8)
    assert pruned.achieved.channel_sparsity == both.achieved.channel_sparsity
    assert deep.achieved.channel_sparsity == pytest.approx(0.5)
    assert deep.plan is not None
    assert deep.plan.ratio == 0.5


@pytest.mark.parametrize("reestimate", [False, True])
def test_a_form_is_plan_apply_and_bn_on_repair(reestimate: bool) -> None:
    model = classifier()
    step = PruneL1(ratio=0.4, annealing_steps=2, refit="none", reestimate_bn=reestimate)
    (form,) = torch_forms(model, [Recipe(prune=step, int8=Int8())], CLEAN, generator())
    plan = prune.plan(model, step, CLEAN.select, generator())
    expected = prune.apply(plan, model)
    if reestimate:
        expected = prune.reestimate_bn(expected, CLEAN.repair)
    assert form.plan == plan
    assert weights_sha256(form.classifier) == weights_sha256(expected)


def test_a_structure_that_the_caller_has_is_not_traced_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, recipes = classifier(), parse(["float32", "l1-0.2", "l1-0.5+int8"])
    groups = Groups(model)
    expected = list(torch_forms(model, recipes, CLEAN, generator()))

    def traced(*_: object) -> None:
        raise AssertionError("traced again")

    monkeypatch.setattr(sweep, "Groups", traced)
    monkeypatch.setattr(prune, "Groups", traced)
    forms = list(torch_forms(model, recipes, CLEAN, generator(), groups=groups))
    for ours, theirs in zip(forms, expected, strict=True):
        assert (ours.plan, ours.achieved) == (theirs.plan, theirs.achieved)
        assert weights_sha256(ours.classifier) == weights_sha256(theirs.classifier)


def test_a_pruned_form_is_the_float_one_of_its_recipe() -> None:
    model, step = classifier(), PruneL1(ratio=0.5, annealing_steps=2)
    form = Cutter(model, CLEAN).pruned(step, Groups(model), generator())
    (expected,) = torch_forms(model, [Recipe(prune=step)], CLEAN, generator())
    assert (form.recipe, form.plan) == (expected.recipe, expected.plan)
    assert form.achieved == expected.achieved
    assert form.achieved.channel_sparsity == pytest.approx(0.5)
    assert weights_sha256(form.classifier) == weights_sha256(expected.classifier)
    both = form.under(Recipe(prune=step, int8=Int8()))
    assert both.classifier is form.classifier
    assert (both.recipe.int8, both.achieved.bits) == (Int8(), 8)


def test_what_cuts_share_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, recipes = classifier(), parse(["l1-0.2", "l1-0.5"])
    expected = [form.plan for form in torch_forms(model, recipes, CLEAN, generator())]
    asked: list[bool] = []

    def counted(*given: object, batch_statistics: bool, progress: Progress) -> Damage:
        asked.append(batch_statistics)
        return measured(*given, batch_statistics=batch_statistics, progress=progress)  # type: ignore[arg-type]

    monkeypatch.setattr(sweep, "measured", counted)
    assert [form.plan for form in torch_forms(model, recipes, CLEAN, generator())] == expected
    assert asked == [True]


def test_without_pruning_nothing_is_traced() -> None:
    flat = Classifier(
        nn.Sequential(nn.Flatten(), nn.Linear(64, K)),
        GREY,
        K,
    )
    forms = list(torch_forms(flat, parse(["int8"]), CLEAN, generator()))
    assert [form.recipe.label for form in forms] == ["int8"]
    with pytest.raises(StageError, match="leave pruning out"):
        next(torch_forms(flat, parse(["float32", "l1-0.2"]), CLEAN, generator()))


def test_importing_compress_loads_neither_backend() -> None:
    probe = (
        "import sys, conftest, lmr_guard.compress as c; from lmr_guard.compress import quantize\n"
        "assert callable(quantize.quantize) and c.__all__ == sorted(c.__all__)\n"
        "print(sorted({'onnx', 'onnxruntime', 'torch_pruning'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("steps", [0, 2])
def test_a_form_is_refit_and_distilled_on_repair(steps: int) -> None:
    model, drawn = classifier(), generator()
    step = PruneL1(ratio=0.4, distil=steps, rival=None)
    (form,) = torch_forms(model, [Recipe(prune=step)], CLEAN, generator())
    chosen = prune.plan(model, step, CLEAN.select, drawn)
    expected = refit(model, chosen, CLEAN.repair, drawn)
    if steps:
        parts = (CLEAN.repair, CLEAN.select)
        left = Groups(model).left_to_head(chosen.cuts)
        expected = distilled(expected, model, parts, drawn, steps=steps, left=left)
    assert form.plan == chosen
    assert weights_sha256(form.classifier) == weights_sha256(expected)


def undecided() -> Classifier:
    """A network that answers every class of noise, so that a cut changes answers."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 12, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(12 * 36, K),
        )
    model = Classifier(network, GREY, K).eval()
    with torch.no_grad():
        network[-1].bias -= predict(model, grey(60, 6, "abc")).mean(dim=0)  # type: ignore[operator]
    return model


NOISE = Clean(grey(60, 3, "abc"), grey(60, 4, "abc"), grey(60, 5, "abc"))


@pytest.mark.parametrize("ratio", [0.3, 0.6])
def test_of_two_dear_ways_to_spread_a_ratio_the_nearer_is_taken(ratio: float) -> None:
    model, drawn = undecided(), generator()
    clean, groups = NOISE, Groups(model)
    step = PruneL1(ratio=ratio, distil=0)
    damage = measured(model, groups, clean.select, batch_statistics=True)
    cuts = []
    for shares in (step.shares, "calibrated"):
        plan = prune.plan(
            model, replace(step, shares=shares), clean.select, drawn, groups=groups, damage=damage
        )
        cuts.append((plan, refit(model, plan, clean.repair, drawn, groups=groups)))
    far = [distance(cut, model, clean.select) for _, cut in cuts]
    assert turned(cuts[0][1], model, clean.select) > DEAR
    form = Cutter(model, clean).pruned(step, groups, generator())
    assert form.plan == cuts[far.index(min(far))][0]
    alone = Cutter(model, clean).pruned(replace(step, rival=None), groups, generator())
    assert alone.plan == cuts[0][0]


def test_a_cut_that_is_not_dear_has_no_rival(monkeypatch: pytest.MonkeyPatch) -> None:
    model = classifier()  # Of noise it says one class, whatever is cut.
    groups, asked = Groups(model), list[str]()

    def seen(*given: object, **named: object) -> prune.PrunePlan:
        asked.append(given[1].shares)  # type: ignore[attr-defined]
        return plan(*given, **named)  # type: ignore[arg-type]

    plan = prune.plan
    monkeypatch.setattr(prune, "plan", seen)
    Cutter(model, NOISE).pruned(PruneL1(ratio=0.01, distil=0), groups, generator())
    assert asked == ["damage"]
