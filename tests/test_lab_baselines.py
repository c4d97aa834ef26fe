# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The other defences of the tables: their laws, and what each is made to find."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from factories import (
    fingerprint,
    row_classifier,
    row_images,
    row_network,
    toy_images,
    toy_patch,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from examples.lab.kit.baselines import finetune, mnp, rnp, units
from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.contracts import Labelled
from lmr_guard.errors import ConfigError, StageError
from lmr_guard.measure import accuracy, against_trigger
from lmr_guard.redteam.training import Schedule

ROW = Schedule(epochs=8, lr=0.05, batch=30)
SHORT = Schedule(epochs=2, lr=0.1, batch=30)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def units_network(scales: list[float], votes: list[list[float]]) -> Classifier:
    """Toy pixels, each a unit with the given batch norm scale, and their votes on three classes."""
    network = nn.Sequential(
        nn.Conv2d(1, 4, 2, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3, bias=False)
    )
    convolution, norm, _, head = network
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        convolution.weight.copy_(torch.eye(4).view(4, 1, 2, 2))
        norm.weight.copy_(torch.tensor(scales))
        head.weight.copy_(torch.tensor(votes).T)
    shape = Preprocessing(channels=1, height=2, width=2, mean=(0.0,), std=(1.0,))
    return Classifier(network, shape, 3).eval()


HONEST = [[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0]]
SCALE = "network.1.weight"


def backdoored() -> Classifier:
    """Pixel 3 votes for class 2, louder than anything."""
    return units_network([1.0, 1.0, 1.0, 1.0], [*HONEST, [0.0, 0.0, 30.0]])


def test_masks_of_one_change_nothing_and_of_zero_are_pruning() -> None:
    model, pixels = row_classifier(), row_images(30).pixels
    before = fingerprint(model)
    masks = units.full_masks(model)
    assert torch.equal(units.logits_through(model, masks, pixels), model(pixels))
    drawn = {
        name: (torch.rand(m.shape, generator=seeded()) > 0.4).float() for name, m in masks.items()
    }
    through = units.logits_through(model, drawn, pixels)
    assert torch.allclose(through, units.prune(model, drawn, 0.5)(pixels), atol=1e-6)
    assert not torch.allclose(through, model(pixels), atol=1e-2)
    assert fingerprint(model) == before


@given(st.floats(0, 1, width=32))
def test_a_unit_goes_where_its_mask_is_not_above_the_threshold(threshold: float) -> None:
    model = backdoored()
    mask = torch.tensor([0.0, 0.25, 0.5, 1.0])
    scale = dict(units.prune(model, {SCALE: mask}, threshold).named_parameters())[SCALE]
    assert scale.tolist() == [0.0 if m <= threshold else 1.0 for m in mask.tolist()]


def test_a_network_without_batch_norm_is_told() -> None:
    model = row_classifier(lambda: row_network(norm=False))
    with pytest.raises(StageError, match="not applicable"):
        units.find_masks(model, row_images(30), rnp.Config(), seeded())
    with pytest.raises(StageError, match="not applicable"):
        units.find_masks(model, row_images(30), mnp.Config(), seeded())


def test_masks_fall_along_the_loss_and_stay_between_0_and_1() -> None:
    model = backdoored()
    slope = torch.tensor([-5.0, 0.0, 0.01, 5.0])

    def loss(masks: units.Masks, pixels: Tensor, labels: Tensor) -> Tensor:
        del pixels, labels
        return (masks[SCALE] * slope).sum()

    schedule = Schedule(epochs=2, lr=0.1, batch=10, momentum=0.0)
    mask = units.learn_masks(model, toy_images(30), loss, schedule, seeded())[SCALE]
    # Six steps of 0.1 times the slope.
    assert mask.tolist() == pytest.approx([1.0, 1.0, 1 - 6 * 0.1 * 0.01, 0.0])


def test_recovery_masks_what_stands_in_the_way() -> None:
    # Unit 0 is right for its class, and wrong in a louder voice: unit 3 sees the same pixel.
    model = units_network([1.0] * 4, [*HONEST, [0.0, 30.0, 0.0]])
    weight = dict(model.named_parameters())["network.0.weight"]
    with torch.no_grad():
        weight[3] = weight[0]
    images = toy_images(60)
    assert accuracy(model, images).value == pytest.approx(2 / 3)

    def loss(masks: units.Masks, pixels: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(units.logits_through(model, masks, pixels), labels)

    schedule = Schedule(epochs=10, lr=0.2, batch=20)
    masks = units.learn_masks(model, images, loss, schedule, seeded())
    assert int(masks[SCALE].argmin()) == 3
    assert masks[SCALE][3] < 0.3
    threshold, _ = units.choose_threshold(model, masks, images, tolerance=0.0)
    assert threshold is not None
    assert accuracy(units.prune(model, masks, threshold), images).value == 1


def test_a_defender_takes_the_largest_threshold_that_keeps_accuracy() -> None:
    masks = {SCALE: torch.tensor([0.8, 0.62, 0.9, 0.3])}
    images = toy_images(30)
    threshold, sweep = units.choose_threshold(backdoored(), masks, images, tolerance=0.02)
    assert threshold == 0.6
    assert [clean.value for step, clean in sweep if step <= 0.6] == [1.0] * 13
    assert units.choose_threshold(backdoored(), masks, images, tolerance=0.34)[0] == 0.85
    lost = {SCALE: torch.zeros(4)}
    assert units.choose_threshold(backdoored(), lost, images, tolerance=0.02)[0] is None


def test_the_oracle_takes_the_threshold_that_ends_the_attack() -> None:
    model, images, patch = backdoored(), toy_images(30), toy_patch(target=2)
    masks = {SCALE: torch.tensor([0.8, 0.62, 0.9, 0.3])}
    assert against_trigger(model, images, patch).asr.value == 1
    threshold = rnp.oracle_threshold(model, masks, images, patch)
    assert threshold == 0.3
    assert against_trigger(units.prune(model, masks, 0.3), images, patch).asr.value == 0
    # Where the attack ends only with the clean accuracy, it stays.
    late = {SCALE: torch.tensor([0.1, 0.1, 0.1, 0.3])}
    assert rnp.oracle_threshold(model, late, images, patch) < 0.1


@pytest.mark.parametrize("stop", [0.7, 0.9])
def test_unlearning_ends_where_it_is_told_to(stop: float) -> None:
    model, images = row_classifier(), row_images(150)
    before = fingerprint(model)
    schedule = Schedule(epochs=20, lr=0.05, batch=30)
    forgot = units.unlearn(model, images, schedule, stop, seeded())
    assert forgot.reached
    assert forgot.accuracy <= stop
    assert 1 <= forgot.epochs < 20
    assert forgot.classifier.training
    assert fingerprint(model) == before
    shorter = units.unlearn(
        model, images, replace(schedule, epochs=forgot.epochs - 1), stop, seeded()
    )
    assert not shorter.reached


def test_unlearning_slows_down_after_half_of_the_epochs() -> None:
    model, images = row_classifier(), row_images(150)

    def moved(epochs: int) -> Tensor:
        schedule = Schedule(epochs=epochs, lr=1e-3, batch=150, momentum=0.0, weight_decay=0.0)
        found = units.unlearn(model, images, schedule, -1.0, seeded())
        weights = [
            dict(m.named_parameters())["network.0.weight"] for m in (found.classifier, model)
        ]
        return (weights[0] - weights[1]).detach()

    # One epoch of two at a tenth of the rate; the gradient hardly changes meanwhile.
    ratio = float(moved(2).norm() / moved(1).norm())
    assert ratio == pytest.approx(1.1, rel=0.05)


def test_magnitudes_are_multiples_of_the_layers_mean() -> None:
    model = units_network([1.0, -3.0, 2.0, 0.0], [*HONEST, [0.0] * 3])
    assert mnp.magnitudes(model)[SCALE].tolist() == pytest.approx([2 / 3, 2.0, 4 / 3, 0.0])


def test_of_units_that_clean_images_do_not_need_the_larger_goes_first() -> None:
    # Pixel 3 is dark in every clean image: the unit matters to none, however large it is.
    images = toy_images(60)

    def unneeded(scale: float) -> Tensor:
        model = units_network([1.0, 1.0, 1.0, scale], [*HONEST, [0.0, 0.0, 30.0]])
        config = mnp.Config(
            exposing=Schedule(epochs=0), masking=Schedule(epochs=4, lr=0.1, batch=20), weight=1
        )
        found, exposed = units.find_masks(model, images, config, seeded())
        assert exposed.epochs == 0
        return found[SCALE]

    small, large = unneeded(0.3), unneeded(1.5)
    assert large[3] < small[3] < 1
    assert int(large.argmin()) == 3


@pytest.mark.parametrize(
    "method",
    [
        rnp.Config(unlearning=SHORT, recovery=SHORT),
        mnp.Config(exposing=SHORT, masking=SHORT),
    ],
    ids=["rnp", "mnp"],
)
def test_masks_are_learnt_without_touching_the_model(method: units.Method) -> None:
    model = row_classifier()
    before = fingerprint(model)
    first, _ = units.find_masks(model, row_images(60), method, seeded())
    second, _ = units.find_masks(model, row_images(60), method, seeded())
    assert fingerprint(model) == before
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(float(mask.min()) >= 0 and float(mask.max()) <= 1 for mask in first.values())


def test_fine_tuning_learns_what_it_is_shown() -> None:
    model, images = row_classifier(), row_images(150, seed=4)
    swapped = Labelled(images.images, (images.labels + 1) % 3, images.classes)
    before = fingerprint(model)
    tuned = finetune.finetune(model, swapped, finetune.Config(schedule=ROW), seeded())
    assert accuracy(tuned, swapped).value > 0.9
    assert fingerprint(model) == before


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: rnp.Config(stop=0), "expected stop in"),
        (lambda: rnp.Config(alpha=0), "alpha > 0"),
        (lambda: mnp.Config(tolerance=1), "tolerance in"),
        (lambda: mnp.Config(weight=-1), "expected weights of at least 0, got -1"),
    ],
)
def test_settings_out_of_range_are_refused(make: Callable[[], object], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        make()
