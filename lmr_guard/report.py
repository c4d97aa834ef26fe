# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Records to ``report.json`` and tables. ``report.schema.json`` describes the document."""

import dataclasses
import importlib.metadata
import importlib.resources
import json
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lmr_guard.artifact import atomic
from lmr_guard.contracts import (
    Achieved,
    Outcome,
    Rate,
    Repair,
    Suspicion,
    TriggerResult,
    Variant,
)
from lmr_guard.errors import StageError

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "SCHEMA_VERSION",
    "document",
    "environment",
    "share",
    "summary_line",
    "suspect_line",
    "suspicion_record",
    "table",
    "tables",
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
_STYLES = {"pass": "green", "incomplete": "yellow", "fail": "red"}


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
        drills: What drills on the same weights came to; see ``lmr_guard.drill``.
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
        importlib.resources.files("lmr_guard").joinpath("report.schema.json").read_text("utf-8")
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


def summary_line(document: Mapping[str, Any]) -> str:
    """The whole report in one line: verdict, what may ship, the worst ASR, what that rests on."""
    variants = document["variants"]
    published = [v for v in variants if v["published"]]
    # Where nothing was received, as in an audit of one file, nothing could have been published.
    received = document["received"]
    rows = [t for v in published or variants for t in _known(v)]
    if rows:
        worst = max(rows, key=lambda t: t["upper"])
        asr = f"worst ASR {share(worst)}, at most {worst['upper']:.1%} ({worst['name']})"
        kinds = ", ".join(sorted({t["source"] for t in rows}))
        tried = len({t["name"] for t in rows})
        rests = f"rests on {tried} trigger{'s' * (tried != 1)} ({kinds}), says nothing about others"
    else:
        asr = "no ASR measured"
        rests = "rests on a search for triggers" if document["evidence"] else "no trigger was tried"
    strange = [
        t["strangeness"] for v in published or variants for t in v["triggers"] if "strangeness" in t
    ]
    if strange:
        rests += f"; a search for those came to {max(strange):.1f}"
    asked = len(document["config"].get("recipes", variants))
    shipped = f"{len(published)} of {asked} variants published; " if received else ""
    return f"{document['verdict'].upper()}: {shipped}{asr}; {rests}"


def suspect_line(document: Mapping[str, Any]) -> str | None:
    """Who was suspected and what the repair cost; None where nobody was looked for."""
    suspicion, repair = document["suspicion"], document["repair"]
    if suspicion is None or (suspicion["target"] is None and not suspicion["scores"]):
        return None
    target = suspicion["target"]
    if target is None:
        return "suspect: nobody, localize abstained; nothing was repaired"
    classes = document["config"].get("classes", ())
    name = f" ({classes[target]})" if target < len(classes) else ""
    found = f"suspect: class {target}{name}, {suspicion['method']}"
    if repair is None:
        return f"{found}; nothing was repaired"
    before, after = (share(repair["clean_accuracy"][when]) for when in ("before", "after"))
    return f"{found}; repaired, CA on the select part {before} -> {after}"


def tables(document: Mapping[str, Any]) -> "list[Table]":
    """Tables for a terminal of 100 columns: as received, the variants, what did not pass."""
    found = []
    if document["received"]:
        found.append(_measured("The model as received", document["received"], judged=False))
    found.append(_measured("Variants", document["variants"], judged=True))
    reasons = list(_reasons(document["variants"]))
    if reasons:
        why = table("Why not", ("variant", "check", "outcome", "reason"))
        for row in reasons:
            why.add_row(*row)
        found.append(why)
    return found


def _measured(title: str, variants: Sequence[Mapping[str, Any]], *, judged: bool) -> "Table":
    judgement = ("outcome",) if judged else ()
    measured = table(title, ("variant", "KiB", "CA", "trigger", "ASR", "at most", "TA", *judgement))
    for variant in variants:
        ends: tuple[str, ...] = (_outcome(variant),) if judged else ()
        head = (
            _escape(variant["name"]),
            f"{variant['bytes'] / 1024:.0f}",
            share(variant["clean_accuracy"]),
        )
        known = _known(variant)
        for trigger in known if known else (None,):
            measured.add_row(*head, *_cells(trigger), *ends)
            head, ends = ("", "", ""), ("",) * len(ends)
    return measured


def _known(variant: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Given and drilled triggers; what inverted ones still reach stands in the findings."""
    return [trigger for trigger in variant["triggers"] if trigger["source"] != "inverted"]


def _outcome(variant: Mapping[str, Any]) -> str:
    return "[bold green]published[/]" if variant["published"] else _coloured(variant["verdict"])


def _cells(trigger: Mapping[str, Any] | None) -> tuple[str, str, str, str]:
    if trigger is None:
        return "none", "-", "-", "-"
    name = f"{_escape(trigger['name'])} > {trigger['target']}"
    # Its counts alone: with its rate the table would not fit into 80 columns.
    true = f"{trigger['ta']['hits']}/{trigger['ta']['trials']}"
    return name, share(trigger), f"{trigger['upper']:.1%}", true


def _reasons(variants: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, str, str]]:
    for variant in variants:
        name = _escape(variant["name"])
        for finding in variant["findings"]:
            if finding["outcome"] != "pass":
                outcome = _coloured(finding["outcome"])
                yield name, _escape(finding["check"]), outcome, _escape(finding["reason"])
                name = ""


def table(title: str, columns: Sequence[str]) -> "Table":
    """An empty table for a terminal; columns of counts stand to the right."""
    from rich import box
    from rich.table import Table

    empty = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    for column in columns:
        numeric = column in ("KiB", "CA", "ASR", "at most", "TA", "unrepaired", "repaired")
        empty.add_column(
            column,
            justify="right" if numeric else "left",
            overflow="fold",
            no_wrap=column not in ("trigger", "check", "reason"),
        )
    return empty


def share(rate: Mapping[str, Any]) -> str:
    """Counts first: a reader of a rate must see what it rests on."""
    hits, trials = rate["hits"], rate["trials"]
    return f"{hits}/{trials} {hits / trials:.1%}" if trials else "0/0"


def _coloured(outcome: str) -> str:
    return f"[{_STYLES[outcome]}]{outcome}[/]"


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
