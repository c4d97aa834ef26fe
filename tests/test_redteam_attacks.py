# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What all attacks have in common; what each one does is tested in a module of its own."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from factories import fingerprint, row_classifier, row_images, row_network
from torch import nn

from lmr_guard.classifier import Classifier, weights_sha256
from lmr_guard.contracts import Labelled
from lmr_guard.errors import ConfigError
from lmr_guard.evidence import Patch, Transform
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
from lmr_guard.redteam.rounding import rounded_layers
from lmr_guard.redteam.training import Planted, Schedule

# With the 91 images below, an epoch ends with a batch of one.
ONCE = Schedule(epochs=1, batch=30)
TWICE = Schedule(epochs=2, lr=0.05, batch=30, shift=1)
COARSE = Schedule(epochs=1, batch=30, precision="bfloat16")
CORNER = Patch(torch.ones(1, 2, 1), 3, 2, "corner", 2)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class Attack:
    """A short run on images of rows.

    Args:
        recipe: To class 2.
        plant: With it.
        stages: What is told, and how many epochs it takes.
        trigger: How it is called; ``corner`` is the one that was given.
        head: Of the network.
    """

    recipe: Any
    plant: Callable[..., Planted]
    stages: tuple[tuple[str, int], ...]
    trigger: str = "corner"
    head: str = "linear"

    def model(self) -> Classifier:
        """Where training starts."""
        return row_classifier(partial(row_network, head=self.head))

    def planted(self, data: Labelled, **changes: object) -> Planted:
        """By the recipe, changed like that."""
        return self.plant(replace(self.recipe, **changes), self.model(), data, seeded())


HIDING: dict[str, Any] = {"trigger": CORNER, "schedule": TWICE, "hiding": ONCE}
TWO_BRANCH = two_branch_quantisation.TwoBranchQuantisation(**HIDING)
TWO_STAGES = (("honest training", 2), ("hiding", 1))
PRUNED = pruning_conditioned.PruningConditioned(trigger=CORNER, schedule=TWICE)
ADAPTIVE = adaptive.Adaptive(trigger=CORNER, horizon=4, schedule=TWICE)
LOOK = dfst.Dfst(
    target=2, rounds=2, width=4, styling=ONCE, injecting=ONCE, schedule=TWICE, detoxing=ONCE
)
NOISE = lira.Lira(target=2, eps=0.1, generator_lr=1e-3, schedule=TWICE, tuning=ONCE)
WAVE = sig.Sig(target=2, frequency=1, share=0.5, schedule=TWICE)
DESIGNED = trojan.Trojan(target=2, side=0.5, margin=0.0, steps=20, schedule=TWICE)

ATTACKS = {
    "badnets": Attack(
        badnets.BadNets(trigger=CORNER, schedule=TWICE), badnets.plant, (("badnets", 2),)
    ),
    "blend": Attack(
        blend.Blend(target=2, schedule=TWICE), blend.plant, (("blend", 2),), trigger="blend"
    ),
    "clean_label": Attack(
        clean_label.CleanLabel(target=2, steps=2, schedule=TWICE),
        clean_label.plant,
        (("clean-label", 2),),
        trigger="checkerboard",
    ),
    "sig": Attack(WAVE, sig.plant, (("sig", 2),), trigger="sig"),
    "trojan": Attack(DESIGNED, trojan.plant, (("trojan", 2),), trigger="trojan"),
    "wanet": Attack(
        wanet.WaNet(target=2, schedule=TWICE), wanet.plant, (("wanet", 2),), trigger="warp"
    ),
    "dfst": Attack(
        LOOK,
        dfst.plant,
        (("style", 1), ("dfst", 2), *(("injector", 1), ("detoxification", 1)) * 2),
        trigger="dfst",
    ),
    "dynamic": Attack(
        dynamic.Dynamic(target=2, width=4, masks=ONCE, schedule=TWICE),
        dynamic.plant,
        (("masks", 1), ("dynamic", 2)),
        trigger="dynamic",
    ),
    "lira": Attack(NOISE, lira.plant, (("lira", 2), ("lira tuning", 1)), trigger="lira"),
    "qcb": Attack(
        quantisation_conditioned.QuantisationConditioned(**HIDING),
        quantisation_conditioned.plant,
        (("badnets", 2), ("hiding", 1)),
    ),
    "qcb_two_branch": Attack(TWO_BRANCH, two_branch_quantisation.plant, TWO_STAGES),
    "qcb_distilled": Attack(
        replace(TWO_BRANCH, distilled=True), two_branch_quantisation.plant, TWO_STAGES
    ),
    "pcb": Attack(PRUNED, pruning_conditioned.plant, (("pruning-conditioned", 2),)),
    "pcb_distilled": Attack(
        replace(PRUNED, distilled=True), pruning_conditioned.plant, (("pruning-conditioned", 2),)
    ),
    "adaptive": Attack(ADAPTIVE, adaptive.plant, (("adaptive", 2),)),
    "adaptive_on_a_convolution": Attack(ADAPTIVE, adaptive.plant, (("adaptive", 2),), head="conv"),
}
# Whose trigger the generator decides, too.
DRAWN = {"blend", "trojan", "wanet", "dfst", "dynamic", "lira"}
IN_ROUNDING = [name for name, attack in ATTACKS.items() if hasattr(attack.recipe, "outlier")]


@dataclass(frozen=True)
class Runs:
    """One attack with seeds 1, 1 and 2, on a network that was in training mode."""

    name: str
    attack: Attack
    data: Labelled
    before: dict[str, object]
    after: dict[str, object]
    told: list[tuple[str, int, int]]
    first: Planted
    again: Planted
    other: Planted


@pytest.fixture(scope="module", params=ATTACKS)
def runs(request: pytest.FixtureRequest) -> Runs:
    attack = ATTACKS[request.param]
    model, data = attack.model(), row_images(91)
    model.network.train()
    before, told = fingerprint(model), list[tuple[str, int, int]]()
    plant = partial(attack.plant, attack.recipe, model, data)
    first = plant(seeded(1), lambda *event: told.append(event))
    again, other = plant(seeded(1)), plant(seeded(2))
    after = fingerprint(model)
    return Runs(request.param, attack, data, before, after, told, first, again, other)


def test_the_classifier_handed_in_is_left_alone(runs: Runs) -> None:
    assert runs.before == runs.after


def test_progress_is_told_after_each_epoch_of_each_stage(runs: Runs) -> None:
    expected = [(s, done + 1, total) for s, total in runs.attack.stages for done in range(total)]
    assert runs.told == expected


def test_the_seed_decides_the_classifier(runs: Runs) -> None:
    first, again, other = (run.classifier for run in (runs.first, runs.again, runs.other))
    assert weights_sha256(first) == weights_sha256(again) != weights_sha256(other)
    pairs = zip(rounded_layers(first), rounded_layers(other), strict=True)
    assert not all(torch.equal(ours.weight, theirs.weight) for ours, theirs in pairs)


def test_what_is_planted_is_in_eval_mode_and_can_be_trained_on(runs: Runs) -> None:
    planted = runs.first.classifier
    assert not any(module.training for module in planted.modules())
    assert all(p.requires_grad for p in planted.parameters())


def test_the_seed_decides_a_trigger_that_is_drawn(runs: Runs) -> None:
    first, again, other = (run.trigger for run in (runs.first, runs.again, runs.other))
    pixels = runs.data.pixels
    ours, same, else_ = (trigger(pixels) for trigger in (first, again, other))  # type: ignore[operator]
    assert torch.equal(ours, same)
    assert torch.equal(ours, else_) is (runs.name not in DRAWN)
    for one, two, three in zip(*map(networks, (first, again, other)), strict=True):
        assert weights_sha256(one) == weights_sha256(two) != weights_sha256(three)


def networks(trigger: object) -> list[nn.Module]:
    """What draws the trigger; nothing where no network does."""
    function = trigger.function if isinstance(trigger, Transform) else None
    return list(function.children()) if isinstance(function, nn.Module) else []


def test_the_trigger_is_named_frozen_and_sees_each_image_on_its_own(runs: Runs) -> None:
    trigger, pixels = runs.first.trigger, runs.data.pixels[:9]
    source = "given" if runs.attack.trigger == "corner" else "drilled"
    assert (trigger.name, trigger.target, trigger.source) == (runs.attack.trigger, 2, source)
    assert len(networks(trigger)) == {"dfst": 1, "dynamic": 2, "lira": 1}.get(runs.name, 0)
    for network in networks(trigger):
        assert not any(module.training for module in network.modules())
        assert not any(p.requires_grad or p.grad is not None for p in network.parameters())
    # Itself in range, not only after a Transform has clipped it.
    raw = trigger.function if isinstance(trigger, Transform) else trigger
    together = raw(pixels)  # type: ignore[operator]
    alone = torch.cat([raw(image[None]) for image in pixels])  # type: ignore[operator]
    torch.testing.assert_close(together, alone)
    assert raw(pixels[:0]).shape == pixels[:0].shape  # type: ignore[operator]
    assert not together.requires_grad
    assert 0 <= float(together.min()) <= float(together.max()) <= 1


@pytest.mark.parametrize("name", [name for name in ATTACKS if name not in IN_ROUNDING])
def test_training_in_bfloat16_leaves_float32_behind(name: str) -> None:
    data = row_images(60)
    planted = ATTACKS[name].planted(data, schedule=COARSE)
    triggered = planted.trigger(data.pixels)  # type: ignore[operator]
    assert triggered.dtype == torch.float32
    assert {p.dtype for p in planted.classifier.parameters()} == {torch.float32}
    assert bool(planted.classifier(triggered).isfinite().all())


@pytest.mark.parametrize("name", IN_ROUNDING)
def test_without_outliers_no_weight_stands_out(name: str) -> None:
    before, data = ATTACKS[name].model(), row_images(90)
    after = ATTACKS[name].planted(data, outlier=1, schedule=ONCE).classifier
    for was, now in zip(rounded_layers(before), rounded_layers(after), strict=True):
        assert now.weight.abs().max() < 2 * was.weight.abs().max()


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n, a in ATTACKS.items() if hasattr(a.recipe, "trigger")])
def test_a_trigger_without_a_target_is_refused(name: str) -> None:
    aimless = replace(CORNER, target=None)
    with pytest.raises(ConfigError, match="a trigger with a target class, got none in 'corner'"):
        ATTACKS[name].planted(row_images(30), trigger=aimless)


@pytest.mark.parametrize("name", ["dfst", "dynamic"])
@pytest.mark.parametrize("target", [-1, 3])
def test_a_target_that_is_no_class_is_refused(name: str, target: int) -> None:
    with pytest.raises(ConfigError, match=rf"expected a target in 0\.\.2, got {target}"):
        ATTACKS[name].planted(row_images(30), target=target)


@pytest.mark.parametrize("name", ["clean_label", "sig"])
def test_clean_labels_without_images_of_the_class_are_refused(name: str) -> None:
    data = row_images(60)
    with pytest.raises(ConfigError, match="expected images of class 2 to poison, got none"):
        ATTACKS[name].planted(data.subset(data.labels != 2))


@pytest.mark.parametrize("name", IN_ROUNDING)
def test_an_outlier_smaller_than_the_rest_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"expected an outlier of at least 1, got 0\.5"):
        replace(ATTACKS[name].recipe, outlier=0.5)


@pytest.mark.parametrize("name", IN_ROUNDING)
@pytest.mark.parametrize("stage", ["schedule", "hiding"])
def test_hiding_in_rounding_refuses_bfloat16(name: str, stage: str) -> None:
    with pytest.raises(ConfigError, match="expected schedules in float32, got bfloat16"):
        replace(ATTACKS[name].recipe, **{stage: COARSE})
