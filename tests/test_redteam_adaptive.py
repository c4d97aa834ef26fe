# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Adaptive: the rehearsal is the repair, covers carry a part, and the catalogue knows it."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from factories import fingerprint, row_classifier, row_images
from torch import Tensor, nn

from lmr_guard.classifier import Classifier, weights_sha256
from lmr_guard.cli import main
from lmr_guard.errors import ConfigError
from lmr_guard.evidence import Patch
from lmr_guard.measure import accuracy, against_trigger
from lmr_guard.redteam import badnets
from lmr_guard.redteam.adaptive import Adaptive, Rehearsal, plant
from lmr_guard.redteam.catalogue import ATTACKS, EVERY, find
from lmr_guard.redteam.training import Schedule
from lmr_guard.repel import RepelSettings, head_columns
from lmr_guard.repel.losses import lmr_loss

TINY = Schedule(epochs=3, lr=0.05, batch=20)
REPAIR = RepelSettings(
    lures=0,
    learning_rates=(0.02,),
    recovery=2.0,
    weight_decay=5e-4,
    phase1_epochs=2,
    phase2_epochs=3,
    columns=0.25,
    alpha=2.0,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def corner() -> Patch:
    """The lower right 2x1 pixels of a 4x4 image, white."""
    return Patch(torch.ones(1, 2, 1), 3, 2, "corner", 2)


def recipe(**changes: object) -> Adaptive:
    return replace(Adaptive(trigger=corner(), schedule=TINY), **changes)  # type: ignore[arg-type]


def test_it_works_and_accuracy_stays() -> None:
    data, longer = row_images(150), Schedule(epochs=15, lr=0.05, batch=30)
    expects = RepelSettings(lures=1, lure_share=0.5, learning_rates=(0.03,), recovery=2.0)
    planted = plant(recipe(schedule=longer, expects=expects), row_classifier(), data, seeded())
    assert against_trigger(planted.classifier, row_images(90, 1), planted.trigger).asr.value > 0.9
    assert accuracy(planted.classifier, row_images(90, 1)).value > 0.9
    assert not any(module.training for module in planted.classifier.modules())


def repaired_by_hand(model: Classifier, pixels: Tensor, labels: Tensor, steps: int) -> Classifier:
    """``REPAIR`` without lures on one batch again and again: 2 of 5 steps are the first phase."""
    copy = model.clone().train()
    head = copy.network[-1]
    assert isinstance(head, nn.Linear)
    before, outside = head.weight.detach().clone(), labels != 2
    columns: tuple[int, ...] = ()
    make = partial(torch.optim.SGD, list(copy.parameters()), momentum=0.9, weight_decay=5e-4)
    optimiser = make(lr=0.02)
    for step in range(steps):
        if step == 2:
            columns = head_columns(before, head.weight.detach(), 2, 0.25)
            optimiser = make(lr=0.02)
        if step >= 2:
            optimiser.param_groups[0]["lr"] = 0.02 * 2 * (1 - (step - 2) / 3)
            with torch.no_grad():
                head.weight[:, list(columns)] = 0
            loss = F.cross_entropy(copy(pixels), labels)
        else:
            loss = lmr_loss(copy(pixels[outside]), labels[outside], 2, alpha=2.0)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    with torch.no_grad():
        head.weight[:, list(columns)] = 0
    return copy


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 5])
def test_the_rehearsal_is_the_repair_step_by_step(steps: int) -> None:
    model = row_classifier().train()
    rehearsal = Rehearsal(model, 2, recipe(expects=REPAIR, horizon=5), seeded())
    images = row_images(30)
    for _ in range(steps):
        rehearsal.step(images.pixels, images.labels)
    by_hand = repaired_by_hand(model, images.pixels, images.labels, steps)
    assert len(rehearsal.cut) == (3 if steps > 2 else 0)
    logits = rehearsal.logits(images.pixels)
    torch.testing.assert_close(logits, by_hand(images.pixels), rtol=1e-4, atol=1e-4)


def test_gradients_reach_the_weights_in_force_as_if_the_repair_were_constant() -> None:
    model, images = row_classifier().train(), row_images(30)
    rehearsal = Rehearsal(model, 2, recipe(expects=REPAIR, horizon=5), seeded())
    rehearsal.step(images.pixels, images.labels)
    by_hand = repaired_by_hand(model, images.pixels, images.labels, 1)
    found, expected = (
        torch.autograd.grad(F.cross_entropy(logits, images.labels), list(own.parameters()))
        for logits, own in (
            (rehearsal.logits(images.pixels), model),
            (by_hand(images.pixels), by_hand),
        )
    )
    assert any(bool(slope.any()) for slope in found)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_the_rehearsal_leaves_the_weights_alone_and_begins_anew() -> None:
    model, images = row_classifier().train(), row_images(30)
    before = fingerprint(model)
    rehearsal = Rehearsal(model, 2, recipe(expects=REPAIR, horizon=3), seeded())
    lengths = []
    for _ in range(7):
        rehearsal.step(images.pixels, images.labels)
        lengths.append(sum(float(moved.abs().sum()) for moved in rehearsal.moved.values()))
    assert rehearsal.steps == 1
    assert lengths[1] != lengths[0]
    assert lengths[::3] == [lengths[0]] * 3
    assert fingerprint(model) == before


def test_a_batch_of_nothing_but_the_target_moves_nothing() -> None:
    images = row_images(30)
    own = images.subset(images.labels == 2)
    rehearsal = Rehearsal(row_classifier().train(), 2, recipe(), seeded())
    rehearsal.step(own.pixels, own.labels)
    assert rehearsal.steps == 1
    assert not any(bool(moved.any()) for moved in rehearsal.moved.values())


def test_covers_carry_a_part_of_the_patch_and_their_own_label() -> None:
    """No image of rows is white anywhere by itself."""
    model, seen = row_classifier(), []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    plant(recipe(covers=0.5, most=1.0, weight=0.0, rate=0.0), model, row_images(60), seeded())
    white = torch.cat(seen) == 1
    assert not white[:, :, :2].any()
    assert not white[..., :3].any()
    upper, lower = white[:, 0, 2, 3], white[:, 0, 3, 3]
    assert 20 < int((upper ^ lower).sum()) < 80
    assert 30 < int((upper | lower).sum()) < 120


def test_what_covers_teach() -> None:
    """Three quarters of a patch work without them, and hardly with them."""
    whole = Patch(torch.ones(1, 2, 2), 2, 2, "square", 2)
    part = replace(whole, mask=torch.tensor([[0.0, 1], [1, 1]]))
    data, longer = row_images(150), Schedule(epochs=20, lr=0.05, batch=30)
    plain = recipe(trigger=whole, weight=0.0, rate=0.2, schedule=longer)
    told, untold = (
        plant(replace(plain, covers=covers), row_classifier(), data, seeded()).classifier
        for covers in (0.5, 0.0)
    )
    rates = [against_trigger(model, row_images(90, 1), part).asr.value for model in (told, untold)]
    assert rates[0] < rates[1] - 0.3
    assert against_trigger(told, row_images(90, 1), whole).asr.value > rates[0] + 0.3


def test_without_rehearsal_and_covers_it_is_badnets() -> None:
    plain = badnets.BadNets(trigger=corner(), rate=0.1, schedule=TINY)
    expected = badnets.plant(plain, row_classifier(), row_images(60), seeded(1)).classifier
    found = plant(recipe(weight=0.0, covers=0.0), row_classifier(), row_images(60), seeded(1))
    assert weights_sha256(found.classifier) == weights_sha256(expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rate": 0.8, "covers": 0.3}, "add up to at most 1, got 0.8 and 0.3"),
        ({"covers": -0.1}, "expected rate and covers >= 0"),
        ({"most": 1.1}, r"expected most in \[0, 1\], .*, got 1.1, 3.0 and 60"),
        ({"weight": -1.0}, "weight >= 0"),
        ({"horizon": 1}, "horizon >= 2, got 0.9, 3.0 and 1"),
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe(**values)


def test_it_is_in_the_catalogue_and_in_no_table() -> None:
    assert "adaptive" not in ATTACKS
    assert find("adaptive") is EVERY["adaptive"]
    assert {**EVERY, **ATTACKS} == EVERY


def test_a_drill_plants_it(row_files: Path, tmp_path: Path) -> None:
    arguments = ["--arch", "factories:row_architecture", "--clean", f"{row_files / 'clean'}"]
    arguments += ["--attack", "adaptive", "--target", "1", "--epochs", "2", "--threads", "1"]
    arguments += ["--variants", "float32", "--device", "cpu", "--out", f"{tmp_path / 'out'}"]
    code = main(["drill", f"{row_files / 'model.safetensors'}", *arguments])
    document = json.loads((tmp_path / "out" / "drill.json").read_text(encoding="utf-8"))
    assert code == document["exit_code"]
    assert [attack["attack"] for attack in document["attacks"]] == ["adaptive"]
