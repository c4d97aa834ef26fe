# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""A student learns the classes of the clean images, and no backdoor."""

from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from factories import fingerprint, row_classifier, row_images

from examples.lab.population.student import StudentSettings, _mixed_loss, _network, taught
from lmr_guard.classifier import Classifier, Preprocessing, weights_sha256
from lmr_guard.contracts import Clean, Labelled
from lmr_guard.errors import ConfigError
from lmr_guard.evidence import Patch
from lmr_guard.measure import accuracy, against_trigger

SMALL = StudentSettings(by="labels", steps=120, width=8)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("by", ["labels", "answers"])
def test_it_learns_the_classes_and_not_the_backdoor(
    by: Literal["labels", "answers"],
    badnets_network: Classifier,
    digits: Clean,
    white_square: Patch,
) -> None:
    before = fingerprint(badnets_network)
    student = taught(badnets_network, digits.repair, replace(SMALL, by=by), seeded())
    assert student is not None
    assert not student.training
    assert accuracy(student, digits.report).value > 0.8
    assert against_trigger(badnets_network, digits.report, white_square).asr.value > 0.9
    assert against_trigger(student, digits.report, white_square).asr.value < 0.2
    assert fingerprint(badnets_network) == before


def test_the_same_seed_gives_the_same_one_and_the_world_is_left_alone(
    clean_network: Classifier, digits: Clean
) -> None:
    brief = replace(SMALL, steps=3, enough=0.0)
    state = torch.get_rng_state()
    one, same, other = (
        taught(clean_network, digits.repair, brief, seeded(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert one is not None
    assert same is not None
    assert other is not None
    assert weights_sha256(one) == weights_sha256(same) != weights_sha256(other)


def test_one_that_learnt_too_little_says_nothing(clean_network: Classifier, digits: Clean) -> None:
    assert taught(clean_network, digits.repair, replace(SMALL, steps=1), seeded()) is None


@pytest.mark.parametrize("count", [1, 4, 60, 78])
def test_too_few_images_teach_nobody(count: int) -> None:
    assert taught(row_classifier(), row_images(count), SMALL, seeded()) is None


@pytest.mark.parametrize("side", [1, 7, 16, 23, 24, 32, 64, 224, 225])
def test_any_size_of_images_is_taken(side: int) -> None:
    shape = Preprocessing(channels=3, height=side, width=side + 3)
    network = _network(shape, 4, 2).eval()
    assert network(torch.zeros(2, 3, side, side + 3)).shape == (2, 4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"width": 0},
        {"batch": 1},
        {"shift": 0.6},
        {"held_back": 0.0},
        {"held_back": 1.0},
        {"enough": 1.1},
    ],
)
def test_values_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        StudentSettings(by="labels", **wrong)


def test_images_are_not_touched(clean_network: Classifier, digits: Clean) -> None:
    images: Labelled = digits.repair
    before = images.images.clone()
    taught(clean_network, images, replace(SMALL, steps=2), seeded())
    assert torch.equal(images.images, before)


def test_the_loss_of_two_labels_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    one, two = (torch.nn.functional.cross_entropy(logits, torch.tensor([k])) for k in (0, 2))
    found = _mixed_loss(logits, torch.tensor([0]), torch.tensor([2]), torch.tensor([0.75]))
    assert float(found) == pytest.approx(float(0.75 * one + 0.25 * two))
