# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What a suspicion, or the lack of one, means for the files: sentences for readers of a report."""

from collections.abc import Sequence

from lmr_guard.release.records import Check, Finding, Outcome, Variant
from lmr_guard.results import Repair, Suspicion

__all__ = ["refused", "remarks"]


_ALONE = (
    "Suspects were looked for in the model as received alone, as the quick budget has it: a "
    "backdoor that wakes when it is compressed can be refused by the search of each file, and is "
    "not repaired."
)


def refused(variant: Variant) -> Variant:
    """The same variant, incomplete because nobody was suspected."""
    reason = "no class was suspected, and the run was asked to refuse then"
    return variant.with_finding(Finding(Check.SUSPECT, Outcome.INCOMPLETE, reason))


def remarks(
    suspicion: Suspicion, repair: Repair | None, sure: float, *, forms: bool = True
) -> list[str]:
    """What a reader must know beside the numbers, one sentence or two each.

    Args:
        suspicion: What ``localize`` came to.
        repair: What was done then; None where nothing was.
        sure: Score from which on a class is strange; see ``LocalizeSettings``.
        forms: Whether compressed forms were searched too.
    """
    if repair is not None:
        repelled = _scored(suspicion, repair.suspects[1:])
        left = [
            k
            for k, score in enumerate(suspicion.scores)
            if k not in repair.suspects and score >= sure
        ]
        told = []
        if repelled:
            why = "stands out, as with several backdoors" if suspicion.scores else "was named"
            told.append(
                f"More than one class {why}. After the first these were repelled as well: "
                f"{repelled}."
            )
        if left:
            told.append(
                "More classes stand out than were repelled; the audit decides about the others: "
                f"{_scored(suspicion, left)}."
            )
        return told
    if not suspicion.abstained:
        return ["No repair was asked for: the variants are those of the model as received."]
    because = "" if suspicion.hindrance is None else f" ({suspicion.hindrance})"
    alone = [] if forms or suspicion.hindrance is not None else [_ALONE]
    return [
        f"No class was suspected{because}, so nothing was repelled; the variants were audited all "
        "the same.",
        *alone,
    ]


def _scored(suspicion: Suspicion, classes: Sequence[int]) -> str:
    """With scores, where they were looked for."""
    scores = suspicion.scores
    return ", ".join(f"{k} ({scores[k]:.1f})" if scores else str(k) for k in classes)
