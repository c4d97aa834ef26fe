# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""A report as an in-toto statement: which bytes were tested, by which policy, with what result.

Nothing is signed here; that is done by whoever holds the keys. ``result`` is PASSED for a verdict
that passed and FAILED for every other one: WARNED means *passed with warnings* to its readers, and
an incomplete verdict did not pass. What it lacks stands in ``warnedTests``.
"""

import base64
import hashlib
from typing import Any

from lmr_guard.errors import printable
from lmr_guard.release.formats.shared import (
    Beside,
    as_json,
    base_name,
    cases,
    file_name,
    named,
    policy_json,
    version,
)
from lmr_guard.release.page import PAGE
from lmr_guard.release.records import Outcome, Variant
from lmr_guard.release.report import Report, utc

__all__ = ["PREDICATE", "STATEMENT", "configuration", "of", "result", "subjects"]

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://in-toto.io/attestation/test-result/v0.1"


def of(report: Report, beside: Beside | None = None) -> str:
    """The report as an in-toto statement, without a signature.

    Args:
        report: Where it passed, the subjects are the published files, or the one that was audited;
            where not, all files that were measured, or the model where there are none.
        beside: What lies beside the report.
    """
    around = beside or Beside()
    listed = cases(report)
    about = {name for name, _ in _tested(report)}
    tests: dict[Outcome, list[str]] = {outcome: [] for outcome in Outcome}
    for name, found in listed.items():
        for case in found:
            # A statement that passed is not about what was withheld.
            if report.verdict is not Outcome.PASS or name in about:
                tests[case.outcome].append(f"{name}/{case.label}")
    statement = {
        "_type": STATEMENT,
        "subject": [
            {"name": printable(name), "digest": {"sha256": digest}}
            for name, digest in subjects(report, around)
        ],
        "predicateType": PREDICATE,
        "predicate": {
            "result": result(report),
            "configuration": configuration(report, around),
            "passedTests": tests[Outcome.PASS],
            "warnedTests": tests[Outcome.INCOMPLETE],
            "failedTests": tests[Outcome.FAIL],
        },
    }
    return as_json(statement)


def result(report: Report) -> str:
    """PASSED or FAILED; see the module."""
    return "PASSED" if report.verdict is Outcome.PASS else "FAILED"


def subjects(report: Report, beside: Beside) -> list[tuple[str, str]]:
    """Name and digest of each file that the statement is about, companions and the page too."""
    found = []
    for _, variant in _tested(report):
        name = file_name(variant) if report.received else base_name(report.model)
        found.append((name, variant.sha256))
        found += beside.companions.get(name, {}).items()
    found = found or [(base_name(report.model), report.model_sha256)]
    return found if beside.page_sha256 is None else [*found, (PAGE, beside.page_sha256)]


def _tested(report: Report) -> list[tuple[str, Variant]]:
    everything = named(report.variants)
    if report.verdict is not Outcome.PASS:
        return everything
    return [(n, v) for n, v in everything if v.published] or everything


def configuration(report: Report, beside: Beside) -> list[dict[str, Any]]:
    """What was asked for: the policy with its content, and the report where its digest is known."""
    policy = policy_json(report)
    annotations = {"lmr-guard": version(report)}
    if (moment := report.created) is not None:
        annotations["created"] = utc(moment)
    found: list[dict[str, Any]] = [
        {
            "name": "policy",
            "digest": {"sha256": hashlib.sha256(policy).hexdigest()},
            "content": base64.b64encode(policy).decode(),
            "mediaType": "application/json",
            "annotations": annotations,
        }
    ]
    if beside.report_sha256 is not None:
        digest = {"sha256": beside.report_sha256}
        found.append({"name": "report.json", "digest": digest, "mediaType": "application/json"})
    return found
