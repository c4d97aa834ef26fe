# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What random patterns came to is written and read again, and the lower rate counts."""

import pytest

from lmr_guard.contracts import Rate
from lmr_guard.likes import Likes

CAST = Likes(
    kind="cast",
    strength=0.16,
    carrying=Rate(1, 24),
    median=0.125,
    look="tint",
    target=3,
    rate=Rate(20, 20),
)
FURTHER = Likes(
    kind="patch",
    strength=0.1,
    carrying=Rate(0, 40),
    median=0.0,
    look="flat",
    target=-1,
    rate=Rate(12, 20),
    further=Rate(45, 90),
)


@pytest.mark.parametrize("likes", [CAST, FURTHER])
def test_a_record_comes_back(likes: Likes) -> None:
    told = likes.to_json(0.95)
    assert Likes.from_json(told) == likes
    assert told["carrying"]["upper"] == likes.carrying.upper(0.95)
    assert ("further" in told) is (likes.further is not None)


def test_the_lower_of_two_rates_counts() -> None:
    assert CAST.share == 1.0
    assert FURTHER.share == 0.5
    assert (CAST.named, FURTHER.named) == ("cast 0.16", "patch 0.1")
