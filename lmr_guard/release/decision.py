# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What the verdicts on single variants come to under a policy; needs no torch."""

from collections.abc import Sequence

from lmr_guard.release.policy import Policy
from lmr_guard.release.records import Outcome, Variant

__all__ = ["decide", "publishable"]


def decide(variants: Sequence[Variant], policy: Policy) -> Outcome:
    """The worst of the required variants; one that is absent is INCOMPLETE."""
    worst = Outcome.PASS
    for name in policy.require:
        outcomes = [v.verdict.outcome for v in variants if v.name == name]
        worst = max(worst, *outcomes) if outcomes else max(worst, Outcome.INCOMPLETE)
    return worst


def publishable(variants: Sequence[Variant], policy: Policy) -> tuple[Variant, ...]:
    """What may ship: variants that passed, and none at all unless ``decide`` says PASS."""
    if decide(variants, policy) is not Outcome.PASS:
        return ()
    passed = tuple(v for v in variants if v.verdict.passed)
    return passed if policy.publish == "all" else (min(passed, key=lambda v: v.bytes),)
