# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What verdicts on single files come to: the worst that is required decides."""

from dataclasses import replace
from itertools import permutations

import pytest

from lmr_guard.contracts import Rate
from lmr_guard.release.decision import decide, publishable
from lmr_guard.release.policy import Policy
from lmr_guard.release.records import Check, Finding, Outcome, Variant, Verdict
from lmr_guard.results import Achieved

PASS, INCOMPLETE, FAIL = Outcome.PASS, Outcome.INCOMPLETE, Outcome.FAIL


def variant(name: str, outcome: Outcome | None, size: int = 1) -> Variant:
    """A record without a file behind it; no outcome means no findings."""
    findings = () if outcome is None else (Finding(Check.GRAPH, outcome, "r"),)
    verdict = Verdict("0" * 64, findings)
    return Variant(name, "0" * 64, size, Rate(0, 0), (), Achieved(), "p", verdict)


TWO = Policy(require=("float32", "int8"))


@pytest.mark.parametrize(
    ("float32", "int8", "expected"),
    [
        (PASS, PASS, PASS),
        (PASS, INCOMPLETE, INCOMPLETE),
        (INCOMPLETE, FAIL, FAIL),
        (PASS, None, INCOMPLETE),
        (FAIL, FAIL, FAIL),
    ],
)
def test_the_worst_required_variant_decides(
    float32: Outcome, int8: Outcome | None, expected: Outcome
) -> None:
    built = [variant("float32", float32), variant("int8", int8), variant("l1-0.6", FAIL)]
    for order in permutations(built):
        assert decide(order, TWO) is expected


def test_absent_variants_are_incomplete_and_do_not_hide_a_failure() -> None:
    assert decide([], TWO) is INCOMPLETE
    assert decide([variant("float32", PASS)], TWO) is INCOMPLETE
    assert decide([variant("float32", FAIL)], TWO) is FAIL
    assert decide([variant("int8", PASS), variant("int8", FAIL)], Policy(require=("int8",))) is FAIL


def test_only_what_passed_is_publishable_and_only_if_all_required_did() -> None:
    good = [variant("float32", PASS, 9), variant("int8", PASS, 3), variant("l1-0.6", PASS, 5)]
    bad = variant("l1-0.5", FAIL, 1)
    assert publishable([*good, bad], TWO) == tuple(good)
    smallest = replace(TWO, publish="smallest")
    assert publishable([*good, bad], smallest) == (good[1],)
    assert publishable([good[0], bad], TWO) == ()
    assert publishable([good[0], variant("int8", INCOMPLETE)], smallest) == ()
