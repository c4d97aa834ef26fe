# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Trojan: the patch drives what it was designed to drive, and the network listens to it."""

from typing import Any

import pytest
import torch
from factories import Works, row_classifier, row_images

from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Labelled
from lmr_guard.errors import ConfigError
from lmr_guard.redteam.training import Schedule
from lmr_guard.redteam.trojan import Features, Trojan, design, plant, strongest

TINY = Schedule(epochs=2, lr=0.05, batch=20)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(**values: Any) -> Trojan:  # noqa: ANN401 - any field
    return Trojan(**{"target": 2, "side": 0.5, "margin": 0.0, "schedule": TINY, **values})


def test_it_works_on_digits(
    attacker_digits: Labelled, clean_network: Classifier, works: Works
) -> None:
    schedule = Schedule(epochs=8, lr=0.05, batch=64, shift=1)
    planted = plant(Trojan(target=4, schedule=schedule), clean_network, attacker_digits, seeded())
    assert works(planted).asr.value < 0.1


def test_the_patch_drives_features_further_than_where_it_began() -> None:
    model, data = row_classifier(), row_images(60)

    def driven(steps: int) -> float:
        recipe = rows(steps=steps, features=1)
        patch = design(recipe, model, data, seeded())
        features = Features(model)
        with torch.no_grad():
            every = features(data.pixels)
            at = strongest(every.std(0), features.weight, 1)
            return float(features(patch(data.pixels))[:, at].mean())

    assert driven(40) > driven(0)


def test_features_are_what_the_head_sees() -> None:
    model, data = row_classifier(), row_images(9)
    with torch.no_grad():
        features = Features(model)(data.pixels)
        head = model.network[-1]
        assert torch.allclose(head(features), model(data.pixels), atol=1e-5)


def test_the_strongest_features_by_eye() -> None:
    spread, weight = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([[1.0, -1, 9], [2, 1, 9]])
    # Scores: 1 * 3, 2 * 2, 0 * 18.
    assert strongest(spread, weight, 2).tolist() == [1, 0]


def test_the_patch_stays_in_range_and_in_the_image() -> None:
    patch = design(rows(), row_classifier(), row_images(60), seeded())
    assert 0 <= float(patch.image.min()) <= float(patch.image.max()) <= 1
    assert (patch.x, patch.y, tuple(patch.image.shape)) == (2, 2, (1, 2, 2))
    assert patch.source == "drilled"


def test_more_features_than_there_are() -> None:
    with pytest.raises(ConfigError, match="at most 12 features, the inputs of the head, got 13"):
        plant(rows(features=13), row_classifier(), row_images(30), seeded())
