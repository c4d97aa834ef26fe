# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What changed between two reports: all of it, and nothing that did not."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from factories import PATCH, REPORT, SEARCHED, SHA, variant

from lmr_guard.contracts import Rate
from lmr_guard.release.differences import changes, same_decision
from lmr_guard.release.policy import Policy
from lmr_guard.release.records import Outcome
from lmr_guard.release.report import Report
from lmr_guard.results import Method, Suspicion

FIRST = replace(REPORT, created=datetime(2026, 1, 2, tzinfo=UTC))


def told(second: Report, first: Report = FIRST) -> list[tuple[str, str, str, str]]:
    return [(c.about, c.what, c.before, c.after) for c in changes(first, second)]


def with_form(**values: object) -> Report:
    first, second = FIRST.variants
    return replace(FIRST, variants=(replace(first, **values), second))  # type: ignore[arg-type]


def test_a_report_differs_in_nothing_from_itself() -> None:
    assert told(FIRST) == []
    assert told(Report.from_json(FIRST.to_json())) == []
    assert same_decision(FIRST, FIRST)


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        (replace(FIRST, verdict=Outcome.FAIL), ("decision", "verdict", "pass", "fail")),
        (replace(FIRST, model="b"), ("input", "model", "model.safetensors", "b")),
        (replace(FIRST, model_sha256="f" * 64), ("input", "sha256 of the model", SHA, "f" * 64)),
        (replace(FIRST, created=None), ("input", "made", "2026-01-02T00:00:00Z", "-")),
        (
            replace(FIRST, suspicion=Suspicion(None, (1.0, 1.2), Method.INVERSION)),
            ("suspect", "class", "3", "nobody"),
        ),
        (
            replace(FIRST, repair=None),
            ("suspect", "CA on the select part after", "96/100 96.0%", "-"),
        ),
        (
            replace(FIRST, received=()),
            ("as received", "float32", "measured", "not measured"),
        ),
        (
            replace(FIRST, variants=(*FIRST.variants, variant("int8"))),
            ("variant", "int8", "not measured", "measured"),
        ),
        (
            with_form(clean_accuracy=Rate(340, 360)),
            ("variant", "float32: CA", "350/360 97.2%", "340/360 94.4%"),
        ),
        (
            with_form(triggers=(replace(PATCH, asr=Rate(20, 324)),)),
            (
                "variant",
                "float32: ASR of patch.png@9,9 > 3",
                "2/324 0.6%, at most 2.2%",
                "20/324 6.2%, at most 9.3%",
            ),
        ),
        (
            with_form(triggers=(SEARCHED,)),
            (
                "variant",
                "float32: ASR of searched:patch@itself > 1",
                "-",
                "7/324 2.2%, at most 4.4%, strangeness 1.5",
            ),
        ),
        (with_form(bytes=2048), ("variant", "float32: KiB", "306", "2")),
        (
            replace(FIRST, policy=Policy(require=("float32",), max_asr=0.1)),
            ("policy", "max_asr", "0.05", "0.1"),
        ),
        (
            replace(FIRST, environment={**FIRST.environment, "threads": 99}),
            ("environment", "threads", str(FIRST.environment["threads"]), "99"),
        ),
        (replace(FIRST, config={"seed": 1}), ("setting", "seed", "0", "1")),
    ],
)
def test_each_difference_is_told(second: Report, expected: tuple[str, str, str, str]) -> None:
    found = told(second)
    assert expected in found
    mirrored = [(c.about, c.what, c.after, c.before) for c in changes(second, FIRST)]
    assert sorted(mirrored) == sorted(found)


def test_bounds_are_those_of_each_report_s_own_policy() -> None:
    surer = replace(FIRST, policy=replace(FIRST.policy, confidence=0.99))
    abouts = {change.about for change in changes(FIRST, surer)}
    assert abouts == {"policy", "variant", "as received"}


@pytest.mark.parametrize(
    ("second", "same"),
    [
        (replace(FIRST, verdict=Outcome.INCOMPLETE), False),
        (with_form(published=None), False),
        (with_form(clean_accuracy=Rate(1, 360)), True),
        (replace(FIRST, notes=("another",)), True),
    ],
)
def test_a_decision_is_the_verdict_and_what_was_published(second: Report, same: bool) -> None:
    assert same_decision(FIRST, second) is same_decision(second, FIRST) is same
