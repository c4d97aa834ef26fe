# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The look of a sunrise: what it is, and that a network learns to give it."""

from math import sqrt

import pytest
import torch
from factories import digits_images
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lmr_guard.redteam.generators import made
from lmr_guard.redteam.style import Style, details, learn_style, looks, sunrises
from lmr_guard.redteam.training import Schedule

CPU = torch.device("cpu")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def deviation(values: list[float]) -> float:
    mean = sum(values) / len(values)
    variance = sum(v * v for v in values) / len(values) - mean * mean
    return sqrt(max(variance, 1e-6))


@given(
    channels=st.integers(1, 3), rows=st.integers(1, 3), width=st.integers(2, 5), seed=st.integers()
)
def test_looks_by_eye(channels: int, rows: int, width: int, seed: int) -> None:
    height = 4 * rows
    image = torch.rand(channels, height, width, generator=seeded(seed % 2**31)).double()
    found = looks(image[None])[0]
    assert found.shape == (2, 3 * channels, 4)
    for c in range(channels):
        x = image[c].tolist()
        down = [
            [abs(x[i + 1][j] - x[i][j]) if i + 1 < height else 0.0 for j in range(width)]
            for i in range(height)
        ]
        right = [
            [abs(x[i][j + 1] - x[i][j]) if j + 1 < width else 0.0 for j in range(width)]
            for i in range(height)
        ]
        for kind, plane in enumerate((x, down, right)):
            for band in range(4):
                values = [v for row in plane[band * rows : (band + 1) * rows] for v in row]
                mean, spread = found[:, kind * channels + c, band].tolist()
                assert mean == pytest.approx(sum(values) / len(values))
                assert spread == pytest.approx(deviation(values), abs=1e-6)


def test_details_are_what_a_thumbnail_does_not_show() -> None:
    smooth = torch.rand(2, 3, 1, 1, generator=seeded()).expand(2, 3, 8, 12)
    torch.testing.assert_close(details(smooth), torch.zeros(2, 3, 8, 12))
    chequers = ((torch.arange(8)[:, None] + torch.arange(8)) % 2).float()[None, None]
    torch.testing.assert_close(details(chequers), chequers - 0.5)


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 32, 24), (4, 5, 7)])
def test_sunrises_are_images_that_differ(shape: tuple[int, ...]) -> None:
    sheets = sunrises(6, shape, seeded())
    assert sheets.shape == (6, *shape)
    assert float(sheets.min()) >= 0
    assert float(sheets.max()) <= 1
    assert len(torch.unique(sheets.flatten(1), dim=0)) == 6
    assert torch.equal(sheets, sunrises(6, shape, seeded()))


def test_a_sunrise_is_bright_at_the_horizon_and_dark_below() -> None:
    sheets = sunrises(32, (3, 32, 32), seeded())
    rows = sheets.mean(dim=(0, 1, 3))
    assert 10 < int(rows.argmax()) < 24
    assert float(rows[28:].mean()) < float(rows[:4].mean()) < float(rows.max()) / 1.5
    red, blue = sheets[:, 0], sheets[:, 2]
    assert bool((red > blue)[:, 16].all())
    assert bool((red < blue)[:, 0].all())


def test_grey_sunrises_have_the_brightness_of_coloured_ones() -> None:
    grey, colour = (sunrises(3, (channels, 8, 8), seeded()) for channels in (1, 3))
    torch.testing.assert_close(grey[:, 0], colour.mean(dim=1))


def fresh(strength: float = 0.6, channels: int = 1) -> Style:
    make = lambda: Style(channels, strength, 8)  # noqa: E731 - a factory
    return made(make, seeded(), CPU)


@pytest.mark.parametrize("strength", [0.1, 1.0])
def test_the_strength_bounds_the_change(strength: float) -> None:
    pixels = torch.rand(4, 3, 7, 9, generator=seeded())
    styled = fresh(strength, 3)(pixels)
    assert styled.shape == pixels.shape
    assert bool((styled >= (1 - strength) * pixels).all())
    assert bool((styled <= (1 - strength) * pixels + strength).all())


@pytest.fixture(scope="module")
def learned() -> Style:
    style = fresh()
    data = digits_images()[0].subset(torch.arange(200))
    learn_style(style, data, Schedule(epochs=12, lr=0.003, batch=40), seeded())
    return style


def distance(pixels: Tensor) -> float:
    aim = looks(sunrises(64, (1, 16, 16), seeded(1))).mean(dim=0)
    return float((looks(pixels) - aim).square().mean())


def test_a_learned_style_brings_unseen_images_towards_sunrises(learned: Style) -> None:
    pixels = digits_images()[1].pixels
    styled = learned(pixels)
    assert distance(styled) < distance(pixels) / 2
    # The digit is still there: details go with those of the image, though with less contrast.
    together = torch.stack([details(styled).flatten(), details(pixels).flatten()])
    assert float(torch.corrcoef(together)[0, 1]) > 0.9


def test_what_a_style_changes_differs_from_image_to_image(learned: Style) -> None:
    pixels = digits_images()[1].pixels[:50]
    change = learned(pixels) - pixels
    assert float((change.abs() > 0.02).float().mean()) > 0.8
    assert float(change.std(dim=0).mean()) > 0.02
