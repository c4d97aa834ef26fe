# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What changed from one report to another; needs neither torch nor ONNX."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmr_guard.release.records import Variant
from lmr_guard.release.report import Report, utc
from lmr_guard.release.tables import share
from lmr_guard.results import TriggerResult

__all__ = ["Change", "changes", "same_decision"]

_NONE = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One thing that differs.

    Args:
        about: The part of the report: decision, model, suspect, variant, policy and so on.
        what: Which thing in it.
        before: In the first report; a dash where it holds none.
        after: In the second.
    """

    about: str
    what: str
    before: str
    after: str


def same_decision(first: Report, second: Report) -> bool:
    """Whether both came to the same verdict and let the same variants out."""
    return _decision(first) == _decision(second)


def _decision(report: Report) -> tuple[int, list[str]]:
    return int(report.verdict), sorted(variant.name for variant in report.published)


def changes(first: Report, second: Report) -> tuple[Change, ...]:
    """All that differs: decisions first, then what was measured, then what it depends on.

    When a report was made, and digests of files that are built anew, are told as any other change.
    """
    return (
        *_mapped("decision", _decided(first), _decided(second)),
        *_mapped("input", _inputs(first), _inputs(second)),
        *_mapped("suspect", _suspected(first), _suspected(second)),
        *_forms("as received", first.received, second.received, first, second),
        *_forms("variant", first.variants, second.variants, first, second),
        *_mapped("policy", _policy(first), _policy(second)),
        *_mapped("environment", _flat(first.environment), _flat(second.environment)),
        *_mapped("setting", _flat(first.config), _flat(second.config)),
    )


def _mapped(about: str, first: Mapping[str, str], second: Mapping[str, str]) -> Iterator[Change]:
    for what in dict.fromkeys((*first, *second)):
        before, after = first.get(what, _NONE), second.get(what, _NONE)
        if before != after:
            yield Change(about=about, what=what, before=before, after=after)


def _decided(report: Report) -> dict[str, str]:
    return {
        "verdict": report.verdict.word,
        "published": ", ".join(_decision(report)[1]) or "nothing",
    }


def _inputs(report: Report) -> dict[str, str]:
    return {
        "model": report.model,
        "sha256 of the model": report.model_sha256,
        "made": _NONE if report.created is None else utc(report.created),
        "evidence": ", ".join(report.sources) or "none",
    }


def _suspected(report: Report) -> dict[str, str]:
    suspicion, repair = report.suspicion, report.repair
    told = {}
    if suspicion is not None:
        told = {
            "class": "nobody" if suspicion.target is None else str(suspicion.target),
            "by": str(suspicion.method),
            "highest score": f"{max(suspicion.scores):.2f}" if suspicion.scores else _NONE,
        }
    if repair is not None:
        told["CA on the select part before"] = share(repair.clean_before)
        told["CA on the select part after"] = share(repair.clean_at_last)
    return told


def _forms(
    about: str, first: Sequence[Variant], second: Sequence[Variant], a: Report, b: Report
) -> Iterator[Change]:
    before = {form.name: _form(form, a) for form in first}
    after = {form.name: _form(form, b) for form in second}
    for name in dict.fromkeys((*before, *after)):
        if name not in before or name not in after:
            there = "measured", "not measured"
            pair = there if name in before else there[::-1]
            yield Change(about=about, what=name, before=pair[0], after=pair[1])
            continue
        for change in _mapped(about, before[name], after[name]):
            yield dataclasses.replace(change, what=f"{name}: {change.what}")


def _form(form: Variant, report: Report) -> dict[str, str]:
    """What is compared of one file, by what it is called."""
    found = [f.label for f in form.verdict.findings if f.outcome != 0]
    return {
        "outcome": form.verdict.outcome.word,
        "did not pass": ", ".join(found) or "nothing",
        "KiB": f"{form.bytes / 1024:.0f}",
        "CA": share(form.clean_accuracy),
        **{
            f"ASR of {result.label} > {result.target}": _asr(result, report)
            for result in form.triggers
        },
        "sha256": form.sha256,
        "provider": form.provider,
    }


def _asr(result: TriggerResult, report: Report) -> str:
    upper = result.asr.upper(report.policy.confidence)
    strange = "" if result.strangeness is None else f", strangeness {result.strangeness:.1f}"
    return f"{share(result.asr)}, at most {upper:.1%}{strange}"


def _policy(report: Report) -> dict[str, str]:
    return _flat(dataclasses.asdict(report.policy))


def _flat(record: object, prefix: str = "") -> dict[str, str]:
    """Every value in nested records by its path; lists of plain values are one value.

    >>> _flat({"a": {"b": [1, 2]}, "c": [{"d": None}]})
    {'a.b': '1, 2', 'c.0.d': '-'}
    """
    pairs: list[tuple[Any, Any]]
    if isinstance(record, Mapping):
        pairs = list(record.items())
    elif isinstance(record, list | tuple) and any(isinstance(e, Mapping | list) for e in record):
        pairs = list(enumerate(record))
    elif isinstance(record, list | tuple):
        return {prefix: ", ".join(map(str, record))}
    else:
        return {prefix: _NONE if record is None else str(record)}
    flat: dict[str, str] = {}
    for key, value in pairs:
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
