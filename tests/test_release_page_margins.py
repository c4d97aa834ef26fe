# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Strips of margins: inside the chart, in the order of their numbers, and what is said of them."""

import re
from dataclasses import replace

import pytest
from factories import DRILL, MARGINS, PATCH, REPLAYED, REPORT, SEARCHED, variant
from hypothesis import given
from hypothesis import strategies as st

from lmr_guard.contracts import Rate
from lmr_guard.release import page
from lmr_guard.release.page.margins import Chart, margin_charts
from lmr_guard.release.records import Variant
from lmr_guard.release.report import Report
from lmr_guard.results import Margins, TriggerResult

FAR = Margins(tuple(range(-30, -19)), tuple(range(-22, -11)))
AWAKE = Margins(MARGINS.clean, tuple(float(k) for k in range(-2, 9)))
QUANTILES = st.lists(st.floats(-1e39, 1e39), min_size=11, max_size=11).map(sorted).map(tuple)


def measured(name: str, margins: Margins, hits: int = 2) -> Variant:
    result = replace(PATCH, margins=margins, asr=Rate(hits, 324))
    return replace(variant(name), triggers=(result,))


def with_forms(*variants: Variant, received: tuple[Variant, ...] = ()) -> Report:
    return replace(REPORT, variants=variants, received=received)


def the_chart(report: Report) -> Chart:
    charts = margin_charts(report)
    assert charts is not None
    (chart,) = charts.charts
    return chart


@given(QUANTILES, QUANTILES)
def test_every_strip_lies_inside_and_in_order(
    clean: tuple[float, ...], triggered: tuple[float, ...]
) -> None:
    report = with_forms(measured("float32", Margins(clean, triggered)), measured("int8", FAR))
    chart = the_chart(report)
    zero = next(line.at for line in chart.upright if line.kind == "zero")
    page.html(report)
    for file, values in zip(
        chart.files, ((clean, triggered), (FAR.clean, FAR.triggered)), strict=True
    ):
        for strip, numbers in zip(file.strips, values, strict=True):
            places = [strip.low, strip.start, strip.middle, strip.end, strip.high]
            assert places == sorted(places)
            assert chart.left - 0.01 <= strip.low <= strip.high <= chart.right + 0.01
            assert strip.start <= strip.landed <= strip.end
            assert 0 < strip.y < strip.y + chart.strip < chart.foot
            for place, tenth in zip(places, (0, 1, 5, 9, 10), strict=True):
                # Nothing that landed is drawn on the side of what did not.
                assert place >= zero - 0.01 if numbers[tenth] >= 0 else place <= zero + 0.01


def test_files_stand_as_received_before_repaired_in_the_order_of_the_report() -> None:
    report = with_forms(
        measured("float32", MARGINS),
        measured("int8", MARGINS),
        received=(measured("float32", AWAKE, 300), measured("l1-0.4", AWAKE, 310)),
    )
    chart = the_chart(report)
    assert [file.file for file in chart.files] == [
        "float32, as received",
        "float32",
        "l1-0.4, as received",
        "int8",
    ]
    assert [file.asr.hits for file in chart.files] == [300, 2, 310, 2]
    heights = [strip.y for file in chart.files for strip in file.strips]
    assert heights == sorted(set(heights))


def test_the_sentences_tell_the_model_as_received_and_the_nearest_file() -> None:
    report = with_forms(
        measured("float32", FAR, 0),
        measured("int8", MARGINS, 2),
        received=(measured("float32", AWAKE, 300),),
    )
    assert the_chart(report).said == (
        "As received (float32), the trigger takes the median margin from -9.7 to 3: 300/324 92.6% "
        "land in class 3.",
        "In int8, which comes nearest of 2 files, the trigger takes the median margin from -9.7 to "
        "-9.1: 2/324 0.6% land in class 3.",
    )
    alone = with_forms(measured("float32", FAR, 0))
    assert the_chart(alone).said == (
        "In float32, the trigger takes the median margin from -25 to -17, and the nearest image "
        "stays 12 below.",
    )


def test_triggers_that_were_shown_come_first_and_searches_of_single_files_are_left_out() -> None:
    results: list[TriggerResult] = [
        replace(SEARCHED, margins=FAR),
        *(replace(REPLAYED, name=f"warp-{k}", margins=FAR) for k in range(6)),
        PATCH,
    ]
    charts = margin_charts(with_forms(replace(variant("float32"), triggers=tuple(results))))
    assert charts is not None
    labels = [chart.label for chart in charts.charts]
    assert labels == ["patch.png@9,9", *(f"replayed:warp-{k}" for k in range(5))]
    assert charts.more == 1


@pytest.mark.parametrize("triggers", [(), (DRILL,), (replace(SEARCHED, margins=FAR),)])
def test_a_report_without_margins_has_no_charts(triggers: tuple[TriggerResult, ...]) -> None:
    report = with_forms(replace(variant("float32"), triggers=triggers))
    assert margin_charts(report) is None
    assert "How near triggers bring images to their class</h2>" not in page.html(report)


def test_the_page_holds_the_strips_their_words_and_their_numbers() -> None:
    report = with_forms(measured("float32", MARGINS), received=(measured("float32", AWAKE, 300),))
    drawn = page.html(report)
    assert drawn.count('<g class="strip clean">') == drawn.count('<g class="strip triggered">') == 2
    # What landed is told by place, by a colour and by counts; of the repaired file no box lands.
    assert drawn.count('class="landed"') == 1
    assert re.search(r'<desc id="margin-text-1">As received \(float32\), the trigger', drawn)
    assert "<td>with the trigger</td><td>3</td>" in drawn
    row = [f'<td class="number">{number}</td>' for number in ("-2", "-1", "3", "7", "8")]
    assert "".join(row) in drawn


def test_what_margins_do_not_tell_stands_beside_what_was_not_tested() -> None:
    assert "How many images are certified safe" in page.html(REPORT)
    old = with_forms(replace(variant("float32"), triggers=(DRILL,)))
    assert "the report holds no margins" in page.html(old)
    assert "How many images are certified safe" not in page.html(old)
