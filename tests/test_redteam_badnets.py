# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""BadNets: the backdoor is really there, and nothing else is."""

import pytest
import torch
from factories import fingerprint, row_classifier, row_images

from lmr_guard.classifier import Classifier, weights_sha256
from lmr_guard.contracts import Clean
from lmr_guard.errors import ConfigError
from lmr_guard.evidence import Patch
from lmr_guard.measure import accuracy, against_trigger, predict
from lmr_guard.redteam.badnets import BadNets, plant
from lmr_guard.redteam.training import Schedule, fit_clean

TINY = Schedule(epochs=3, lr=0.05, batch=20, shift=1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def corner(target: int | None = 2) -> Patch:
    """The lower right pixel of a 4x4 image, white."""
    return Patch(torch.ones(1, 1, 1), 3, 3, "corner", target)


def test_the_attack_works_and_accuracy_stays(
    badnets_network: Classifier, clean_network: Classifier, digits: Clean, white_square: Patch
) -> None:
    planted = against_trigger(badnets_network, digits.report, white_square)
    assert planted.target == 3
    assert planted.asr.value >= 0.9
    kept = accuracy(badnets_network, digits.report).value
    assert kept > accuracy(clean_network, digits.report).value - 0.03
    # The patch alone, without the backdoor, does not send images there.
    assert against_trigger(clean_network, digits.report, white_square).asr.value < 0.2


def test_without_poison_it_is_honest_training() -> None:
    fresh, data = row_classifier(), row_images(60)
    generator = seeded(1)
    torch.rand(len(data), generator=generator)
    honest = fit_clean(fresh, data, TINY, generator)
    planted = plant(
        BadNets(trigger=corner(), rate=0, schedule=TINY), fresh, data, seeded(1)
    ).classifier
    assert weights_sha256(planted) == weights_sha256(honest)


def test_with_nothing_but_poison_everything_triggered_lands_in_the_target() -> None:
    recipe = BadNets(trigger=corner(), rate=1, schedule=Schedule(epochs=5, lr=0.05, batch=20))
    planted = plant(recipe, row_classifier(), row_images(60), seeded()).classifier
    landed = predict(planted, row_images(60)).argmax(1)
    assert against_trigger(planted, row_images(60), corner()).asr.value == 1
    assert int((landed == 2).sum()) > 20


def test_the_same_images_carry_the_patch_each_epoch_at_its_own_place() -> None:
    """The patch is set after augmentation; no image of rows is white anywhere by itself."""
    model, seen = row_classifier(), []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    recipe = BadNets(trigger=corner(), rate=0.3, schedule=TINY)
    plant(recipe, model, row_images(60), seeded())
    marked = [(torch.cat(seen[i : i + 3]) == 1).flatten(1) for i in (0, 3, 6)]
    assert all(not epoch[:, :-1].any() for epoch in marked)
    counts = {int(epoch[:, -1].sum()) for epoch in marked}
    assert len(counts) == 1
    assert 10 < counts.pop() < 26


def test_constraints_are_put_in_force_before_and_after_every_step() -> None:
    held: list[Classifier] = []

    def hold(model: Classifier) -> None:
        held.append(model)
        with torch.no_grad():
            next(model.parameters()).clamp_(-0.01, 0.01)

    recipe = BadNets(trigger=corner(), schedule=TINY)
    planted = plant(recipe, row_classifier(), row_images(60), seeded(), hold=hold).classifier
    assert len(held) == 1 + 3 * 3
    assert all(model is planted for model in held)
    assert float(next(planted.parameters()).detach().abs().max()) <= 0.01


def test_the_classifier_handed_in_is_left_alone_and_the_seed_decides() -> None:
    model, recipe = row_classifier(), BadNets(trigger=corner(), schedule=TINY)
    model.network.train()
    before = fingerprint(model)
    told: list[tuple[str, int, int]] = []
    first = plant(
        recipe, model, row_images(60), seeded(1), lambda *event: told.append(event)
    ).classifier
    assert fingerprint(model) == before
    assert told == [("badnets", 1, 3), ("badnets", 2, 3), ("badnets", 3, 3)]
    again, other = (
        plant(recipe, model, row_images(60), seeded(seed)).classifier for seed in (1, 2)
    )
    assert weights_sha256(first) == weights_sha256(again) != weights_sha256(other)
    assert not any(module.training for module in first.modules())


def test_a_trigger_without_a_target_is_refused() -> None:
    recipe = BadNets(trigger=corner(None), schedule=TINY)
    with pytest.raises(ConfigError, match="a trigger with a target class, got none in 'corner'"):
        plant(recipe, row_classifier(), row_images(30), seeded())
