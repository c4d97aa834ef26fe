# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""A report in sentences: what was decided and why, and what was not tested."""

from collections.abc import Iterator, Sequence

from lmr_guard.errors import printable
from lmr_guard.release.page.reading import class_name, entry
from lmr_guard.release.records import Finding, Outcome, Variant
from lmr_guard.release.report import Report
from lmr_guard.release.tables import share
from lmr_guard.results import Method, TriggerResult

__all__ = ["HEADLINES", "decided", "limits", "policy_lines", "reasons", "untested", "worst"]

HEADLINES = {
    Outcome.PASS: "Passed",
    Outcome.INCOMPLETE: "Too little was evaluated",
    Outcome.FAIL: "Refused",
}
"""The verdict in the words of a person."""

_LIMITS = (
    "More than three target classes, or triggers that work only on images of certain classes: a "
    "pattern must work on images of all others.",
    "Triggers that no search can see. The searches see patches, additive patterns and smooth "
    "warps, and random patterns broad triggers; clean-label, image-wide and sample-specific "
    "triggers often escape them.",
    "An attacker who trained against this very guard.",
    "What a serving system adds to the file later, and who wrote this report: it is not signed.",
)

_POLICY = {
    "max_asr": "limit for the upper bound of the ASR of each known trigger",
    "max_accuracy_drop": "clean accuracy that may be lost against the model as received",
    "min_trials": "images that each number must rest on",
    "confidence": "of all bounds in this report",
    "require": "variants that must pass, or nothing is published",
    "publish": "which of the variants that passed are published",
    "max_excess": "what a found pattern may still reach above the same images without it",
    "max_strangeness": "how far one class may stand out by needing less of a pattern",
    "accept_inverted": "whether searches for triggers alone are evidence enough",
}


def worst(report: Report) -> TriggerResult | None:
    """Of the triggers shown to what ships, or else to all variants, the one that reaches most."""
    confidence = report.policy.confidence
    shown = [t for v in report.published or report.variants for t in v.shown]
    return max(shown, key=lambda result: result.asr.upper(confidence), default=None)


def decided(report: Report) -> tuple[str, ...]:
    """The verdict in a few sentences; the first says it all."""
    return (_verdict(report), _rests(report))


def _verdict(report: Report) -> str:
    required = [v for v in report.variants if v.name in report.required]
    if report.verdict is Outcome.PASS:
        if not report.received:
            return "Passed: this file keeps every limit of the policy."
        shipped = report.published
        some = _listed([v.name for v in shipped])
        count = f"{len(shipped)} of {_asked(report)} variants"
        return f"Passed: {count} {'was' if len(shipped) == 1 else 'were'} published ({some})."
    why = _first_reason(required, report.verdict) or _missing(report)
    # An audit of one file publishes nothing, whatever it comes to.
    ending = " Nothing was published." if report.received else ""
    return f"{HEADLINES[report.verdict]}: {why}{ending}"


def reasons(report: Report) -> tuple[tuple[str, Finding], ...]:
    """Every check that did not pass, with the name of its variant."""
    return tuple(
        (variant.name, finding)
        for variant in report.variants
        for finding in variant.verdict.findings
        if finding.outcome is not Outcome.PASS
    )


def _asked(report: Report) -> int:
    recipes = entry(report.config, "recipes")
    return len(recipes) if isinstance(recipes, list) else len(report.variants)


def _first_reason(required: Sequence[Variant], outcome: Outcome) -> str:
    """Which of the required variants came to the verdict, and the first reason."""
    bad = [v for v in required if v.verdict.outcome is outcome]
    if not bad:
        return ""
    found = [f for f in bad[0].verdict.findings if f.outcome is outcome]
    why = found[0].reason if found else "nothing was checked"
    others = f", and {len(bad) - 1} more" if len(bad) > 1 else ""
    return f"{printable(bad[0].name)}{others}: {printable(why)}."


def _missing(report: Report) -> str:
    built = {v.name for v in report.variants}
    absent = [name for name in report.required if name not in built]
    return f"{_listed(absent)} must pass and could not be measured." if absent else ""


def _rests(report: Report) -> str:
    result = worst(report)
    if result is None:
        if any(v.triggers for v in report.variants):
            return "No known trigger was tried; this rests on searches for triggers alone."
        return "No trigger was tried at all."
    policy = report.policy
    upper = result.asr.upper(policy.confidence)
    among = "what was published" if report.published else "what was measured"
    return (
        f"Of {among}, the trigger that works best ({printable(result.name)}) sends "
        f"{share(result.asr)} of the images of other classes into class "
        f"{class_name(report, result.target)}, at most {upper:.1%} at {policy.confidence:.0%} "
        f"confidence; the limit is {policy.max_asr:.1%}."
    )


def _listed(names: Sequence[str], most: int = 6) -> str:
    shown = [printable(name) for name in names[:most]]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(shown) + more if shown else "none"


def untested(report: Report) -> tuple[str, ...]:
    """What this very run left out, a sentence each; see ``limits`` for what every run does."""
    return (
        *_about_triggers(report),
        *_about_margins(report),
        *_about_classes(report),
        *_about_files(report),
        *_about_drills(report),
    )


def _about_triggers(report: Report) -> Iterator[str]:
    if "given" not in report.sources:
        yield "No trigger that somebody knew was tried on any file."
    silent = [
        v.name
        for v in report.variants
        if not any(result.tried == "searched" for result in v.triggers)
    ]
    if silent:
        yield f"No search for unknown triggers was made on: {_listed(silent)}."


def _about_margins(report: Report) -> Iterator[str]:
    tried = [result for variant in report.variants for result in variant.triggers]
    if any(result.margins is not None for result in tried):
        yield (
            "How many images are certified safe, whatever the direction of a shift of their "
            "features: that bound needs the network before its head, and a file puts out no more "
            "than logits. The margins are those of images that were tried."
        )
    elif tried:
        yield "How near triggers bring images to their class: the report holds no margins."


def _about_classes(report: Report) -> Iterator[str]:
    suspicion = report.suspicion
    if suspicion is None or suspicion.method is Method.NOT_LOOKED_FOR:
        yield "No class was looked for, and nothing was repaired."
    elif suspicion.method is Method.NAMED:
        yield "Whether another class is suspect: the user named one, and none was searched."
    elif suspicion.hindrance is not None:
        yield f"Which class is suspect could not be told: {printable(suspicion.hindrance)}."
    else:
        searched = {
            index
            for record in suspicion.evidence
            if entry(record, "by") == "inversion"
            for index in _whole(entry(record, "classes"))
        }
        left = len(suspicion.scores) - len(searched)
        if searched and left > 0:
            yield f"{left} of {len(suspicion.scores)} classes were not searched for patterns."


def _whole(values: object) -> list[int]:
    return [v for v in values if isinstance(v, int)] if isinstance(values, list | tuple) else []


def _about_files(report: Report) -> Iterator[str]:
    built = {v.name for v in report.variants}
    if absent := [name for name in report.required if name not in built]:
        yield f"The policy requires what was not measured: {_listed(absent)}."
    elif (fewer := _asked(report) - len(report.variants)) > 0:
        yield f"{fewer} of {_asked(report)} variants could not be built; see the notes."
    known = {v.name for v in report.received}
    unknown = [v.name for v in report.variants if v.name not in known]
    if report.received and unknown:
        yield f"What the unrepaired model does in these forms: {_listed(unknown)} (see --compare)."
    if any(v.achieved.bits == 8 for v in report.variants):
        model = entry(report.environment, "cpu", "model")
        yield f"How int8 files behave on another processor than {printable(str(model))}."


def _about_drills(report: Report) -> Iterator[str]:
    if not report.drills:
        yield "No fire drill on these weights is attached (see lmr-guard drill)."


def limits() -> tuple[str, ...]:
    """What no run of this tool tests, a sentence each."""
    return _LIMITS


def policy_lines(report: Report) -> tuple[tuple[str, str, str], ...]:
    """Name, value and meaning of every limit."""
    return tuple(
        (name, _spelled(getattr(report.policy, name)), told) for name, told in _POLICY.items()
    )


def _spelled(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(printable(str(each)) for each in value)
    return f"{value:g}" if isinstance(value, float) else str(value).lower()
