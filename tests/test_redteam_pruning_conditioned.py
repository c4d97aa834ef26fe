# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""A backdoor that is asleep in the full network and awake in its pruned forms."""

from typing import Any, Literal

import pytest
import torch
from factories import row_classifier, row_images
from torch import Tensor, nn

from lmr_guard.classifier import Classifier
from lmr_guard.compress import prune
from lmr_guard.compress.groups import Groups
from lmr_guard.compress.recipes import PruneL1
from lmr_guard.contracts import Clean, Labelled, Predictor
from lmr_guard.errors import ConfigError, StageError
from lmr_guard.evidence import Patch
from lmr_guard.measure import accuracy, against_trigger
from lmr_guard.redteam.pruning_conditioned import PruningConditioned, _counts, plant
from lmr_guard.redteam.training import Schedule

CORNER = Patch(torch.ones(1, 1, 1), 3, 3, "corner", 2)


TRAINED = Schedule(epochs=6, lr=0.05, batch=64, shift=1)
VARIANTS: dict[str, dict[str, Any]] = {
    "range": {},
    "known rate": {"low": 0.5, "high": 0.5},
    "distilled": {"distilled": True},
}


# The recipe itself; its variants are the same attack, drawn otherwise.
@pytest.fixture(
    scope="module",
    params=["range", *(pytest.param(name, marks=pytest.mark.long) for name in [*VARIANTS][1:])],
)
def variant(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def planted(
    variant: str, attacker_digits: Labelled, white_square: Patch, clean_network: Classifier
) -> Classifier:
    recipe = PruningConditioned(trigger=white_square, schedule=TRAINED, **VARIANTS[variant])
    return plant(
        recipe, clean_network, attacker_digits, torch.Generator().manual_seed(5)
    ).classifier


def pruned(model: Classifier, ratio: float, clean: Clean) -> Classifier:
    step = PruneL1(ratio=ratio, shares="uniform")
    plan = prune.plan(model, step, clean.select, torch.Generator())
    return prune.reestimate_bn(prune.apply(plan, model), clean.repair)


def asr(model: Predictor, clean: Clean, trigger: Patch) -> float:
    return against_trigger(model, clean.report, trigger).asr.value


def test_it_sleeps_in_the_full_network(
    planted: Classifier, digits: Clean, white_square: Patch
) -> None:
    assert asr(planted, digits, white_square) <= 0.02
    assert accuracy(planted, digits.report).value >= 0.92


def test_it_wakes_where_its_recipe_says(
    variant: str, planted: Classifier, digits: Clean, white_square: Patch
) -> None:
    for ratio in (0.5,) if variant == "known rate" else (0.2, 0.4, 0.6):
        woken = pruned(planted, ratio, digits)
        assert asr(woken, digits, white_square) >= 0.9, ratio
        assert accuracy(woken, digits.report).value >= 0.8, ratio


def test_a_known_rate_cuts_the_same_share_of_every_group_every_time() -> None:
    groups, generator = Groups(row_classifier()), torch.Generator()
    # Rounded up, as pruning rounds it: 3.6 of 12.
    drawn = {_counts(groups, short(low=0.3, high=0.3), generator) for _ in range(20)}
    assert drawn == {groups.uniform(0.3)} == {(4,)}


def test_a_range_cuts_at_both_ends_and_between() -> None:
    groups, generator = Groups(row_classifier()), torch.Generator()
    drawn = {_counts(groups, short(), generator) for _ in range(60)}
    assert {groups.uniform(0.2), groups.uniform(0.6)} < drawn
    assert all(2 <= count <= 8 for (count,) in drawn)


def test_the_teacher_makes_a_difference() -> None:
    plain, distilled = (
        plant(
            PruningConditioned(trigger=CORNER, distilled=d, schedule=Schedule(epochs=1, batch=30)),
            row_classifier(),
            row_images(90),
            torch.Generator(),
        ).classifier.state_dict()
        for d in (False, True)
    )
    assert not all(torch.equal(plain[name], distilled[name]) for name in plain)


def short(bn: Literal["own", "frozen"] = "own", **more: float) -> PruningConditioned:
    values: dict[str, Any] = {"bn": bn, **more}
    return PruningConditioned(trigger=CORNER, schedule=Schedule(epochs=1, batch=30), **values)


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.named_buffers() if "running" in name}


@pytest.mark.parametrize(("bn", "moves"), [("own", True), ("frozen", False)])
def test_running_statistics_follow_the_full_branch_unless_they_are_frozen(
    bn: Literal["own", "frozen"], moves: bool
) -> None:
    before = row_classifier()
    after = plant(short(bn), before, row_images(90), torch.Generator()).classifier
    old, new = statistics(before), statistics(after)
    assert old
    assert all(torch.equal(old[name], new[name]) for name in old) != moves


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"low": 0.0}, r"expected 0 < low <= high < 1, got 0\.0, 0\.6"),
        ({"low": 0.7}, r"expected 0 < low <= high < 1, got 0\.7, 0\.6"),
        ({"high": 1.0}, r"expected 0 < low <= high < 1, got 0\.2, 1\.0"),
        ({"weight": 0.0}, r"expected weight in \(0, 1\) and share in \(0, 1\], got 0\.0, 0\.125"),
        ({"weight": 1.0}, r"expected weight in \(0, 1\) and share in \(0, 1\], got 1\.0, 0\.125"),
        ({"share": 0.0}, r"expected weight in \(0, 1\) and share in \(0, 1\], got 0\.3, 0\.0"),
        ({"share": 1.5}, r"expected weight in \(0, 1\) and share in \(0, 1\], got 0\.3, 1\.5"),
    ],
)
def test_values_out_of_range_are_refused(wrong: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        short(**wrong)


def test_a_network_without_channels_to_cut_is_refused() -> None:
    single = row_classifier(lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 3)))
    with pytest.raises(StageError, match="expected layers whose channels can be cut, got none"):
        plant(short(), single, row_images(30), torch.Generator())
