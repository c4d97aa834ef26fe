# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""A report as SARIF 2.1.0: a rule per check, a result per finding that did not pass.

A result's level must be ``none`` unless its kind is ``fail``, so what was not established is a
``fail`` at level ``warning``; code scanning shows it.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from lmr_guard.errors import printable
from lmr_guard.release.formats.shared import (
    REQUIRED,
    TOOL,
    Case,
    as_json,
    base_name,
    cases,
    file_name,
    home,
    named,
    relative_uri,
    version,
)
from lmr_guard.release.records import Check, Outcome, Variant
from lmr_guard.release.report import Report, utc

__all__ = ["RULES", "SCHEMA", "of"]

SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)


class _Rule(NamedTuple):
    name: str
    short: str
    advice: str


RULES: Mapping[str, _Rule] = {
    Check.DIGEST: _Rule(
        "MeasuredBytesAreStagedBytes",
        "The bytes that were measured are the bytes that were staged, all in one file.",
        "Something changed the file, or part of it lies in files that the digest does not cover. "
        "Save the model as one file and run again.",
    ),
    Check.PROVIDER: _Rule(
        "RanWhereAsked",
        "ONNX Runtime ran the file with the execution provider that was asked for.",
        "The numbers are those of another provider. Install its runtime, or ask for the one that "
        "will serve the file.",
    ),
    Check.GRAPH: _Rule(
        "OrdinaryGraph",
        "The graph holds only what exporters write for feed-forward classifiers.",
        "An operator may send some images another way, which measurements would miss. Export the "
        "network again without it.",
    ),
    Check.DETERMINISTIC: _Rule(
        "SameAnswerTwice",
        "The same images give the same logits twice.",
        "The file is random at inference. Export the network in evaluation mode.",
    ),
    Check.INDEPENDENT: _Rule(
        "AnswersOneImageAtATime",
        "Each image gets its answer whatever else is in its batch.",
        "The file answers by its batch or by chance. Export the network in evaluation mode, and "
        "ask where the model comes from.",
    ),
    Check.LOGITS: _Rule(
        "FiniteOutputs",
        "Outputs are finite, and a single class leads.",
        "Numbers overflow or are rounded until classes tie. Export the network without its last "
        "function.",
    ),
    Check.ACHIEVED: _Rule(
        "CompressedAsAsked",
        "Compression removed what was asked for.",
        "The file is not the form that it is called. Look at the recipe and the notes of the "
        "report.",
    ),
    Check.TRIALS: _Rule(
        "EnoughImages",
        "Enough images stand behind each number.",
        "Give more clean images, or more triggered ones of other classes than the target.",
    ),
    Check.ACCURACY: _Rule(
        "AccuracyKept",
        "Clean accuracy stays near that of the model as received.",
        "The file lost more clean accuracy than the policy allows. Compress less, or give more "
        "clean images to learn from.",
    ),
    Check.TRIGGERS: _Rule(
        "EvidenceAboutTriggers",
        "There is evidence about triggers.",
        "No trigger was tried, or none that the policy accepts as evidence. Name known triggers, "
        "or let the policy accept searches.",
    ),
    Check.ASR: _Rule(
        "TriggerSuppressed",
        "The attack success rate of each known trigger stays below the limit of the policy.",
        "The trigger still works in this file, or too few images were tried to tell. Do not ship "
        "it; repair the class with the trigger's target named, or give more images.",
    ),
    Check.ELSEWHERE: _Rule(
        "NoOtherClassGains",
        "No class other than its target gains by a known trigger.",
        "The trigger sends images to another class than the one that was named. Name that class "
        "and run again.",
    ),
    Check.EXCESS: _Rule(
        "FoundPatternSuppressed",
        "A pattern that was found on the model as received no longer reaches its class.",
        "The pattern still works in this file, or too few images were tried to tell. Do not ship "
        "it; name the class as suspect and run again.",
    ),
    Check.LISTENS: _Rule(
        "NoClassIsStrangelyNear",
        "A search of the file itself finds no class that needs strangely small patterns.",
        "One class needs far less of a pattern than the others, as after a backdoor, or no search "
        "could tell. Do not ship it; look at the pattern's class, or name known triggers.",
    ),
    Check.AGREES: _Rule(
        "FileDoesWhatItsNetworkDoes",
        "Patterns that the search found do to the file what they do to the network.",
        "What was searched is not what would ship. Export the network again; of an INT8 file, "
        "calibrate on more images.",
    ),
    Check.CHANCE: _Rule(
        "NoRandomPatternCarries",
        "No weak pattern drawn at random sends the images of all classes to one.",
        "Something broad, as any bright patch in a corner, sends images to one class while its "
        "like does not. Do not ship the file; look at that class and pattern.",
    ),
    Check.SUSPECT: _Rule(
        "SomebodyWasSuspected",
        "A class was suspected and repaired, where the run asks for that.",
        "Localisation abstained and the run refuses in that case. Name the class, or let the "
        "audit decide.",
    ),
    REQUIRED: _Rule(
        "RequiredVariantIsThere",
        "Each variant that the policy requires was built and checked.",
        "Build the variant, or take it off the policy's list.",
    ),
}
_LEVELS = {Outcome.FAIL: "error", Outcome.INCOMPLETE: "warning"}
# The places of the rules in the driver's list.
_INDEX = {check: place for place, check in enumerate(RULES)}


def of(report: Report) -> str:
    """The report as SARIF."""
    variants = dict(named(report.variants))
    results = [
        _result(report, case, variants.get(name))
        for name, found in cases(report).items()
        for case in found
        if case.outcome in _LEVELS
    ]
    run: dict[str, Any] = {
        "tool": {"driver": _driver(report)},
        "automationDetails": {"id": f"{TOOL}/{_model(report).replace('/', '_')}/"},
        "invocations": [_invocation(report)],
        "results": results,
        "properties": {
            "verdict": report.verdict.word,
            "model": printable(report.model),
            "modelSha256": report.model_sha256,
            "notes": [printable(note) for note in report.notes],
        },
    }
    return as_json({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]})


def _model(report: Report) -> str:
    return printable(base_name(report.model)) or "model"


def _driver(report: Report) -> dict[str, Any]:
    driver = {"name": TOOL, "version": version(report), "rules": [*map(_rule, RULES)]}
    url = home()
    return driver if url is None else {**driver, "informationUri": url}


def _rule(check: str) -> dict[str, Any]:
    name, short, advice = RULES[check]
    return {
        "id": f"{TOOL}/{check}",
        "name": name,
        "shortDescription": {"text": short},
        "fullDescription": {"text": short},
        "help": {"text": f"{short} {advice}", "markdown": f"{short}\n\n{advice}"},
        "defaultConfiguration": {"level": "error"},
        "properties": {"tags": ["security", "machine-learning"]},
    }


def _invocation(report: Report) -> dict[str, Any]:
    # A finding is no failure of the tool, and neither is a refusal.
    invocation: dict[str, Any] = {
        "executionSuccessful": True,
        "exitCode": int(report.exit_code),
    }
    if (moment := report.created) is not None:
        invocation["endTimeUtc"] = utc(moment)
    return invocation


def _result(report: Report, case: Case, variant: Variant | None) -> dict[str, Any]:
    properties = {"variant": case.variant, "outcome": case.outcome.word}
    if case.about is not None:
        properties["about"] = printable(case.about)
    if variant is not None:
        properties["sha256"] = variant.sha256
    # Code scanning reads a single fingerprint, by the name that it gave its own.
    identity = _fingerprint(case)
    return {
        "ruleId": f"{TOOL}/{case.check}",
        "ruleIndex": _INDEX[case.check],
        "kind": "fail",
        "level": _LEVELS[case.outcome],
        "message": {"text": _harmless(f"{case.variant}: {case.reason}")},
        "locations": [{"physicalLocation": _place(report, variant)}],
        "partialFingerprints": {
            "primaryLocationLineHash": f"{identity}:1",
            "lmrGuardFinding/v1": identity,
        },
        "properties": properties,
    }


def _place(report: Report, variant: Variant | None) -> dict[str, Any]:
    path = report.model if variant is None or not report.received else file_name(variant)
    # Readers of text want a line; of a model there is but the first.
    region = {"startLine": 1, "startColumn": 1, "endLine": 1, "endColumn": 1}
    return {"artifactLocation": {"uri": relative_uri(path)}, "region": region}


def _fingerprint(case: Case) -> str:
    """The same for the same finding of every run, whatever its numbers."""
    identity = json.dumps([case.variant, case.check, case.about, case.count])
    return hashlib.sha256(identity.encode()).hexdigest()


def _harmless(text: str) -> str:
    """A message without links or placeholders: a name must bring neither."""
    return re.sub(r"\{(?=\d+\})", "{ ", text.replace("](", "] ("))
