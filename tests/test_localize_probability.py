# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What a score is worth is a number between two bounds that grows with the score."""

from math import inf, log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmr_guard.localize.probability import CERTAIN, OFFSET, SLOPE, probability

SCORES = st.floats(1.0, 1e6)


@given(SCORES, SCORES)
def test_more_is_told_of_higher_scores_and_nothing_for_certain(one: float, other: float) -> None:
    less, more = sorted((one, other))
    assert 1 - CERTAIN <= probability(less) <= probability(more) <= CERTAIN


@pytest.mark.parametrize("score", [1.7, 2.0, 2.4])
def test_the_odds_grow_by_a_power_of_the_score(score: float) -> None:
    told = probability(score)
    assert log(told / (1 - told)) == pytest.approx(OFFSET + SLOPE * log(score))


def test_a_search_without_end_is_no_more_certain() -> None:
    assert probability(inf) == CERTAIN
