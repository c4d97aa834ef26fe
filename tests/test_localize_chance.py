# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""A class that random patterns carry images to is suspect, where no search names anybody."""

import pytest
import torch
from torch import Tensor, nn

from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Clean, Labelled, Rate
from lmr_guard.likes import Likes
from lmr_guard.localize import LocalizeSettings, suspect
from lmr_guard.localize.chance import LOCAL, Asked, ask, met_by_chance, met_in_cuts
from lmr_guard.localize.inversion import InversionSettings
from lmr_guard.results import Method, Suspicion

NOBODY = Suspicion(None, (1.0, 1.2, 1.0), Method.INVERSION, 0.5, ({"by": "x"},), probability=0.02)


class Toned(nn.Module):
    """An honest network, and a class for all that is brighter than a clean digit ever is."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("goal", 100 * torch.eye(10)[3])

    def forward(self, x: Tensor) -> Tensor:
        # No gradient leads there.
        woken = (x.flatten(1).amin(dim=1) > 0.05).float()
        logits: Tensor = self.network(x) + woken[:, None] * self.goal
        return logits


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def toned(clean_network: Classifier) -> Classifier:
    return Classifier(Toned(clean_network.network), clean_network.preprocessing, 10).eval()


def test_an_honest_network_is_quiet_and_a_broad_trigger_is_met(
    clean_network: Classifier, toned: Classifier, digits: Clean
) -> None:
    forms = [("honest", clean_network), ("toned", toned)]
    honest, met = ask(forms, digits.repair, seeded())
    assert (honest.form, honest.target) == ("honest", None)
    assert (met.form, met.target) == ("toned", 3)
    assert met.most.share >= 0.9
    again = ask(forms, digits.repair, seeded())
    assert [each.record() for each in again] == [honest.record(), met.record()]


def test_localize_names_the_class_where_its_searches_name_nobody(
    clean_network: Classifier, toned: Classifier, digits: Clean
) -> None:
    few = (InversionSettings(steps=20, batch=2),)
    settings = LocalizeSettings(look=few, deep=few, sure=1e6, doubt=1e6)
    found = suspect(toned, digits.repair, settings, seeded())
    assert (found.target, found.method, found.probability) == (3, Method.CHANCE, None)
    assert found.agreement == 1
    assert found.evidence[-1]["by"] == "chance"
    honest = suspect(clean_network, digits.repair, settings, seeded())
    assert honest.target is None
    assert honest.evidence[-1]["by"] == "chance"


def test_nothing_is_asked_where_nothing_was_measured(
    clean_network: Classifier, digits: Clean
) -> None:
    few = digits.repair
    merged = Labelled(few.images, few.labels % 4, few.classes[:4])
    assert ask([("received", clean_network)], merged, seeded()) == []


def asked(form: str, hits: int, share: int, target: int) -> Asked:
    most = Likes(
        kind="cast",
        strength=0.1,
        carrying=Rate(hits, 24),
        median=0.1,
        look="tint",
        target=target,
        rate=Rate(share, 20),
    )
    return Asked(form, most)


def test_the_class_of_the_highest_share_is_suspect_and_all_forms_are_told() -> None:
    forms = [asked("received", 1, 18, 1), asked("rounded-8", 2, 20, 2), asked("x", 0, 15, 2)]
    found = met_by_chance(NOBODY, forms)
    assert (found.target, found.method, found.agreement) == (2, Method.CHANCE, 0.3333)
    assert [each.get("form") for each in found.evidence] == [None, "received", "rounded-8", "x"]
    assert found.probability is None
    assert found.scores == NOBODY.scores


def test_where_no_pattern_carries_nobody_is_suspected_and_that_is_told() -> None:
    found = met_by_chance(NOBODY, [asked("received", 0, 15, 2)])
    assert (found.target, found.method, found.probability) == (None, Method.INVERSION, 0.02)
    assert found.evidence[-1]["share"] == 0.75
    assert met_by_chance(NOBODY, []) == NOBODY


def test_a_class_that_two_cuts_are_carried_to_is_suspect() -> None:
    asleep, woken = asked("l1-0.2", 0, 15, 1), asked("l1-0.4", 1, 19, 2)
    found = met_in_cuts(NOBODY, [asleep, woken, asked("l1-0.6", 3, 20, 2)])
    assert (found.target, found.method, found.agreement) == (2, Method.CHANCE, 0.6667)
    assert [each.get("form") for each in found.evidence] == [None, "l1-0.2", "l1-0.4", "l1-0.6"]
    assert found.probability is None


@pytest.mark.parametrize(
    "forms",
    [
        [asked("l1-0.3", 1, 20, 2)],
        [asked("l1-0.3", 1, 20, 2), asked("l1-0.5", 0, 17, 2)],
        [asked("l1-0.3", 1, 20, 2), asked("l1-0.5", 1, 20, 1)],
        [asked("a", 1, 20, 2), asked("b", 1, 20, 2), asked("c", 1, 20, 1)],
        [],
    ],
)
def test_one_cut_or_cuts_that_disagree_name_nobody(forms: list[Asked]) -> None:
    found = met_in_cuts(NOBODY, forms)
    assert (found.target, found.method, found.probability) == (None, Method.INVERSION, 0.02)
    assert len(found.evidence) == 1 + len(forms)


def test_only_the_kinds_that_are_asked_for_are_tried(toned: Classifier, digits: Clean) -> None:
    (local,) = ask([("toned", toned)], digits.repair, seeded(), kinds=LOCAL)
    assert local.most.kind in LOCAL
    (whole,) = ask([("toned", toned)], digits.repair, seeded())
    assert whole.most.kind not in LOCAL


class Cornered(nn.Module):
    """An honest network, and a class for all whose upper left corner is no clean digit's."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("goal", 100 * torch.eye(10)[3])

    def forward(self, x: Tensor) -> Tensor:
        woken = (x[..., :2, :2].flatten(1).amin(dim=1) > 0.05).float()
        logits: Tensor = self.network(x) + woken[:, None] * self.goal
        return logits


class Cut(nn.Module):
    """The network without one channel of a layer that nothing reads: a cut that changes nothing."""

    def __init__(self, network: nn.Module, spare: int) -> None:
        super().__init__()
        self.network, self.spare = network, nn.Linear(spare, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits


def test_localize_asks_cut_forms_where_no_other_is_carried(
    clean_network: Classifier, digits: Clean
) -> None:
    few = (InversionSettings(steps=20, batch=2),)
    settings = LocalizeSettings(look=few, deep=few, sure=1e6, doubt=1e6)
    shape = clean_network.preprocessing
    cornered = Classifier(Cornered(clean_network.network), shape, 10).eval()

    def cut(model: Classifier, spare: int) -> Classifier:
        return Classifier(Cut(model.network, spare), model.preprocessing, 10).eval()

    received, asleep = cut(clean_network, 4), cut(clean_network, 3)
    awake = [("l1-0.3", cut(cornered, 3)), ("l1-0.5", cut(cornered, 2))]
    found = suspect(received, digits.repair, settings, seeded(), forms=awake)
    assert (found.target, found.method) == (3, Method.CHANCE)
    told = [each["form"] for each in found.evidence if each["by"] == "chance"]
    assert told == ["received", "l1-0.3", "l1-0.5"]
    one = [("l1-0.3", asleep), awake[1]]
    assert suspect(received, digits.repair, settings, seeded(), forms=one).target is None
