# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""A report as gauges in Prometheus's text format, for the textfile collector."""

from collections.abc import Iterator, Mapping

from lmr_guard.contracts import Rate
from lmr_guard.errors import printable
from lmr_guard.release.formats.shared import named, number
from lmr_guard.release.records import Variant
from lmr_guard.release.report import Report

__all__ = ["of"]

_HELP = {
    "verdict": "Of the report: 0 pass, 1 incomplete, 2 fail",
    "created_timestamp_seconds": "When the run ended",
    "published_variants": "Files that lie beside the report",
    "variant_verdict": "Of one variant: 0 pass, 1 incomplete, 2 fail",
    "variant_published": "Whether the file of the variant lies beside the report",
    "clean_accuracy": "Share of clean images put into their class",
    "clean_accuracy_lower": "Lower Wilson bound of the clean accuracy",
    "clean_accuracy_upper": "Upper Wilson bound of the clean accuracy",
    "asr_worst_upper": "Highest upper Wilson bound of the attack success rate of any known "
    "trigger, 1 where none was tried",
}


def of(report: Report) -> str:
    """The report in Prometheus's text format: every metric with its help, all of them gauges."""
    lines = []
    samples = list(_samples(report))
    for metric, told in _HELP.items():
        own = [line for name, line in samples if name == metric]
        if own:
            full = f"lmr_guard_{metric}"
            lines += [f"# HELP {full} {told}.", f"# TYPE {full} gauge", *own]
    return "".join(f"{line}\n" for line in lines)


def _samples(report: Report) -> Iterator[tuple[str, str]]:
    model = {"model": printable(report.model), "model_sha256": report.model_sha256}
    yield _sample("verdict", model, int(report.verdict))
    if (moment := report.created) is not None:
        yield _sample("created_timestamp_seconds", model, moment.timestamp())
    yield _sample("published_variants", model, len(report.published))
    for name, variant in named(report.variants):
        labels = {**model, "variant": name}
        for metric, value in _values(variant, report.policy.confidence).items():
            yield _sample(metric, labels, value)


def _values(variant: Variant, confidence: float) -> dict[str, float]:
    accuracy = variant.clean_accuracy
    rates = [trigger.asr for trigger in variant.shown] or [Rate(0, 0)]
    return {
        "variant_verdict": int(variant.verdict.outcome),
        "variant_published": int(bool(variant.published)),
        "clean_accuracy": accuracy.value,
        "clean_accuracy_lower": accuracy.lower(confidence),
        "clean_accuracy_upper": accuracy.upper(confidence),
        "asr_worst_upper": max(rate.upper(confidence) for rate in rates),
    }


def _sample(metric: str, labels: Mapping[str, str], value: float) -> tuple[str, str]:
    told = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    shown = str(value) if isinstance(value, int) else number(value)
    return metric, f"lmr_guard_{metric}{{{told}}} {shown}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
