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


def lures(count: int = 4, area: float = 0.1, rate: float = 0.05, seed: int = 0) -> Lures:
    """For images of one channel, 4 by 4."""
    return Lures(
        count, (1, 4, 4), area=area, rate=rate, generator=seeded(seed), device=torch.device("cpu")
    )


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
