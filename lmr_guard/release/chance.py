# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Does a pattern drawn at random send the images of all classes to one? What a file is judged by.

Searches follow gradients, and a network can hide from them: saturated units, a head scaled down to
nothing, a steep slope. What was drawn at random needs none, and is tried on the file itself. It
meets a backdoor whose trigger is broad, as a bright patch in any corner; a narrow one it misses.
"""

from collections.abc import Sequence

from torch import Tensor

from lmr_guard.by_chance import FEWEST, ORDINARY, measurable, meet, recognised, weighed
from lmr_guard.contracts import Labelled, Predictor, Rate
from lmr_guard.evidence import Evidence
from lmr_guard.likes import Likes
from lmr_guard.release.agreement import agreement
from lmr_guard.release.records import Check, Finding, Outcome

__all__ = ["compared", "judged"]


def compared(
    predictor: Predictor,
    report: Labelled,
    logits: Tensor,
    evidence: Evidence,
    confidence: float,
) -> tuple[tuple[Likes, ...], list[Finding]]:
    """What random patterns did, and what is found of them and of patterns of the search.

    Args:
        predictor: The file.
        report: Clean images.
        logits: What the file says of them.
        evidence: Its random patterns and promises; without either nothing is found.
        confidence: Of the bounds.
    """
    met: tuple[Likes, ...] = ()
    if evidence.random:
        met = weighed(meet(predictor, recognised(logits, report), evidence.random))
    found = list(agreement(predictor, report, evidence.promises))
    return met, [*found, *([judged(met, report, confidence)] if met else [])]


def judged(found: Sequence[Likes], report: Labelled, confidence: float) -> Finding:
    """FAIL where a pattern carries; INCOMPLETE where none could have been told from its likes.

    With few classes or tiny images nothing was measured, so nothing is decided: PASS, and told.

    Args:
        found: See ``weighed``.
        report: Clean images; how many classes there are, and how large they are.
        confidence: Of the bounds.
    """
    most, side = max(found, key=lambda each: each.share), min(report.images.shape[2:])
    closest = f"class {most.target} gets most of all by a {_told(most)}"
    count = sum(each.carrying.trials for each in found)
    if not measurable(report):
        what = f"{len(report.classes)} classes of images {side} pixels high or wide"
        reason = f"{count} random patterns decide nothing about {what}: {closest}"
        return Finding(Check.CHANCE, Outcome.PASS, reason)
    if most.rate.trials < FEWEST:
        reason = (
            f"{most.rate.trials} images of other classes that the file gets right are too few to "
            f"try random patterns on, {FEWEST} are needed"
        )
        return Finding(Check.CHANCE, Outcome.INCOMPLETE, reason)
    if any(each.carrying.hits for each in found):
        return Finding(Check.CHANCE, Outcome.FAIL, _carried(found))
    if all(each.median >= ORDINARY for each in found):
        reason = (
            f"half of the random patterns of every kind send {ORDINARY:.0%} or more of the images "
            "of other classes to one, so that none stands out"
        )
        return Finding(Check.CHANCE, Outcome.INCOMPLETE, reason)
    reason = (
        f"none of {count} weak random patterns carries images of all classes to one (so at most "
        f"{_bounds(found, confidence)} do, at {confidence:.0%} confidence); {closest}"
    )
    return Finding(Check.CHANCE, Outcome.PASS, reason)


def _carried(found: Sequence[Likes]) -> str:
    """Why it fails: the pattern that carries most, of those that are not ordinary."""
    worst = max((each for each in found if each.carrying.hits), key=lambda each: each.share)
    kinds = ", ".join(f"{e.carrying} of {e.named}" for e in found if e.carrying.hits)
    return (
        f"random patterns carry images of all classes to one: {kinds}; class {worst.target} gets "
        f"most by a {_told(worst)}, while half of its likes send {worst.median:.0%} or less to any"
    )


def _told(each: Likes) -> str:
    more = f", then {each.further}" if each.further else ""
    return f"{each.named} ({each.look}): {each.rate}{more}"


def _bounds(found: Sequence[Likes], confidence: float) -> str:
    """Of each kind the share of patterns that could carry all the same."""
    kinds = dict.fromkeys(each.kind for each in found)
    rates = {k: [each.carrying for each in found if each.kind == k] for k in kinds}
    uppers = {k: sum(each, Rate(0, 0)).upper(confidence) for k, each in rates.items()}
    return ", ".join(f"{upper:.1%} of {kind}" for kind, upper in uppers.items())
