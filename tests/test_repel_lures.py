# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Lures: what they do to an image, how large they stay, and that they find what pulls."""

import pytest
import torch
from factories import row_classifier, row_images

from lmr_guard.repel.losses import suspect_margin
from lmr_guard.repel.lures import Lures


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lures(
    patches: int = 4,
    veils: int = 0,
    warps: int = 0,
    *,
    area: float = 0.1,
    seed: int = 0,
    side: int = 4,
) -> Lures:
    """For images of one channel, 4 by 4."""
    return Lures(
        (patches, veils, warps),
        (1, side, side),
        area=area,
        opacity=0.2,
        rate=0.05,
        generator=seeded(seed),
        device=torch.device("cpu"),
    )


def test_an_image_is_mixed_with_one_pattern() -> None:
    found, pixels = lures(1), torch.rand(5, 1, 4, 4, generator=seeded(1))
    expected = (1 - found.mask[0]) * pixels + found.mask[0] * found.pattern[0]
    assert torch.allclose(found(pixels), expected, atol=1e-6)


def test_a_veil_lies_over_all_of_the_image() -> None:
    found, pixels = lures(0, 1), torch.rand(5, 1, 4, 4, generator=seeded(1))
    assert torch.allclose(found(pixels), 0.8 * pixels + 0.2 * found.veil[0], atol=1e-6)


def test_a_warp_moves_pixels_by_its_field() -> None:
    """The whole field says one reach to the right: what was a column on comes one and a half on."""
    found, pixels = lures(0, 0, 1, side=8), torch.rand(2, 1, 8, 8, generator=seeded(1))
    with torch.no_grad():
        found.field.zero_()
    assert torch.allclose(found(pixels), pixels, atol=1e-5)
    with torch.no_grad():
        found.field[:, 0] = 1
    moved = found(pixels)
    step = 1.5 * 7 / 8  # of the 7 pixels between the corners: the reach is 1.5 of 8
    left = int(step)
    part = step - left
    expected = (1 - part) * pixels[..., left : 6 + left] + part * pixels[..., left + 1 : 7 + left]
    assert torch.allclose(moved[..., :6], expected[..., :6], atol=1e-4)


def test_each_lure_is_laid_over_all_images_in_turn() -> None:
    found, pixels = lures(2, 1, 1), torch.rand(3, 1, 4, 4, generator=seeded(1))
    first, second, third, fourth = found.each(pixels)
    for number, changed in ((0, first), (1, second)):
        assert torch.allclose(
            changed, torch.lerp(pixels, found.pattern[number], found.mask[number])
        )
    assert torch.allclose(third, torch.lerp(pixels, found.veil[0], 0.2))
    assert third.shape == fourth.shape == pixels.shape
    assert len(found) == 4


def test_every_pattern_is_met() -> None:
    found, pixels = lures(2, 1, 1), torch.full((200, 1, 4, 4), 0.5)
    kinds = found(pixels).flatten(1).unique(dim=0)
    assert len(kinds) >= 3  # what a warp makes of an even image is that image


@pytest.mark.parametrize(("kinds", "most"), [((4, 0, 0), 1.0), ((0, 4, 0), 0.5), ((2, 2, 2), 0.5)])
def test_climbing_draws_images_to_the_class_within_the_bounds(
    kinds: tuple[int, int, int], most: float
) -> None:
    """A classifier of bright rows: brightening the suspect's row is what pulls."""
    model, data = row_classifier(), row_images(60)
    pixels = data.pixels[data.labels != 1]
    found = lures(*kinds, area=0.2)

    def pull() -> torch.Tensor:
        return suspect_margin(model(found(pixels)), 1).mean()

    start = float(pull().detach())
    for _ in range(60):
        found.climb(pull())
    assert float(pull().detach()) > start + most
    assert bool((found.mask.flatten(1).mean(dim=1) <= found.areas + 1e-5).all())
    assert found.areas.tolist()[:2] == pytest.approx([0.2, 0.6][: len(found.mask)])
    for pattern in (found.pattern, found.veil):
        assert bool(((pattern >= 0) & (pattern <= 1)).all())
    assert bool((found.field.abs() <= 1).all())


def test_climbing_leaves_the_model_alone() -> None:
    model, found = row_classifier(), lures()
    model.zero_grad()
    logits = model(found(row_images(6).pixels))
    found.climb(suspect_margin(logits, 1).mean())
    assert all(p.grad is None for p in model.parameters())
    # The graph is still there for the step of the model.
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("seed", [0, 1])
def test_the_generator_decides(seed: int) -> None:
    first, again, other = (lures(seed=s) for s in (seed, seed, seed + 1))
    assert torch.equal(first.mask, again.mask)
    assert torch.equal(first.pattern, again.pattern)
    assert not torch.equal(first.pattern, other.pattern)
