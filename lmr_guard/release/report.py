# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Records to ``report.json`` and tables. ``report.schema.json`` describes the document."""

import dataclasses
import importlib.metadata
import importlib.resources
import json
import math
import platform
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from lmr_guard.contracts import Achieved, Outcome, Rate, Repair, Suspicion, TriggerResult, Variant
from lmr_guard.errors import StageError
from lmr_guard.files import atomic

__all__ = [
    "SCHEMA_VERSION",
    "document",
    "environment",
    "suspicion_record",
    "validate",
    "write",
]

SCHEMA_VERSION = "1.0"
_PACKAGES = (
    "lmr-guard",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxscript",
    "timm",
    "torch",
    "torch-pruning",
    "torchvision",
)
# What decides which int8 kernels run, and with them the rounding.
_CPU_FLAGS = frozenset(
    {
        "amx_int8",
        "asimd",
        "asimddp",
        "avx",
        "avx2",
        "avx512_vnni",
        "avx512bw",
        "avx512f",
        "avx_vnni",
    }
    | {"i8mm", "sve"}
)


def document(
    *,
    model: str,
    model_sha256: str,
    suspicion: Suspicion | None,
    repair: Repair | None,
    variants: Sequence[Variant],
    policy: Mapping[str, Any],
    outcome: Outcome,
    exit_code: int,
    environment: Mapping[str, Any],
    config: Mapping[str, Any],
    received: Sequence[Variant] = (),
    notes: Sequence[str] = (),
    drills: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The content of ``report.json``.

    Numbers that JSON cannot hold (infinite, not a number) become null.

    Args:
        model: Path of the checkpoint or ONNX file, as the user gave it.
        model_sha256: Digest of that file.
        suspicion: None where nothing was localised, as when a foreign file is audited.
        repair: None where nothing was repaired.
        variants: What was built and verified.
        policy: Fields of ``verify.Policy``; its ``confidence`` is the one of the bounds.
        outcome: Of ``verify.decide``.
        exit_code: Of the process.
        environment: Of ``environment``.
        config: Everything else that decided the run; ``policy`` is added to it.
        received: The model as received and, where asked for, its forms without the guard.
        notes: What a reader must know beside the numbers, one sentence each.
        drills: What drills on the same weights came to; see ``lmr_guard.firedrill``.
    """
    confidence = float(policy["confidence"])
    content = {
        "schema_version": SCHEMA_VERSION,
        "verdict": outcome.name.lower(),
        "exit_code": int(exit_code),
        "model": {"path": model, "sha256": model_sha256},
        "suspicion": None if suspicion is None else suspicion_record(suspicion),
        "repair": None if repair is None else _repair(repair),
        "variants": [_variant(variant, confidence) for variant in variants],
        "received": [_variant(variant, confidence) for variant in received],
        "evidence": sorted({t.source for variant in variants for t in variant.triggers}),
        "notes": notes,
        "drills": drills,
        "environment": environment,
        "config": {**config, "policy": policy},
    }
    plain: dict[str, Any] = _plain(content)
    return plain


def suspicion_record(suspicion: Suspicion) -> dict[str, object]:
    """All but the patterns, which are functions."""
    fields = dataclasses.fields(suspicion)
    return {f.name: getattr(suspicion, f.name) for f in fields if f.name != "patterns"}


def _repair(repair: Repair) -> dict[str, Any]:
    return {
        "suspect": repair.suspect,
        "clean_accuracy": {
            "before": _counts(repair.clean_before),
            "after": _counts(repair.clean_after),
        },
        "pruned_columns": repair.pruned_columns,
        "phase1_steps": repair.phase1_steps,
        "phase2_steps": repair.phase2_steps,
        "history": repair.history,
    }


def _variant(variant: Variant, confidence: float) -> dict[str, Any]:
    rate = variant.clean_accuracy
    return {
        "name": variant.name,
        "sha256": variant.sha256,
        "bytes": variant.bytes,
        "clean_accuracy": _counts(rate)
        | {"lower": rate.lower(confidence), "upper": rate.upper(confidence)},
        "triggers": [_trigger(result, confidence) for result in variant.triggers],
        "achieved": _achieved(variant.achieved),
        "provider": variant.provider,
        "verdict": variant.verdict.outcome.name.lower(),
        "findings": [
            {"check": f.check, "outcome": f.outcome.name.lower(), "reason": f.reason}
            for f in variant.verdict.findings
        ],
        "weights_sha256": variant.weights_sha256,
        "published": variant.published,
        "plan": variant.plan,
        **({"searches": list(variant.searches)} if variant.searches else {}),
    }


def _trigger(result: TriggerResult, confidence: float) -> dict[str, Any]:
    return {
        "name": result.name,
        "source": result.source,
        "target": result.target,
        **_counts(result.asr),
        "lower": result.asr.lower(confidence),
        "upper": result.asr.upper(confidence),
        "ta": _counts(result.ta),
        **({} if result.without is None else {"without": _counts(result.without)}),
        **({} if result.strangeness is None else {"strangeness": result.strangeness}),
    }


def _achieved(achieved: Achieved) -> dict[str, Any]:
    return {
        "sparsity": achieved.channel_sparsity,
        "parameter_sparsity": achieved.parameter_sparsity,
        "bits": achieved.bits,
    }


def _counts(rate: Rate) -> dict[str, int]:
    return {"hits": rate.hits, "trials": rate.trials}


def _plain(value: Any) -> Any:  # noqa: ANN401 - any record becomes plain data
    """Data of JSON's own types; anything unknown is refused by the encoder later."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def environment(device: str = "cpu") -> dict[str, Any]:
    """What the numbers depend on beside the inputs: versions, processor, device, threads."""
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    # The metadata leave out which CUDA the wheel was built for.
    versions["torch"] = str(torch.__version__)
    model, flags = _processor()
    gpu = torch.cuda.get_device_name() if device == "cuda" and torch.cuda.is_available() else None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": {"model": model, "flags": flags},
        "device": device,
        "gpu": gpu,
        "threads": torch.get_num_threads(),
        "packages": versions,
    }


def _processor(source: Path = Path("/proc/cpuinfo")) -> tuple[str, list[str]]:
    """Name and the flags that matter for int8; the flags are empty where the system tells none."""
    try:
        lines = source.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine(), []
    entries = {
        key.strip().lower(): value.strip() for key, _, value in (x.partition(":") for x in lines)
    }
    flags = set(entries.get("flags", entries.get("features", "")).split())
    return entries.get("model name", platform.machine()), sorted(flags & _CPU_FLAGS)


def validate(document: Mapping[str, Any]) -> None:
    """Checks a document against ``report.schema.json``.

    Raises:
        StageError: It does not conform; the message names the first place.
    """
    import jsonschema

    schema = json.loads(
        importlib.resources.files("lmr_guard.release")
        .joinpath("report.schema.json")
        .read_text("utf-8")
    )
    validator = jsonschema.Draft202012Validator(schema)
    problem = jsonschema.exceptions.best_match(validator.iter_errors(document))
    if problem is not None:
        place = problem.json_path
        raise StageError(
            f"expected a report that meets its schema, got {problem.message} at {place}"
        )


def write(document: Mapping[str, Any], path: Path) -> None:
    """Validates a document and writes it, complete or not at all.

    Raises:
        StageError: It does not conform, or the file system refused.
    """
    validate(document)
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic(path) as file:
        file.write(f"{text}\n".encode())
