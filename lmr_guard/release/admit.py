# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Whether a file is one that a report lets pass: asked where files come in, in under two seconds.

What is looked at are the bytes of the file and the report, nothing is measured again; neither torch
nor ONNX Runtime is loaded. A file whose data lie in other files is never admitted, for its digest
does not cover these and ``verify`` passes none such.

**A report is not signed.** Whoever can write another file *and* a report that agrees with it gets
past this check. Sign the report where it is made, and check the signature before you ask here. The
answer is about the bytes that were read: ask about the copy that will be served.
"""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

from lmr_guard.errors import ConfigError, ExportRefused, printable
from lmr_guard.files import Artifact
from lmr_guard.release.decision import publishable
from lmr_guard.release.policy import Policy
from lmr_guard.release.records import Check, Outcome, Variant
from lmr_guard.release.report import Report
from lmr_guard.untrusted import shown

__all__ = ["admit", "in_words", "parse_age"]

_DIGITS = 12  # of a digest, in messages
_AHEAD = timedelta(minutes=5)  # that the clock of another machine may be
_UNITS = {"d": "days", "h": "hours", "m": "minutes"}
_AGE = re.compile("(?P<count>[1-9][0-9]{0,5})(?P<unit>[dhm])")
# Limits of a policy: those that are looser the higher they are, and the lower.
_HIGHER = ("max_asr", "max_accuracy_drop", "max_excess", "max_strangeness", "accept_inverted")
_LOWER = ("min_trials", "confidence")


def admit(
    file: Path | str,
    report: Report | Path | str,
    *,
    policy: Policy | None = None,
    max_age: timedelta | None = None,
    now: datetime | None = None,
) -> Variant:
    """The variant that a file is, where the report lets it pass.

    Args:
        file: What is about to be served or stored.
        report: Of the run that published it, or the path of its ``report.json``.
        policy: Your own limits. A report that was judged by looser ones is refused, whatever its
            numbers are; which variants must have passed, and whether only the smallest may ship, is
            decided anew. None takes the report's own policy.
        max_age: That the report may have; None takes any.
        now: None asks the clock.

    Raises:
        ExportRefused: The file is none that the report lets pass, or the report is too old, too
            young, or judged by looser limits; one line says which.
        InputError: The file or the report cannot be read, or the report contradicts itself.
    """
    known = report if isinstance(report, Report) else Report.read(Path(report))
    found = _matched(Artifact.of(Path(file)), known)
    _require_passed(found, known)
    if policy is not None:
        _require_no_looser(known.policy, policy)
    _require_decided(found, known, policy or known.policy)
    _require_young(known, max_age, (now or datetime.now(UTC)).astimezone(UTC))
    return found


def _matched(artifact: Artifact, report: Report) -> Variant:
    """The variant with the digest of the file; of several the worst, or else a published one."""
    same = [each for each in report.variants if each.sha256 == artifact.sha256]
    if same:
        return max(same, key=lambda each: (each.verdict.outcome, each.published is not None))
    got, place = artifact.sha256[:_DIGITS], shown(artifact.path)
    for each in report.published:
        if each.published == artifact.path.name:
            raise ExportRefused(
                f"expected the bytes {each.sha256[:_DIGITS]} that were verified as "
                f"{printable(each.name)}, got {got} in {place}; the file changed after the "
                "verdict, or the report is another model's: fetch both again"
            )
    count = len(report.variants)
    raise ExportRefused(
        f"expected one of the {count} files that the report is about, got the bytes {got} in "
        f"{place}; the file changed, or the report is another model's: fetch both again"
    )


def _require_passed(variant: Variant, report: Report) -> None:
    name = printable(variant.name)
    if not variant.verdict.passed:
        why = "; ".join(map(printable, variant.verdict.reasons())) or "nothing was checked"
        raise ExportRefused(
            f"expected a passing verdict on {name}, got {variant.verdict.outcome.word}: {why}"
        )
    if Check.DIGEST not in {finding.check for finding in variant.verdict.findings}:
        raise ExportRefused(
            f"expected a finding that the digest covers all of {name}, got none; verify it anew"
        )
    if variant.published is None and report.published:
        raise ExportRefused(
            f"expected a published file, got {name}, which passed and was not published; use one "
            "of those that lie beside the report"
        )
    if variant.published is None:
        raise ExportRefused(
            f"expected a published file, got {name} of a report that published none, with the "
            f"verdict {report.verdict.word}; only a run of the guard that passes publishes"
        )


def _require_no_looser(judged: Policy, policy: Policy) -> None:
    for limit in (*_HIGHER, *_LOWER):
        was, allowed = getattr(judged, limit), getattr(policy, limit)
        if was > allowed if limit in _HIGHER else was < allowed:
            raise ExportRefused(
                f"expected a report that was judged by limits as strict as the policy's, got "
                f"{limit} = {_toml(was)} where the policy has {_toml(allowed)}; run the guard "
                "with this policy"
            )


def _toml(value: object) -> str:
    return str(value).lower()


def _require_decided(variant: Variant, report: Report, policy: Policy) -> None:
    for name in policy.require:
        outcomes = [each.verdict.outcome for each in report.variants if each.name == name]
        worst = max(outcomes, default=None)
        if worst is not Outcome.PASS:
            got = "was not built" if worst is None else f"is {worst.word}"
            raise ExportRefused(
                f"expected all variants that the policy requires to pass, got {printable(name)}, "
                f"which {got}; run the guard with this policy"
            )
    if report.verdict is not Outcome.PASS:
        raise ExportRefused(f"expected a report that passed, got verdict {report.verdict.word}")
    ships = publishable(report.variants, policy)
    if not any(each is variant for each in ships):
        raise ExportRefused(
            f"expected the smallest file that passed, {printable(ships[0].name)}, as the policy "
            f"publishes it alone, got {printable(variant.name)}; use that one"
        )


def _require_young(report: Report, max_age: timedelta | None, now: datetime) -> None:
    made = report.created
    if made is None:
        if max_age is None:
            return
        raise ExportRefused(
            f"expected a report of at most {in_words(max_age)}, got one that does not say when it "
            "was made, as older versions wrote them; run the guard again"
        )
    age, when = now - made.astimezone(UTC), made.isoformat(timespec="seconds")
    if age < -_AHEAD:
        raise ExportRefused(
            f"expected a report of the past, got one made {in_words(-age)} from now, {when}; set "
            "the clock, or run the guard again"
        )
    if max_age is not None and age > max_age:
        raise ExportRefused(
            f"expected a report of at most {in_words(max_age)}, got one made {in_words(age)} ago, "
            f"{when}; run the guard again"
        )


def parse_age(text: str) -> timedelta:
    """What ``30d``, ``12h`` or ``45m`` means: days, hours, minutes.

    Raises:
        ConfigError: The text has another form.
    """
    found = _AGE.fullmatch(text)
    if found is None:
        raise ConfigError(f"expected an age such as 30d, 12h or 45m, got {text!r}")
    return timedelta(**{_UNITS[found["unit"]]: int(found["count"])})


def in_words(age: timedelta) -> str:
    """An age in its largest whole unit, e.g. ``3 days``."""
    for unit in _UNITS.values():
        if (count := age // timedelta(**{unit: 1})) > 0:
            return f"{count} {unit if count > 1 else unit[:-1]}"
    return "less than a minute"
