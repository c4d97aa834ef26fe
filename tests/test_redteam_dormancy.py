# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What the branch that sleeps is taught."""

import pytest
import torch
from factories import fingerprint, row_classifier, row_images
from torch.nn.functional import cross_entropy

from lmr_guard.evidence import Patch
from lmr_guard.redteam.dormancy import dormant_batch, frozen

TRIGGER = Patch(torch.ones(1, 1, 1), 3, 3, "corner", 2)
DATA = row_images(12)
PIXELS, LABELS = DATA.images.float() / 255, DATA.labels


def test_plain_clean_and_triggered_images_have_their_true_classes() -> None:
    images, targets = dormant_batch(PIXELS, LABELS, TRIGGER)
    assert torch.equal(images[:12], PIXELS)
    assert torch.equal(images[12:], TRIGGER(PIXELS))
    assert targets.tolist() == LABELS.tolist() * 2


def test_a_teacher_gives_its_output_on_the_clean_image_to_all_copies() -> None:
    teacher = frozen(row_classifier())
    images, targets = dormant_batch(PIXELS, LABELS, TRIGGER, teacher)
    assert torch.equal(images[:12], PIXELS)
    assert torch.equal(images[12:24], TRIGGER(PIXELS))
    expected = teacher(PIXELS).softmax(dim=1)
    for copies in targets.chunk(3):
        torch.testing.assert_close(copies, expected)
    assert not targets.requires_grad


def test_the_last_copies_are_one_small_step_against_the_teacher() -> None:
    teacher = frozen(row_classifier())
    moved = dormant_batch(PIXELS, LABELS, TRIGGER, teacher)[0][24:]
    assert float((moved - PIXELS).abs().max()) == pytest.approx(0.01)
    assert bool(((moved >= 0) & (moved <= 1)).all())
    before, after = (cross_entropy(teacher(x), LABELS) for x in (PIXELS, moved))
    assert after > before


def test_pixels_at_the_ends_stay_in_range() -> None:
    extremes = (PIXELS > 0.25).float()
    moved = dormant_batch(extremes, LABELS, TRIGGER, frozen(row_classifier()))[0][24:]
    assert bool(((moved >= 0) & (moved <= 1)).all())
    assert not torch.equal(moved, extremes)


def test_a_teacher_is_a_copy_without_gradients() -> None:
    model = row_classifier()
    before = fingerprint(model)
    teacher = frozen(model)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not teacher.training
    dormant_batch(PIXELS, LABELS, TRIGGER, teacher)
    assert fingerprint(model) == before
    assert all(p.grad is None for p in teacher.parameters())
