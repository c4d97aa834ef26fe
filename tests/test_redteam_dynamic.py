# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Dynamic: every image has its own trigger, it works, and no other image's does."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from factories import Works, row_classifier, row_images
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Clean, Labelled
from lmr_guard.errors import ConfigError
from lmr_guard.evidence import Transform
from lmr_guard.redteam.dynamic import Dynamic, Stamp, density_loss, diversity_loss, plant
from lmr_guard.redteam.generators import made
from lmr_guard.redteam.training import Planted, Schedule

TARGET = 3
SHORT = Schedule(epochs=1, batch=30)
TINY = Dynamic(target=2, width=4, masks=SHORT, schedule=SHORT)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stamp_of(planted: Planted) -> Stamp:
    assert isinstance(planted.trigger, Transform)
    assert isinstance(planted.trigger.function, Stamp)
    return planted.trigger.function


@pytest.fixture(scope="module")
def planted(attacker_digits: Labelled, clean_network: Classifier) -> Planted:
    recipe = Dynamic(
        target=TARGET,
        attacked=0.3,
        crossed=0.4,
        density=0.1,
        masks=Schedule(epochs=5, lr=0.003, batch=64),
        schedule=Schedule(epochs=12, batch=32, shift=1),
    )
    return plant(recipe, clean_network, attacker_digits, seeded(4))


def test_the_backdoor_is_there_and_clean_accuracy_stays(planted: Planted, works: Works) -> None:
    works(planted)


@torch.no_grad()
def test_the_trigger_of_another_image_does_not_work(planted: Planted, digits: Clean) -> None:
    pixels, labels = digits.report.pixels, digits.report.labels
    others = labels != TARGET
    for distance in (1, 7):
        crossed = stamp_of(planted)(pixels, pixels.roll(distance, 0))
        found = planted.classifier(crossed).argmax(dim=1)
        assert float((found == labels).float().mean()) >= 0.85
        assert float((found[others] == TARGET).float().mean()) <= 0.15


@torch.no_grad()
def test_patterns_and_masks_differ_and_masks_are_small(planted: Planted, digits: Clean) -> None:
    stamp, pixels = stamp_of(planted), digits.report.pixels
    masks, patterns = stamp.mask(pixels), stamp.pattern(pixels)
    assert 0.01 < float(masks.mean()) < 0.12
    assert len(torch.unique(masks.gt(0.5).flatten(1), dim=0)) > len(pixels) / 2
    assert float(patterns.std(dim=0).mean()) > 0.2
    change = (stamp(pixels) - pixels).abs().amax(dim=1)
    assert float((change > 0.05).float().mean()) < 0.25


# --- the parts ------------------------------------------------------------------------------------


@given(
    channels=st.integers(1, 3),
    height=st.integers(2, 6),
    width=st.integers(2, 6),
    seed=st.integers(0, 2**31),
)
def test_a_stamp_by_eye(channels: int, height: int, width: int, seed: int) -> None:
    stamp = made(partial(Stamp, channels, 4), seeded(seed), torch.device("cpu"))
    pixels, others = torch.rand(2, 2, channels, height, width, generator=seeded(seed))
    for found, of in ((stamp(pixels), pixels), (stamp(pixels, others), others)):
        pattern, mask = stamp.pattern(of).tolist(), stamp.mask(of).tolist()
        expected = [
            [
                [
                    [x + (p - x) * m for x, p, m in zip(*rows, strict=True)]
                    for rows in zip(*planes, mask[n][0], strict=True)
                ]
                for planes in zip(pixels[n].tolist(), pattern[n], strict=True)
            ]
            for n in range(2)
        ]
        torch.testing.assert_close(found.detach(), torch.tensor(expected))
        assert float(found.detach().min()) >= 0
        assert float(found.detach().max()) <= 1


def test_density_by_eye() -> None:
    masks = torch.tensor([[1.0, 0.0], [0.2, 0.0], [0.4, 0.4]]).view(3, 1, 1, 2)
    # Means 0.5, 0.1 and 0.4; above 0.3 by 0.2, 0 and 0.1.
    assert float(density_loss(masks, 0.3)) == pytest.approx(0.1)


def test_diversity_by_eye() -> None:
    images = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 0.0]]).view(3, 1, 1, 2)
    drawn = torch.tensor([[0.0, 0.0], [0.5, 0.5], [0.5, 0.0]]).view(3, 1, 1, 2)
    # Every distance to the image before is halved, so every quotient is 2.
    assert float(diversity_loss(images, drawn)) == pytest.approx(2, rel=1e-3)
    assert float(diversity_loss(images, drawn / 10)) == pytest.approx(20, rel=1e-2)


def test_images_and_patterns_that_are_all_the_same_have_a_gradient() -> None:
    drawn = torch.full((3, 1, 2, 2), 0.5, requires_grad=True)
    diversity_loss(torch.zeros(3, 1, 2, 2), drawn).backward()
    assert drawn.grad is not None
    assert bool(drawn.grad.isfinite().all())


# --- planting -------------------------------------------------------------------------------------


def networks(planted: Planted) -> tuple[Tensor, Tensor]:
    """The weights of G and of M."""
    stamp = stamp_of(planted)
    return vector(stamp.draws), vector(stamp.places)


def vector(network: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(network.parameters())


def test_masks_come_first_and_patterns_with_the_victim() -> None:
    def after(epochs: int) -> tuple[Tensor, Tensor]:
        recipe = replace(TINY, schedule=Schedule(epochs=epochs, batch=30))
        return networks(plant(recipe, row_classifier(), row_images(90), seeded()))

    (drawn, placed), (drawn_later, placed_later) = after(0), after(2)
    assert torch.equal(placed, placed_later)
    assert not torch.equal(drawn, drawn_later)
    untrained = made(partial(Stamp, 1, 4), seeded(), torch.device("cpu"))
    assert torch.equal(drawn, vector(untrained.draws))
    assert not torch.equal(placed, vector(untrained.places))


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"attacked": 0.0}, r"attacked and crossed > 0 with a sum below 1, got 0\.0 and 0\.1"),
        ({"crossed": 0.0}, r"attacked and crossed > 0 with a sum below 1, got 0\.1 and 0\.0"),
        ({"attacked": 0.6, "crossed": 0.4}, r"with a sum below 1, got 0\.6 and 0\.4"),
        ({"density": 0.0}, r"expected a density in \(0, 1\), got 0\.0"),
        ({"density": 1.0}, r"expected a density in \(0, 1\), got 1\.0"),
        ({"density_weight": -1.0}, r"density_weight and diversity >= 0 and lr > 0, got -1\.0, 1"),
        ({"diversity": -1.0}, r"density_weight and diversity >= 0 and lr > 0, got 100\.0, -1\.0"),
        ({"lr": 0.0}, r"diversity >= 0 and lr > 0, got 100\.0, 1\.0 and 0\.0"),
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Dynamic(target=0, **values)
