# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The passes that are told are those that are made."""

from dataclasses import replace

import pytest
import torch
from factories import row_classifier, row_images, six_rows
from torch import nn

from lmr_guard import localize, repel
from lmr_guard.classifier import Classifier
from lmr_guard.compress.recipes import parse
from lmr_guard.contracts import Clean
from lmr_guard.forecast import forecast, passes, search_passes, seconds_per_pass
from lmr_guard.localize import inversion, spaces
from lmr_guard.localize.inversion import DEEP, LOOK, InversionSettings
from lmr_guard.received.parts import split
from lmr_guard.settings import Settings

SETTINGS = Settings(recipes=parse(["float32", "int8"]))


class Counted(nn.Module):
    """A network that counts the images that gradients are wanted of."""

    def __init__(self, network: nn.Module, seen: list[int]) -> None:
        super().__init__()
        self.network = network
        self.seen = seen

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            self.seen.append(len(pixels))
        logits: torch.Tensor = self.network(pixels)
        return logits

    def __deepcopy__(self, memo: dict[int, object]) -> "Counted":
        """Copies count into the same list."""
        import copy

        return Counted(copy.deepcopy(self.network, memo), self.seen)


@pytest.fixture(scope="module")
def model() -> Classifier:
    return row_classifier(six_rows, rows=6)


@pytest.fixture(scope="module")
def clean() -> Clean:
    generator = torch.Generator().manual_seed(0)
    return split(row_images(420, rows=6), repair=180, select=90, generator=generator)


def counted(model: Classifier) -> tuple[Classifier, list[int]]:
    seen: list[int] = []
    network = Counted(model.network, seen)
    return Classifier(network, model.preprocessing, model.num_classes).eval(), seen


@pytest.mark.parametrize("starts", [LOOK, DEEP, (InversionSettings(steps=3, batch=5),)])
@pytest.mark.parametrize("space", spaces.SPACES)
def test_a_search_makes_the_passes_that_are_told(
    model: Classifier, clean: Clean, space: spaces.Space, starts: tuple[InversionSettings, ...]
) -> None:
    counting, seen = counted(model)
    inversion.invert(counting, clean.repair, space, starts, torch.Generator().manual_seed(0))
    assert sum(seen) == search_passes(6, starts)[space]


def test_localize_stays_between_the_two_numbers(model: Classifier, clean: Clean) -> None:
    counting, seen = counted(model)
    forms = [("rounded-8", counting)]
    generator = torch.Generator().manual_seed(0)
    localize.suspect(counting, clean.repair, SETTINGS.localize, generator, forms=forms)
    alone = replace(SETTINGS, listening=None)
    told = passes(model, clean, alone, triggers=0, searched=True)
    others = passes(model, clean, replace(alone, repair=False), triggers=0, searched=True)
    assert told.least - others.least <= sum(seen) <= told.most - others.most


def test_a_repair_takes_no_more_than_the_most(model: Classifier, clean: Clean) -> None:
    counting, seen = counted(model)
    generator = torch.Generator().manual_seed(0)
    repel.repel(counting, 2, clean, settings=SETTINGS.repel, generator=generator)
    named = replace(SETTINGS, suspect=2, listening=None)
    told = passes(model, clean, named, triggers=0, searched=True)
    assert 0 < sum(seen) <= told.most
    several = passes(model, clean, replace(named, suspect=(2, 0)), triggers=0, searched=True)
    assert several.least > told.least
    assert several.most > told.most


def test_more_asked_for_takes_longer(model: Classifier, clean: Clean) -> None:
    def most(settings: Settings, triggers: int = 1) -> float:
        return passes(model, clean, settings, triggers=triggers, searched=True).most

    twelve = Settings()
    assert most(twelve) > most(SETTINGS) > most(replace(SETTINGS, listening=None))
    assert most(SETTINGS, 2) > most(SETTINGS)
    assert most(replace(SETTINGS, repair=False)) < most(SETTINGS)


def test_searches_that_could_tell_nothing_are_not_counted(model: Classifier, clean: Clean) -> None:
    told = passes(model, clean, SETTINGS, triggers=1, searched=False)
    verifying = 2 * len(clean.report) / 3
    rounding = 2 * 180 / 3
    random = 336 * 24 / 3
    assert told.least == pytest.approx(2 * (verifying + random) + rounding)


def test_the_seconds_are_the_passes_times_the_measured_pass(
    model: Classifier, clean: Clean
) -> None:
    found = forecast(model, clean, SETTINGS, triggers=1)
    told = passes(model, clean, SETTINGS, triggers=1, searched=True)
    assert found.least == pytest.approx(told.least * found.per_image)
    assert 0 < found.least < found.most == pytest.approx(told.most * found.per_image)


def test_one_image_is_enough_to_time(model: Classifier, clean: Clean) -> None:
    assert seconds_per_pass(model, clean.repair.subset(torch.tensor([0])), rounds=1) > 0
