# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""A budget decides how long is searched, and nothing else."""

from dataclasses import fields, replace

import pytest
import torch
from factories import row_classifier, row_images, six_rows

from lmr_guard import forecast, pipeline
from lmr_guard.budgets import BUDGETS
from lmr_guard.errors import ConfigError
from lmr_guard.localize.inversion import starts_in
from lmr_guard.localize.spaces import SPACES
from lmr_guard.localize.telling import haste
from lmr_guard.received.parts import split
from lmr_guard.settings import Settings

CLASSIFIER = row_classifier(six_rows, rows=6)
CLEAN = split(
    row_images(420, rows=6), repair=180, select=90, generator=torch.Generator().manual_seed(0)
)


def test_the_standard_is_the_default() -> None:
    assert Settings() == Settings().within("standard")
    assert [Settings().within(each).budget for each in BUDGETS] == list(BUDGETS)


@pytest.mark.parametrize("budget", ["quick", "thorough"])
def test_all_but_the_searches_stays(budget: str) -> None:
    usual = Settings(seed=7, suspect=3, threads=2)
    other = usual.within(budget)  # type: ignore[arg-type]
    differ = {each.name for each in fields(Settings) if _differs(usual, other, each.name)}
    assert differ == {"localize", "listening"}
    for part, left_alone in (
        ("localize", {"look", "deep", "forms"}),
        ("listening", {"look", "deep", "refused"}),
    ):
        mine, theirs = getattr(usual, part), getattr(other, part)
        kept = {each.name for each in fields(mine)} - left_alone
        assert not any(_differs(mine, theirs, name) for name in kept)


def _differs(one: object, other: object, name: str) -> bool:
    return bool(getattr(one, name) != getattr(other, name))


def test_where_no_file_was_searched_none_is() -> None:
    assert Settings(listening=None).within("thorough").listening is None
    assert Settings(listening=None).within("quick").budget == "quick"


def test_settings_of_ones_own_have_no_budget() -> None:
    usual = Settings()
    own = replace(usual, localize=replace(usual.localize, confirm=1))
    assert own.budget is None
    assert own.to_json()["budget"] is None


def test_a_budget_that_there_is_not_is_told() -> None:
    with pytest.raises(
        ConfigError, match="expected a budget of quick, standard, thorough, got 'x'"
    ):
        Settings().within("x")  # type: ignore[arg-type]


def test_what_they_take_grows() -> None:
    def least(settings: Settings) -> float:
        return forecast.passes(CLASSIFIER, CLEAN, settings, triggers=1, searched=True).least

    quick, standard, thorough = (least(Settings().within(each)) for each in BUDGETS)
    assert quick < standard < thorough


def test_none_is_too_hasty_to_be_evidence() -> None:
    for searching in BUDGETS.values():
        for starts in (searching.localize.deep, searching.listening.look):
            assert haste(starts) is None


def test_every_search_is_made_in_every_space() -> None:
    for searching in BUDGETS.values():
        for starts in (searching.localize.look, searching.localize.deep, searching.listening.deep):
            assert all(starts_in(space, starts) for space in SPACES)


def test_which_forms_are_searched() -> None:
    forms = {
        budget: (within.searches_rounded, within.searched_ratios)
        for budget, within in ((each, Settings().within(each)) for each in BUDGETS)
    }
    assert forms == {
        "quick": (False, []),
        "standard": (True, [0.3, 0.5]),
        "thorough": (True, [0.2, 0.3, 0.4, 0.5, 0.6]),
    }


@pytest.mark.slow
def test_a_quick_scan_asks_the_model_as_received_alone() -> None:
    told: list[str] = []

    def listen(step: str, _done: int, total: int, /) -> None:
        told.append(f"{step} {total}")

    found = pipeline.suspect(CLASSIFIER, CLEAN, Settings().within("quick"), listen)
    forms = {each["form"] for each in found.evidence if each["by"] == "inversion"}
    assert forms == {"received"}
    assert set(told) == {"localize 6"}
