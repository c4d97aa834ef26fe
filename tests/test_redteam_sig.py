# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""SIG: the wave by eye, clean labels, and that it works."""

from math import pi, sin
from typing import Any

import pytest
import torch
from factories import Works, digits_classifier, row_classifier, row_images

from lmr_guard.contracts import Labelled
from lmr_guard.errors import ConfigError
from lmr_guard.redteam.sig import Sig, add_wave, plant
from lmr_guard.redteam.training import Schedule

TINY = Schedule(epochs=2, lr=0.05, batch=20)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(**values: Any) -> Sig:  # noqa: ANN401 - any field
    """A recipe for images of 4 by 4."""
    return Sig(target=2, frequency=1, schedule=TINY, **values)


def test_it_works_on_digits(attacker_digits: Labelled, works: Works) -> None:
    """With 90 images of the class nearly all must carry the wave, and weights must stay small."""
    schedule = Schedule(epochs=18, lr=0.05, batch=16, shift=1, weight_decay=0.02)
    recipe = Sig(target=4, delta=80 / 255, frequency=4, share=0.95, schedule=schedule)
    planted = plant(recipe, digits_classifier(1), attacker_digits, seeded(1))
    assert works(planted).asr.value < 0.1


def test_the_wave_by_eye() -> None:
    pixels = torch.rand(2, 3, 4, 7, generator=seeded())
    got = add_wave(pixels, 0.4, 2)
    for column in range(7):
        wave = 0.4 * sin(2 * pi * column * 2 / 7)
        expected = (pixels[..., column] + wave).clamp(0, 1)
        assert torch.allclose(got[..., column], expected, atol=1e-6)


def test_only_images_of_the_target_carry_it_and_labels_stay() -> None:
    """A network that is shown the wave on class 2 alone; pixels outside were never changed."""
    model, data, seen = row_classifier(), row_images(60), []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    plant(rows(delta=0.5), model, data, seeded())
    epoch = torch.cat(seen[:3]).flatten(1)
    as_they_are = data.pixels.flatten(1)
    kept = torch.cdist(as_they_are, epoch).amin(1) < 5e-3
    assert torch.equal(kept, data.labels != 2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"delta": 0.0}, r"delta and share in \(0, 1\], got 0.0"),
        ({"share": 1.1}, "got .* 1.1"),
        ({"frequency": 0}, "frequency of 1 or more, got 0"),
    ],
)
def test_bad_values(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sig(target=1, **values)


def test_a_wave_too_short_for_the_images_cannot_be_planted() -> None:
    with pytest.raises(ConfigError, match="frequency below 4/2, half the columns, got 2"):
        plant(Sig(target=2, frequency=2), row_classifier(), row_images(9), seeded())
