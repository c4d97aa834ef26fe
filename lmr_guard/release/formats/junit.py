# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""A report as JUnit XML: a suite per variant, a case per finding.

What failed is a failure and what was not established an error, so that no pipeline shows it green.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from xml.etree import ElementTree as ET

from lmr_guard.contracts import Rate
from lmr_guard.errors import printable
from lmr_guard.release.formats.shared import TOOL, Case, cases, named, number
from lmr_guard.release.records import Outcome, Variant
from lmr_guard.release.report import Report, utc

__all__ = ["of"]

_TAGS = {Outcome.FAIL: "failure", Outcome.INCOMPLETE: "error"}


def of(report: Report) -> str:
    """The report as JUnit XML."""
    listed = cases(report)
    variants = dict(named(report.variants))
    everything = [case for found in listed.values() for case in found]
    root = ET.Element("testsuites", {"name": TOOL, **_counts(everything)})
    for name, found in listed.items():
        suite = ET.SubElement(root, "testsuite", {"name": name, **_counts(found)})
        if (moment := report.created) is not None:
            suite.set("timestamp", utc(moment).removesuffix("Z"))
        properties = ET.SubElement(suite, "properties")
        for key, value in _properties(report, name, variants.get(name)):
            ET.SubElement(properties, "property", name=key, value=value)
        for case in found:
            _add(suite, case)
    ET.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _add(suite: ET.Element, case: Case) -> None:
    test = ET.SubElement(
        suite, "testcase", classname=f"{TOOL}.{case.variant}", name=case.label, time="0"
    )
    if case.outcome in _TAGS:
        kind = ET.SubElement(test, _TAGS[case.outcome], message=case.reason, type=case.outcome.word)
        kind.text = case.reason


def _counts(found: Sequence[Case]) -> dict[str, str]:
    outcomes = Counter(case.outcome for case in found)
    return {
        "tests": str(len(found)),
        "failures": str(outcomes[Outcome.FAIL]),
        "errors": str(outcomes[Outcome.INCOMPLETE]),
        "skipped": "0",
        "time": "0",
    }


def _properties(report: Report, name: str, variant: Variant | None) -> Iterator[tuple[str, str]]:
    yield "model", printable(report.model)
    yield "model.sha256", report.model_sha256
    yield "report.verdict", report.verdict.word
    yield "required", str(name in map(printable, report.required)).lower()
    if variant is None:
        return
    yield "sha256", variant.sha256
    yield "bytes", str(variant.bytes)
    yield "published", printable(variant.published or "")
    confidence = report.policy.confidence
    yield from _rate("clean_accuracy", variant.clean_accuracy, confidence)
    for trigger in variant.triggers:
        yield from _rate(f"asr.{printable(trigger.label)}", trigger.asr, confidence)


def _rate(key: str, rate: Rate, confidence: float) -> Iterator[tuple[str, str]]:
    yield key, f"{rate.hits}/{rate.trials}"
    yield f"{key}.lower", number(rate.lower(confidence))
    yield f"{key}.upper", number(rate.upper(confidence))
