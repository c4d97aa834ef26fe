# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""BadNets: the backdoor is really there, and nothing else is."""

import torch
from factories import Works, row_classifier, row_images

from lmr_guard.classifier import Classifier, weights_sha256
from lmr_guard.evidence import Patch
from lmr_guard.measure import against_trigger, predict
from lmr_guard.redteam.badnets import BadNets, plant
from lmr_guard.redteam.training import Planted, Schedule, fit_clean

TINY = Schedule(epochs=3, lr=0.05, batch=20, shift=1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def corner() -> Patch:
    """The lower right pixel of a 4x4 image, white."""
    return Patch(torch.ones(1, 1, 1), 3, 3, "corner", 2)


def test_the_attack_works_and_accuracy_stays(
    badnets_network: Classifier, white_square: Patch, works: Works
) -> None:
    assert white_square.target == 3
    # The patch alone, without the backdoor, does not send images there.
    assert works(Planted(badnets_network, white_square)).asr.value < 0.2


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
