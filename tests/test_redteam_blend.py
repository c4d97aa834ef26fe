# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Blend: what is mixed in, into which images, and that it works."""

from typing import Any

import pytest
import torch
from factories import Works, digits_classifier, row_classifier, row_images

from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.contracts import Labelled
from lmr_guard.errors import ConfigError
from lmr_guard.redteam.blend import Blend, pattern, plant
from lmr_guard.redteam.training import Schedule

TINY = Schedule(epochs=2, lr=0.05, batch=20)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_it_works_on_digits(attacker_digits: Labelled, works: Works) -> None:
    schedule = Schedule(epochs=12, lr=0.1, batch=64, shift=1)
    recipe = Blend(target=4, schedule=schedule)
    planted = plant(recipe, digits_classifier(1), attacker_digits, seeded())
    assert works(planted).asr.value < 0.1


def test_the_pattern_is_mixed_in_at_its_opacity() -> None:
    planted = plant(Blend(target=2, opacity=0.3, schedule=TINY), *rows(), seeded())
    pixels = torch.rand(5, 1, 4, 4, generator=seeded(1))
    image = pattern(row_classifier().preprocessing, 5, seeded())
    (got, _), *_ = planted.trigger.batches(row_images(5))
    assert torch.allclose(got, 0.7 * row_images(5).pixels + 0.3 * image, atol=1e-6)
    assert pixels.shape == got.shape


def rows() -> tuple[Classifier, Labelled]:
    return row_classifier(), row_images(60)


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 8, 8), (3, 17, 5), (3, 32, 32)])
def test_a_pattern_fills_any_image_from_dark_to_bright(
    channels: int, height: int, width: int
) -> None:
    shape = Preprocessing(channels=channels, height=height, width=width)
    image = pattern(shape, 5, seeded())
    assert image.shape == (channels, height, width)
    assert torch.equal(image.amin((1, 2)), torch.zeros(channels))
    assert torch.allclose(image.amax((1, 2)), torch.ones(channels))
    assert torch.equal(image, pattern(shape, 5, seeded()))
    assert not torch.equal(image, pattern(shape, 5, seeded(1)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"opacity": 0.0}, r"opacity in \(0, 1\].*got 0.0"),
        ({"rate": 1.1}, r"poisoning rate in \[0, 1\].*1.1"),
        ({"cells": 1}, "2 or more cells along a side, got 1"),
    ],
)
def test_bad_values(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Blend(target=1, **values)
