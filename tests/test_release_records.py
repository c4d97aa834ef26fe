# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Findings and what they add up to; what a record says is what is read out of it again."""

import json
from dataclasses import replace
from typing import Any, get_args

import pytest
from factories import variant
from hypothesis import given
from hypothesis import strategies as st

from lmr_guard.contracts import Rate, Source
from lmr_guard.errors import ExitCode, InputError
from lmr_guard.release.records import Build, Check, Finding, Outcome, Variant, Verdict
from lmr_guard.results import Achieved, Tried, TriggerResult

PASS, INCOMPLETE, FAIL = Outcome.PASS, Outcome.INCOMPLETE, Outcome.FAIL
SHA = "0123456789abcdef" * 4
NAMES = st.sampled_from(["patch.png@9,9", "a:b", "asr:x", ":", "replayed:x"]) | st.text(max_size=8)


# --- outcomes, findings, verdicts ---------------------------------------------------------------


def test_outcomes_are_ordered_by_severity_and_have_words_and_exit_codes() -> None:
    assert sorted(Outcome) == [PASS, INCOMPLETE, FAIL]
    assert [outcome.word for outcome in Outcome] == ["pass", "incomplete", "fail"]
    assert [outcome.exit_code for outcome in Outcome] == [
        ExitCode.PASSED,
        ExitCode.INCOMPLETE,
        ExitCode.REFUSED,
    ]
    assert [Outcome.from_word(outcome.word) for outcome in Outcome] == list(Outcome)


def test_a_word_that_spells_no_outcome_is_refused() -> None:
    with pytest.raises(KeyError, match="CLEAN"):
        Outcome.from_word("clean")


def verdict(*outcomes: Outcome) -> Verdict:
    return Verdict(SHA, tuple(Finding(Check.GRAPH, o, f"was {o.name}") for o in outcomes))


@given(st.lists(st.sampled_from(Outcome), min_size=1))
def test_a_verdict_is_as_bad_as_its_worst_finding(outcomes: list[Outcome]) -> None:
    result = verdict(*outcomes)
    assert result.outcome == max(outcomes)
    assert result.passed == all(o is PASS for o in outcomes)
    assert len(result.reasons()) == sum(o is not PASS for o in outcomes)


def test_nothing_checked_is_not_a_pass() -> None:
    assert verdict().outcome is INCOMPLETE
    assert not verdict().passed


def test_the_reasons_are_those_that_did_not_pass() -> None:
    assert verdict(PASS, FAIL, INCOMPLETE).reasons() == ("was FAIL", "was INCOMPLETE")


@pytest.mark.parametrize(
    ("label", "check", "about"),
    [
        ("digest", Check.DIGEST, None),
        ("asr:patch.png@9,9", Check.ASR, "patch.png@9,9"),
        ("trials:patch.png@9,9", Check.TRIALS, "patch.png@9,9"),
        ("trials", Check.TRIALS, None),
        ("excess:replayed:patch@l1-0.4", Check.EXCESS, "replayed:patch@l1-0.4"),
        ("asr:a:b:c", Check.ASR, "a:b:c"),
        ("asr:", Check.ASR, ""),
    ],
)
def test_the_label_of_a_finding_is_the_check_and_what_it_is_about(
    label: str, check: Check, about: str | None
) -> None:
    found = Finding(check, FAIL, "so it is", about)
    record = {"check": label, "outcome": "fail", "reason": "so it is"}
    assert found.label == label
    assert found.to_json() == record
    assert Finding.from_json(record) == found


@pytest.mark.parametrize("label", ["nonsense", "nonsense:patch", "", ":patch", "ASR:patch"])
def test_an_unknown_check_is_refused(label: str) -> None:
    with pytest.raises(ValueError, match="is not a valid Check"):
        Finding.from_json({"check": label, "outcome": "pass", "reason": "r"})


def test_nothing_is_known_of_a_build_but_what_its_maker_says() -> None:
    build = Build(name="int8")
    assert (build.asked, build.achieved, build.weights_sha256, build.plan) == (None, None, None, {})


# --- variants -----------------------------------------------------------------------------------

VARIANT = Variant(
    name="int8",
    sha256=SHA,
    bytes=313155,
    clean_accuracy=Rate(350, 360),
    triggers=(
        TriggerResult("patch.png@9,9", "given", 3, Rate(2, 324), Rate(330, 360)),
        TriggerResult(
            "warp@received", "inverted", 3, Rate(9, 324), Rate(1, 360), Rate(5, 324), "replayed"
        ),
        TriggerResult(
            "patch@itself", "inverted", 1, Rate(7, 324), Rate(2, 360), Rate(6, 324), "searched", 1.5
        ),
    ),
    achieved=Achieved(0.41, 0.64, 8),
    provider="CPUExecutionProvider",
    verdict=Verdict(
        SHA,
        (
            Finding(Check.DIGEST, PASS, "measured the staged bytes"),
            Finding(Check.ASR, INCOMPLETE, "too few images to tell", "patch.png@9,9"),
        ),
    ),
    weights_sha256=SHA,
    plan={"cuts": [{"layer": "conv", "channels": [1, 2]}]},
    searches=({"by": "inversion"},),
)


def test_a_variant_has_the_agreed_names() -> None:
    shown, replayed, searched = (result.asr for result in VARIANT.triggers)
    assert VARIANT.to_json(0.95) == {
        "name": "int8",
        "sha256": SHA,
        "bytes": 313155,
        "clean_accuracy": bounded(Rate(350, 360)),
        "triggers": [
            {
                "name": "patch.png@9,9",
                "source": "given",
                "target": 3,
                **bounded(shown),
                "ta": {"hits": 330, "trials": 360},
            },
            {
                "name": "replayed:warp@received",
                "source": "inverted",
                "target": 3,
                **bounded(replayed),
                "ta": {"hits": 1, "trials": 360},
                "without": {"hits": 5, "trials": 324},
            },
            {
                "name": "searched:patch@itself",
                "source": "inverted",
                "target": 1,
                **bounded(searched),
                "ta": {"hits": 2, "trials": 360},
                "without": {"hits": 6, "trials": 324},
                "strangeness": 1.5,
            },
        ],
        "achieved": {"sparsity": 0.41, "parameter_sparsity": 0.64, "bits": 8},
        "provider": "CPUExecutionProvider",
        "verdict": "incomplete",
        "findings": [
            {"check": "digest", "outcome": "pass", "reason": "measured the staged bytes"},
            {
                "check": "asr:patch.png@9,9",
                "outcome": "incomplete",
                "reason": "too few images to tell",
            },
        ],
        "weights_sha256": SHA,
        "published": None,
        "plan": {"cuts": [{"layer": "conv", "channels": [1, 2]}]},
        "searches": [{"by": "inversion"}],
    }
    assert "searches" not in replace(VARIANT, searches=()).to_json(0.95)


def bounded(rate: Rate, confidence: float = 0.95) -> dict[str, float]:
    return {
        "hits": rate.hits,
        "trials": rate.trials,
        "lower": rate.lower(confidence),
        "upper": rate.upper(confidence),
    }


def test_bounds_are_those_of_the_confidence_asked_for() -> None:
    record = VARIANT.to_json(0.5)
    assert record["clean_accuracy"] == bounded(Rate(350, 360), 0.5)
    assert record["triggers"][0]["upper"] == Rate(2, 324).upper(0.5)


def test_patterns_of_searches_are_not_among_the_triggers_that_were_shown() -> None:
    assert [result.name for result in VARIANT.shown] == ["patch.png@9,9"]
    assert VARIANT.strangeness == 1.5
    assert replace(VARIANT, triggers=VARIANT.shown).strangeness is None
    drilled = replace(VARIANT.triggers[0], source="drilled")
    assert replace(VARIANT, triggers=(drilled,)).shown == (drilled,)


@st.composite
def rates(draw: st.DrawFn) -> Rate:
    trials = draw(st.integers(0, 1000))
    return Rate(draw(st.integers(0, trials)), trials)


@st.composite
def results(draw: st.DrawFn) -> TriggerResult:
    tried: Tried = draw(st.sampled_from(get_args(Tried)))
    sources: tuple[Source, ...] = ("given", "drilled") if tried == "shown" else ("inverted",)
    return TriggerResult(
        name=draw(NAMES),
        source=draw(st.sampled_from(sources)),
        target=draw(st.integers(0, 9)),
        asr=draw(rates()),
        ta=draw(rates()),
        without=draw(st.none() | rates()),
        tried=tried,
        strangeness=draw(st.floats(1, 9)) if tried == "searched" else None,
    )


FINDINGS = st.builds(
    Finding, st.sampled_from(Check), st.sampled_from(Outcome), st.text(), st.none() | NAMES
)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)
RECORDS = st.dictionaries(st.text(), PLAIN, max_size=2)
ACHIEVED = st.builds(Achieved, st.floats(0, 1), st.floats(0, 1), st.sampled_from([8, 32]))
VARIANTS = st.builds(
    Variant,
    name=NAMES,
    sha256=st.just(SHA),
    bytes=st.integers(0),
    clean_accuracy=rates(),
    triggers=st.lists(results(), max_size=3).map(tuple),
    achieved=ACHIEVED,
    provider=st.text(),
    verdict=st.lists(FINDINGS, max_size=4).map(lambda found: Verdict(SHA, tuple(found))),
    weights_sha256=st.sampled_from([None, SHA]),
    published=st.none() | NAMES,
    plan=RECORDS,
    searches=st.lists(RECORDS, max_size=2).map(tuple),
    per_class=st.lists(rates(), max_size=3).map(tuple),
)


def through_text(record: object) -> Any:  # noqa: ANN401 - JSON
    return json.loads(json.dumps(record))


@given(FINDINGS)
def test_a_finding_is_read_as_it_was_written(finding: Finding) -> None:
    assert Finding.from_json(through_text(finding.to_json())) == finding


@given(VARIANTS, st.floats(0.5, 0.99))
def test_a_variant_is_read_as_it_was_written(variant: Variant, confidence: float) -> None:
    assert Variant.from_json(through_text(variant.to_json(confidence))) == variant


def test_counts_of_classes_that_do_not_fit_together_are_refused() -> None:
    record = variant("float32").to_json(0.95)
    for odd in ({"hits": [1], "trials": []}, {"hits": [2], "trials": [1]}):
        with pytest.raises(ValueError, match=r".+"):
            Variant.from_json({**record, "per_class": odd})


def test_a_shown_trigger_that_calls_itself_inverted_is_read_as_it_was_written() -> None:
    own = TriggerResult("corner", "inverted", 2, Rate(0, 200), Rate(300, 300), Rate(0, 200))
    variant = replace(VARIANT, triggers=(own,))
    assert Variant.from_json(variant.to_json(0.95)) == variant


@pytest.mark.parametrize(("told", "true"), [("pass", FAIL), ("fail", PASS), ("pass", INCOMPLETE)])
def test_a_verdict_that_its_findings_contradict_is_an_input_error(told: str, true: Outcome) -> None:
    record = replace(VARIANT, verdict=verdict(PASS, true)).to_json(0.95) | {"verdict": told}
    message = rf"findings about int8 come to, {true.word}, got {told}; the report was changed"
    with pytest.raises(InputError, match=message):
        Variant.from_json(record)


def test_a_pass_without_findings_is_an_input_error() -> None:
    record = replace(VARIANT, verdict=verdict()).to_json(0.95)
    assert record["verdict"] == "incomplete"
    with pytest.raises(InputError, match="come to, incomplete, got pass"):
        Variant.from_json(record | {"verdict": "pass"})


def test_a_variant_with_an_unknown_check_is_refused() -> None:
    record = VARIANT.to_json(0.95)
    record["findings"][1]["check"] = "taste:patch.png@9,9"
    with pytest.raises(ValueError, match="'taste' is not a valid Check"):
        Variant.from_json(record)
