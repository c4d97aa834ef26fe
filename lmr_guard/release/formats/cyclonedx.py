# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""A report as a CycloneDX 1.6 bill of materials of machine learning models."""

import json
import uuid
from collections.abc import Iterator
from typing import Any

from lmr_guard.contracts import Rate
from lmr_guard.errors import printable
from lmr_guard.release.formats.shared import (
    TOOL,
    Beside,
    as_json,
    base_name,
    file_name,
    number,
    relative_uri,
    version,
)
from lmr_guard.release.records import Outcome, Variant
from lmr_guard.release.report import Report, utc
from lmr_guard.results import TriggerResult

__all__ = ["SCHEMA", "of"]

SCHEMA = "http://cyclonedx.org/schema/bom-1.6.schema.json"

_MODEL = "machine-learning-model"
_RECEIVED = "received"
_LIMITS = (
    "A pass says: suppressed for the triggers that were tried, in these files, at these bounds. "
    "It says nothing about other triggers.",
    "Numbers are those of the machine and the execution provider that measured them.",
)


def of(report: Report, beside: Beside | None = None) -> str:
    """The report as a bill of materials: the model as received, and each published file.

    Args:
        report: What is withheld is no part of it.
        beside: What lies beside the report.
    """
    around = beside or Beside()
    components: list[dict[str, Any]] = []
    dependencies: list[dict[str, Any]] = [{"ref": _RECEIVED}]
    for index, variant in enumerate(report.published):
        ref = f"variant-{index}"
        components.append(_published(report, ref, variant))
        held = [
            _companion(f"{ref}-data-{place}", file, digest)
            for place, (file, digest) in enumerate(
                around.companions.get(file_name(variant), {}).items()
            )
        ]
        components += held
        needs = [_RECEIVED, *(each["bom-ref"] for each in held)]
        dependencies.append({"ref": ref, "dependsOn": needs})
    document: dict[str, Any] = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": _metadata(report, around),
        "components": components,
        "dependencies": dependencies,
    }
    # The same report gives the same number, another report another one.
    identity = json.dumps([document, report.to_json()], sort_keys=True)
    serial = uuid.uuid5(uuid.NAMESPACE_URL, identity)
    return as_json({"$schema": SCHEMA, "serialNumber": f"urn:uuid:{serial}", **document})


def _metadata(report: Report, beside: Beside) -> dict[str, Any]:
    tool = {"type": "application", "name": TOOL, "version": version(report)}
    moment = report.created
    when = {} if moment is None else {"timestamp": utc(moment)}
    return {
        **when,
        "tools": {"components": [tool]},
        "component": _received(report, beside),
        "properties": _properties(verdict=report.verdict.word),
    }


def _received(report: Report, beside: Beside) -> dict[str, Any]:
    """The model that was handed in, with what was measured on itself."""
    name = printable(base_name(report.model))
    component = _component(_RECEIVED, name, report.model_sha256)
    measured = report.received or report.variants
    if measured:
        component["modelCard"] = _card(report, measured[0])
    if beside.report_sha256 is not None:
        component["externalReferences"] = [
            {
                "type": "evidence",
                "url": "report.json",
                "hashes": _hashes(beside.report_sha256),
            }
        ]
    return component


def _published(report: Report, ref: str, variant: Variant) -> dict[str, Any]:
    name = printable(file_name(variant))
    received = _component(
        f"{ref}-ancestor", printable(base_name(report.model)), report.model_sha256
    )
    return {
        **_component(ref, name, variant.sha256),
        "modelCard": _card(report, variant),
        "pedigree": {"ancestors": [received]},
        "externalReferences": [{"type": "distribution", "url": relative_uri(file_name(variant))}],
        "properties": _properties(
            variant=printable(variant.name),
            verdict=variant.verdict.outcome.word,
            bytes=str(variant.bytes),
            bits=str(variant.achieved.bits),
            channel_sparsity=number(variant.achieved.channel_sparsity),
        ),
    }


def _companion(ref: str, name: str, digest: str) -> dict[str, Any]:
    return {**_component(ref, printable(name), digest), "type": "file"}


def _component(ref: str, name: str, digest: str) -> dict[str, Any]:
    return {"type": _MODEL, "bom-ref": ref, "name": name or "model", "hashes": _hashes(digest)}


def _hashes(digest: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": digest}]


def _properties(**values: str) -> list[dict[str, str]]:
    return [{"name": f"{TOOL}:{name}", "value": value} for name, value in values.items()]


def _card(report: Report, variant: Variant) -> dict[str, Any]:
    failed = [
        printable(finding.reason)
        for finding in variant.verdict.findings
        if finding.outcome is not Outcome.PASS
    ]
    return {
        "modelParameters": {"approach": {"type": "supervised"}, "task": "image classification"},
        "quantitativeAnalysis": {"performanceMetrics": list(_metrics(report, variant))},
        "considerations": {
            "technicalLimitations": [*_LIMITS, *map(printable, report.notes), *failed],
        },
    }


def _metrics(report: Report, variant: Variant) -> Iterator[dict[str, Any]]:
    confidence = report.policy.confidence
    accuracy = variant.clean_accuracy
    yield _metric("clean accuracy", f"{accuracy.trials} clean images", accuracy, confidence)
    for trigger in variant.triggers:
        slice_ = f"{trigger.asr.trials} images of other classes than {trigger.target}"
        yield _metric("attack success rate", f"{_told(trigger)}; {slice_}", trigger.asr, confidence)


def _told(trigger: TriggerResult) -> str:
    return f"trigger {printable(trigger.label)} ({trigger.source})"


def _metric(kind: str, slice_: str, rate: Rate, confidence: float) -> dict[str, Any]:
    return {
        "type": kind,
        "value": number(rate.value),
        "slice": slice_,
        "confidenceInterval": {
            "lowerBound": number(rate.lower(confidence)),
            "upperBound": number(rate.upper(confidence)),
        },
    }
