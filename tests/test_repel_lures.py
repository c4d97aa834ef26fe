# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Lures: how large they may be, what they do to an image, and that they find what pulls."""

import pytest
import torch
from factories import row_classifier, row_images
from hypothesis import given
from hypothesis import strategies as st

from lmr_guard.repel.losses import suspect_margin
from lmr_guard.repel.lures import Lures
from lmr_guard.training import within_area


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lures(count: int = 4, area: float = 0.1, rate: float = 0.05, seed: int = 0) -> Lures:
    """For images of one channel, 4 by 4."""
    return Lures(
        count, (1, 4, 4), area=area, rate=rate, generator=seeded(seed), device=torch.device("cpu")
    )


@given(st.integers(0, 1000), st.floats(0.01, 1.0), st.floats(0.1, 5.0))
def test_masks_fit_and_nothing_nearer_does(seed: int, area: float, scale: float) -> None:
    before = scale * torch.randn(3, 1, 3, 5, generator=seeded(seed))
    after = within_area(before, area)
    assert after.shape == before.shape
    assert after.min() >= 0
    assert after.max() <= 1
    assert bool((after.flatten(1).mean(dim=1) <= area + 1e-5).all())
    # Of all masks that fit, the projection is the nearest: no step towards a random one that
    # fits comes nearer.
    other = area * torch.rand(before.shape, generator=seeded(seed + 1))
    step = after + 0.1 * (other - after)
    near, far = ((m - before).flatten(1).norm(dim=1) for m in (after, step))
    assert bool((near <= far + 1e-4).all())


@given(st.integers(0, 1000), st.floats(0.2, 1.0))
def test_masks_that_fit_stay(seed: int, area: float) -> None:
    mask = area * torch.rand(2, 1, 4, 4, generator=seeded(seed))
    assert torch.equal(within_area(mask, area), mask)


def test_an_image_is_mixed_with_one_pattern() -> None:
    found, pixels = lures(count=1), torch.rand(5, 1, 4, 4, generator=seeded(1))
    expected = (1 - found.mask[0]) * pixels + found.mask[0] * found.pattern[0]
    assert torch.allclose(found(pixels), expected, atol=1e-6)


def test_every_pattern_is_met() -> None:
    found, pixels = lures(count=3), torch.full((200, 1, 4, 4), 0.5)
    kinds = found(pixels).flatten(1).unique(dim=0)
    assert len(kinds) == 3


def test_climbing_draws_images_to_the_class_within_the_area() -> None:
    """A classifier of bright rows: brightening the suspect's row is what pulls."""
    model, data = row_classifier(), row_images(60)
    pixels = data.pixels[data.labels != 1]
    found = lures(area=0.2)

    def pull() -> torch.Tensor:
        return suspect_margin(model(found(pixels)), 1).mean()

    start = float(pull().detach())
    for _ in range(60):
        found.climb(pull())
    assert float(pull().detach()) > start + 1
    assert bool((found.mask.flatten(1).mean(dim=1) <= 0.2 + 1e-5).all())
    assert found.pattern.min() >= 0
    assert found.pattern.max() <= 1


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
