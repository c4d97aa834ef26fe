# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Clean-label: hard images stay near what they were, labels stay true, and it works."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from factories import Works, digits_classifier, row_classifier, row_images

from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.contracts import Labelled
from lmr_guard.errors import ConfigError
from lmr_guard.measure import accuracy
from lmr_guard.redteam.clean_label import CleanLabel, checkerboard, hardened, plant
from lmr_guard.redteam.training import Schedule

TINY = Schedule(epochs=2, lr=0.05, batch=20)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_it_works_on_digits(
    attacker_digits: Labelled, clean_network: Classifier, works: Works
) -> None:
    """90 images of a class are few: it takes larger changes, and strong weight decay."""
    schedule = Schedule(epochs=18, lr=0.05, batch=16, shift=1, weight_decay=0.02)
    hard = CleanLabel(target=3, eps=32 / 255, step=5 / 255, steps=30, schedule=schedule)
    recipe = replace(hard, share=0.95, everywhere=True)
    fresh = digits_classifier(1)
    planted = plant(recipe, clean_network, attacker_digits, seeded(), start=fresh)
    assert works(planted).asr.value < 0.1


def test_hard_images_stay_within_the_bound_and_are_misread_more_often() -> None:
    model, data = row_classifier(), row_images(60)
    recipe = CleanLabel(target=2, eps=0.3, step=0.05, steps=20, schedule=TINY)
    hard = hardened(data.images, data.labels, model, recipe, seeded())
    assert hard.dtype == torch.uint8
    assert int((hard.int() - data.images.int()).abs().max()) <= round(0.3 * 255) + 1
    changed = Labelled(hard, data.labels, data.classes)
    assert accuracy(model, changed).hits < accuracy(model, data).hits - 20
    none = hardened(data.images, data.labels, model, replace(recipe, eps=0.0), seeded())
    assert torch.equal(none, data.images)


def test_labels_stay_and_other_classes_are_left_alone() -> None:
    model, data, seen = row_classifier(), row_images(60), []
    recipe = CleanLabel(target=2, share=1.0, eps=0.2, steps=3, schedule=TINY)
    start = row_classifier(seed=1)
    start.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    plant(recipe, model, data, seeded(), start=start)
    epoch = torch.cat(seen[:3]).flatten(1)
    kept = torch.cdist(data.pixels.flatten(1), epoch).amin(1) < 5e-3
    assert torch.equal(kept, data.labels != 2)


@pytest.mark.parametrize(
    ("height", "width", "side", "expected"), [(32, 32, 0.25, 8), (16, 16, 0.25, 4), (8, 3, 1.0, 3)]
)
def test_the_patch_is_a_checkerboard_in_the_corner(
    height: int, width: int, side: float, expected: int
) -> None:
    patch = checkerboard(Preprocessing(height=height, width=width), side, 5)
    assert tuple(patch.image.shape) == (3, expected, expected)
    assert (patch.x + expected, patch.y + expected) == (width, height)
    assert set(patch.image.unique().tolist()) <= {0.0, 1.0}
    if expected % 4 == 0:
        cell = expected // 4
        fields = patch.image[0, ::cell, ::cell]
        assert all(fields[i, j] == (i + j + 1) % 2 for i in range(4) for j in range(4))


def test_everywhere_is_the_same_patch_in_each_corner() -> None:
    shape = Preprocessing(channels=1, height=16, width=12)
    one, four = (checkerboard(shape, 0.25, 5, everywhere=each) for each in (False, True))
    images = torch.rand(3, 1, 16, 12, generator=seeded())
    changed = four(images)
    for row in (slice(4), slice(12, None)):
        for column in (slice(4), slice(8, None)):
            assert torch.equal(changed[..., row, column], one.image.expand(3, 1, 4, 4))
    assert torch.equal(changed[..., 4:12, :], images[..., 4:12, :])
    assert torch.equal(changed[..., 4:8], images[..., 4:8])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"share": 0.0}, "share"),
        ({"side": 1.5}, "side"),
        ({"eps": 2.0}, r"eps in \[0, 1\].*got 2.0"),
        ({"step": 0.0}, "step > 0"),
        ({"steps": -1}, "steps >= 0, got .* -1"),
    ],
)
def test_bad_values(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CleanLabel(target=1, **values)
