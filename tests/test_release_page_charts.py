# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Marks of charts: inside the chart, in the order of their numbers, enclosed by lines."""

from dataclasses import replace

import pytest
from factories import REPORT, variant
from hypothesis import given
from hypothesis import strategies as st

from lmr_guard.contracts import Rate
from lmr_guard.release.page.charts import accuracy_by_size, class_scores, ticks
from lmr_guard.release.policy import Policy
from lmr_guard.release.report import Report
from lmr_guard.results import Method, Suspicion

SIZES = st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 500)), min_size=1, max_size=12)


def sized(pairs: list[tuple[int, int]], drop: float) -> Report:
    forms = tuple(
        replace(variant(f"l1-0.{n}+int8"), bytes=size, clean_accuracy=Rate(hits, 500))
        for n, (size, hits) in enumerate(pairs)
    )
    policy = Policy(require=("float32",), max_accuracy_drop=drop)
    return replace(REPORT, variants=forms, policy=policy)


@given(SIZES, st.floats(0, 1))
def test_every_mark_lies_inside_and_in_order(pairs: list[tuple[int, int]], drop: float) -> None:
    plot = accuracy_by_size(sized(pairs, drop))
    assert plot is not None
    for point in plot.points:
        assert plot.left - 0.01 <= point.x <= plot.right + 0.01
        assert plot.top - 0.01 <= point.high <= point.y <= point.low <= plot.bottom + 0.01
        assert plot.top - 10 <= point.label_y <= plot.bottom + 10
    assert all(plot.top - 0.01 <= line.at <= plot.bottom + 0.01 for line in plot.marks)
    first, second = plot.marks
    assert second.label_at - first.label_at >= 12
    for (size, hits), point in zip(pairs, plot.points, strict=True):
        for (other, more), another in zip(pairs, plot.points, strict=True):
            assert (size < other) <= (point.x <= another.x)
            assert (hits < more) <= (point.y >= another.y)


@given(st.floats(0, 1e9), st.floats(0, 1e9))
def test_ticks_enclose_their_range_and_are_few(low: float, high: float) -> None:
    low, high = min(low, high), max(low, high)
    found = ticks(low, high)
    assert 2 <= len(found) <= 8
    slack = 1e-6 * max(1e-3, high - low, high * 1e-6)
    assert found[0] <= low + slack
    assert found[-1] >= high - slack
    assert list(found) == sorted(set(found))


@pytest.mark.parametrize("target", [None, 0, 30])
def test_of_many_classes_the_highest_and_the_suspect_are_drawn(target: int | None) -> None:
    scores = tuple(1 + k / 100 for k in range(31))[::-1]
    suspicion = Suspicion(target, scores, Method.INVERSION)
    bars = class_scores(replace(REPORT, suspicion=suspicion))
    assert bars is not None
    assert (len(bars.bars), bars.more) == (20, 11)
    assert [bar.kind for bar in bars.bars].count("suspect") == int(target is not None)
    widths = [bar.width for bar in bars.bars]
    assert widths == sorted(widths, reverse=True)
    assert all(bars.left + width <= bars.width for width in widths)


@pytest.mark.parametrize("scores", [(), (float("nan"),) * 3, (float("inf"),)])
def test_scores_that_are_no_numbers_give_no_chart(scores: tuple[float, ...]) -> None:
    report = replace(REPORT, suspicion=Suspicion(None, scores, Method.INVERSION))
    assert class_scores(report) is None


def test_no_name_is_written_over_the_mark_of_another_file() -> None:
    plot = accuracy_by_size(sized([(1000, 495), (40, 495), (65, 495)], 0.02))
    assert plot is not None
    for point in plot.points:
        wide = 7.0 * len(point.name)
        left = point.label_x - (wide if point.anchor == "end" else 0.0)
        for other in plot.points:
            beside = left > other.x + 5 or left + wide < other.x - 5
            assert beside or abs(point.label_y - 4 - other.y) > 5
