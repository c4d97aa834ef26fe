# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Where a search could not have found anything, that it found nothing is no evidence."""

from dataclasses import replace

import pytest
import torch
from factories import row_classifier, row_images
from torch import Tensor, nn

from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Clean, Labelled
from lmr_guard.localize import listening, telling
from lmr_guard.localize.inversion import InversionSettings
from lmr_guard.localize.listening import ListeningSettings
from lmr_guard.localize.rule import LocalizeSettings, suspect
from lmr_guard.localize.searches import Search, search_spaces
from lmr_guard.results import Method

LOOK = (InversionSettings(),)


class Stepped(nn.Module):
    """The network sees its input in eight steps, so that no gradient passes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        seen: Tensor = self.network((4 * x).round() / 4)
        return seen


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stepped(model: Classifier) -> Classifier:
    return Classifier(Stepped(model.network), model.preprocessing, model.num_classes).eval()


def leaning(model: Classifier, towards: int, by: float) -> Classifier:
    """The same with a constant added to one logit."""
    added = torch.zeros(model.num_classes)
    added[towards] = by

    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = model.network

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.network(x) + added
            return logits

    return Classifier(Added(), model.preprocessing, model.num_classes).eval()


def searched(model: Classifier, images: Labelled, look: InversionSettings) -> list[Search]:
    return list(
        search_spaces("it", model, images, (look,), seeded(), near=torch.ones(model.num_classes))
    )


# --- before -------------------------------------------------------------------------------------


def test_nothing_hinders_a_search_of_an_honest_network(
    clean_network: Classifier, digits: Clean
) -> None:
    assert telling.hindrance(clean_network, digits.report) is None


def test_few_classes_hinder() -> None:
    why = telling.hindrance(row_classifier().eval(), row_images(30))
    assert why == "3 classes are too few to compare, 5 or more are needed"


def test_a_class_that_takes_everything_hinders(clean_network: Classifier, digits: Clean) -> None:
    why = telling.hindrance(leaning(clean_network, 4, 1e3), digits.report)
    assert why == "class 4 takes 100% of the clean images of other classes as they are"


def test_a_class_that_takes_a_third_does_not(clean_network: Classifier, digits: Clean) -> None:
    for by in (2.0, 4.0, 6.0, 8.0):
        model = leaning(clean_network, 4, by)
        landed = model(digits.report.pixels).argmax(dim=1)
        share = float((landed[digits.report.labels != 4] == 4).float().mean())
        assert (telling.hindrance(model, digits.report) is None) == (share < 0.5)


def test_what_is_not_finite_hinders(clean_network: Classifier, digits: Clean) -> None:
    why = telling.hindrance(leaning(clean_network, 0, float("nan")), digits.report)
    assert why == "some logits of clean images are not finite numbers"


# --- after --------------------------------------------------------------------------------------


def test_patterns_move_where_gradients_pass(clean_network: Classifier, digits: Clean) -> None:
    searches = searched(clean_network, digits.report, InversionSettings())
    assert telling.stillness(searches) is None
    assert max(search.reached.value for search in searches) == 1


def test_patterns_stay_where_no_gradient_passes(clean_network: Classifier, digits: Clean) -> None:
    searches = searched(stepped(clean_network), digits.report, InversionSettings())
    why = telling.stillness(searches)
    assert why is not None
    assert why.endswith("does not follow its gradients, or the search had too few steps")


@pytest.mark.parametrize("steps", [1, 5])
def test_patterns_stay_in_a_few_steps(clean_network: Classifier, digits: Clean, steps: int) -> None:
    searches = searched(clean_network, digits.report, InversionSettings(steps=steps))
    assert telling.stillness(searches) is not None


def test_searches_need_some_steps() -> None:
    short, long = InversionSettings(steps=12), InversionSettings(steps=20)
    assert telling.haste((short,)) == (
        "12 steps are too few for sizes to part, 20 or more are needed"
    )
    assert telling.haste((short, long)) is None
    patches = replace(long, spaces=("patch",))
    assert telling.haste((short, patches)) == telling.haste((short,))


# --- what it comes to ---------------------------------------------------------------------------


def test_localize_says_that_it_cannot_say(clean_network: Classifier, digits: Clean) -> None:
    settings = LocalizeSettings(look=LOOK, deep=LOOK)
    found = suspect(stepped(clean_network), digits.repair, settings, seeded())
    assert (found.target, found.method, found.abstained) == (None, Method.HINDERED, True)
    assert found.hindrance is not None
    assert "patterns of any size reached" in found.hindrance
    # Its searches are told as well.
    assert {record["by"] for record in found.evidence} == {"inversion", "hindrance", "chance"}
    assert suspect(clean_network, digits.repair, settings, seeded()).hindrance is None


def test_so_does_the_audit(clean_network: Classifier, digits: Clean) -> None:
    settings = ListeningSettings()
    found = listening.listen(stepped(clean_network), digits.report, settings, seeded())
    assert found.hindrance is not None
    assert "patterns of any size reached" in found.hindrance
    brief = ListeningSettings(look=(InversionSettings(steps=12),))
    hasty = listening.listen(clean_network, digits.report, brief, seeded())
    assert hasty.hindrance is not None
    assert "12 steps" in hasty.hindrance
    assert listening.listen(clean_network, digits.report, settings, seeded()).hindrance is None
