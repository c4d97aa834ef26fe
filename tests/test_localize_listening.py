# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The audit of what would ship: a backdoor shows, an honest network does not."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from factories import digits_classifier, fingerprint, row_classifier, row_images

from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Clean, Labelled
from lmr_guard.errors import ConfigError, StageError
from lmr_guard.evidence import Patch
from lmr_guard.localize import listening
from lmr_guard.localize.inversion import InversionSettings
from lmr_guard.localize.listening import ListeningSettings
from lmr_guard.measure import against_pattern
from lmr_guard.redteam.badnets import BadNets, plant
from lmr_guard.redteam.training import Schedule
from lmr_guard.release.policy import Policy

BRIEF = (InversionSettings(steps=12, batch=2),)
QUICK = ListeningSettings(look=BRIEF, deep=BRIEF)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_backdoor_listens(attacker_digits: Labelled, digits: Clean) -> None:
    """Class 5, which a digit with a square at the lower right does not resemble."""
    square = Patch(torch.ones(1, 4, 4), 11, 11, "white square", target=5)
    schedule = Schedule(epochs=12, lr=0.1, batch=64, shift=1)
    recipe = BadNets(trigger=square, rate=0.1, schedule=schedule)
    network = plant(recipe, digits_classifier(4), attacker_digits, seeded(4)).classifier
    found = listening.listen(network, digits.report, ListeningSettings(), seeded())
    assert found.target == 5
    assert found.strangeness > Policy().max_strangeness
    assert (found.pattern.target, found.pattern.name.partition("@")[2]) == (5, "itself")
    # A look in each space, and deep searches of those that showed something.
    assert 4 <= len(found.evidence) <= 6
    rate = against_pattern(network, digits.report, found.pattern).asr
    assert rate.lower() > 0.3


def test_an_honest_network_does_not(clean_network: Classifier, digits: Clean) -> None:
    found = listening.listen(clean_network, digits.report, ListeningSettings(), seeded())
    assert found.strangeness < Policy().max_strangeness


def test_the_model_is_left_alone_and_the_generator_decides() -> None:
    model = row_classifier()
    before = fingerprint(model)
    runs = [listening.listen(model, row_images(60), QUICK, seeded(s)).evidence for s in (1, 1, 2)]
    assert fingerprint(model) == before
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@pytest.mark.parametrize(("doubt", "searches"), [(1.0, 6), (1e9, 3)])
def test_only_what_is_strange_is_searched_again(doubt: float, searches: int) -> None:
    config = replace(QUICK, doubt=doubt)
    found = listening.listen(row_classifier(), row_images(60), config, seeded())
    assert len(found.evidence) == searches
    assert {record["form"] for record in found.evidence} == {"itself"}


def test_no_more_images_than_asked_for_are_looked_at() -> None:
    data = row_images(60)
    one_class = data.subset(data.labels.argsort())
    with pytest.raises(StageError, match="images of two classes or more"):
        listening.listen(row_classifier(), one_class, ListeningSettings(images=10), seeded())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"doubt": 0.9}, "doubt >= 1 and images >= 2, got 0.9 and 300"),
        ({"images": 1}, "got 1.6 and 1"),
    ],
)
def test_a_config_that_cannot_work_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ListeningSettings(**values)
