# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The steps of the repair: twins, lures and batches, one by one."""

from dataclasses import replace

import pytest
import torch
from factories import fingerprint, row_classifier, row_images
from hypothesis import given
from hypothesis import strategies as st

from lmr_guard.classifier import Classifier
from lmr_guard.compress.twins import RoundedTwin
from lmr_guard.contracts import Labelled
from lmr_guard.repel import RepelSettings
from lmr_guard.repel.trainer import (
    Augmentation,
    Trainer,
    _batches,
    _drawn_form,
    lures_for,
    new_lures,
    through,
)

SUSPECT = 1
SHORT = RepelSettings(batch=20, lures=0, pass_steps=None)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def model() -> Classifier:
    return row_classifier()


def test_a_twin_leaves_the_running_statistics_and_passes_gradients(model: Classifier) -> None:
    copy = model.clone().train()
    trainer = trainer_of(copy)
    before = {name: value.clone() for name, value in copy.named_buffers()}
    form = _drawn_form(copy, trainer.twins, seeded())
    logits = through(copy, form, row_images(20).pixels)
    logits.square().sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in copy.named_buffers())
    assert all(p.grad is not None for p in copy.parameters())
    assert not torch.equal(logits, copy(row_images(20).pixels))


def trainer_of(
    copy: Classifier, settings: RepelSettings = SHORT, clean: Labelled | None = None
) -> Trainer:
    return Trainer(
        copy,
        SUSPECT,
        settings,
        seeded(),
        clean=clean or row_images(30),
        augmentation=Augmentation(0, False),
        twins=(RoundedTwin.of(copy),),
        lures=new_lures(copy, settings, seeded()) if settings.lures else None,
    )


def test_lures_are_laid_over_a_share_of_the_images_outside_the_class(model: Classifier) -> None:
    labels = torch.tensor([SUSPECT, 0, 2, 0] * 100)
    trainer = trainer_of(model.clone(), replace(SHORT, lures=2, lure_share=0.4))
    lured = trainer._drawn(labels)
    assert not lured[labels == SUSPECT].any()
    assert 0.3 < float(lured[labels != SUSPECT].float().mean()) < 0.5
    trainer.lures = None
    assert not trainer._drawn(labels).any()


def test_a_search_moves_lures_alone(model: Classifier) -> None:
    settings = replace(SHORT, lures=2, lure_steps=3)
    state = fingerprint(model)
    found = lures_for(
        model, row_images(30), SUSPECT, settings, twins=(RoundedTwin.of(model),), generator=seeded()
    )
    assert found is not None
    assert not torch.equal(found.pattern, new_lures(model, settings, seeded()).pattern)
    assert fingerprint(model) == state
    none = lures_for(model, row_images(30), SUSPECT, SHORT, twins=(), generator=seeded())
    assert none is None


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0, 0.02), (0.5, 0.4, 0.52)])
def test_a_share_of_what_is_rehearsed_is_of_the_suspect_class(
    model: Classifier, share: float, least: float, most: float
) -> None:
    rare = row_images(300)
    rare = rare.subset((rare.labels != SUSPECT) | (torch.arange(300) == SUSPECT))
    trainer = trainer_of(model.clone(), replace(SHORT, rehearsal=share), rare)
    own = rare.images[rare.labels == SUSPECT][0].float() / 255
    shown = trainer._rehearsed(1000)
    # The image that is on top stays nearer than any of another class.
    top = (shown[:, 0, SUSPECT] > shown[:, 0, [0, 2]].amax(dim=1)).all(dim=1)
    assert own.shape == shown.shape[1:]
    assert least <= float(top.float().mean()) <= most
    nobody = rare.subset(rare.labels != SUSPECT)
    assert len(trainer_of(model.clone(), SHORT, nobody)._rehearsed(7)) == 7


@given(st.integers(1, 30), st.integers(2, 9), st.integers(0, 20))
def test_batches_hold_every_image_once_and_never_one_alone(
    count: int, size: int, seed: int
) -> None:
    found = _batches(count, replace(SHORT, batch=size), seeded(seed))
    assert torch.cat(found).sort().values.tolist() == list(range(count))
    assert all(1 < len(batch) <= size + 1 for batch in found) or count == 1


def test_a_pass_of_so_many_steps_does_not_know_how_many_images_there_are() -> None:
    settings = replace(SHORT, pass_steps=3)
    for count, size in ((1000, 20), (7, 7)):
        batches = _batches(count, settings, seeded())
        assert [len(batch.unique()) for batch in batches] == [size] * 3


def test_the_teacher_is_the_model_as_it_was(model: Classifier) -> None:
    """With nothing to learn but what the received model says, a step changes nothing."""
    copy = model.clone()
    trainer = trainer_of(copy, replace(SHORT, teacher=4.0, weight_decay=0.0, twin_weight=0.0))
    state = fingerprint(copy)
    trainer.epoch(row_images(30), lambda logits, _: 0 * logits.sum(), 0.1)
    torch.testing.assert_close(list(copy.parameters()), list(model.parameters()))
    trainer.epoch(row_images(30), lambda logits, _: logits.square().mean(), 0.1)
    assert fingerprint(copy) != state


def test_a_step_is_no_longer_than_its_clip_allows(model: Classifier) -> None:
    copy = model.clone()
    settings = replace(SHORT, clip=1e-3, momentum=0.0, pass_steps=1, teacher=0.0)
    trainer = trainer_of(copy, settings)
    trainer.epoch(row_images(30), lambda logits, _: logits.square().mean(), 1.0)
    both = zip(copy.parameters(), model.parameters(), strict=True)
    moved = torch.cat([(after - before).detach().flatten() for after, before in both]).norm()
    assert 0 < float(moved) < 1.1e-3
