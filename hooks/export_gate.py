# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Lets ``torch.onnx.export`` take only weights that a passing verdict is about.

::

    audited = verify_model(network, clean=clean, triggers=triggers, preprocessing=preprocessing)
    with onnx_export_gate(audited):          # or onnx_export_gate(Path("report.json"))
        torch.onnx.export(network, ...)

What it holds, and what it does not:

* The weights are digested right before the export and once more after it; the digest must be
  that of the evidence. It covers the state dict: not the module's Python code, not its
  normalisation, not tensors kept outside the state dict.
* The file that is written is not looked at. ``lmr-guard verify FILE`` does that, and
  ``lmr_guard.guard`` publishes only bytes that were verified.
* It is open for the whole process. Whoever can change this process or write the report can get
  around it: it stops mistakes, not an attacker who is already inside.
"""

import importlib
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ContextDecorator
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from lmr_guard import random_patterns
from lmr_guard.classifier import Preprocessing, weights_sha256
from lmr_guard.contracts import Clean, Progress, Rate, Trigger, silent
from lmr_guard.errors import ExportRefused, StageError
from lmr_guard.evidence import Evidence
from lmr_guard.hooks.kinds import as_classifier
from lmr_guard.onnxfile.export import export_onnx
from lmr_guard.release.policy import Policy
from lmr_guard.release.records import Build, Outcome, Variant, Verdict
from lmr_guard.release.report import Report
from lmr_guard.release.verify import verify_artifact

__all__ = ["onnx_export_gate", "verify_model"]

# Every function that a host calls to export, and below them the two that these end in: they also
# catch whoever took ``export`` into a namespace of its own before the gate was opened.
_ENTRY_POINTS = (
    ("torch.onnx", "export"),
    ("torch.onnx.utils", "export"),
    ("torch.onnx._internal.torchscript_exporter.utils", "export"),
    ("torch.onnx._internal.exporter._compat", "export_compat"),
)
_FLOAT_BITS = 32
_DIGITS = 12


def verify_model(
    model: nn.Module,
    *,
    clean: Clean,
    triggers: Sequence[Trigger],
    preprocessing: Preprocessing | None = None,
    policy: Policy | None = None,
    reference: Rate | None = None,
    progress: Progress = silent,
) -> Variant:
    """Stages a model as ONNX in private, verifies that file, and removes it again.

    Make it before the gate is opened: the gate holds up this export as well.

    Args:
        model: A ``Classifier``, or a bare network on normalised images; not touched.
        clean: Numbers are taken on its ``report`` part.
        triggers: All the evidence there is; none leaves the verdict incomplete.
        preprocessing: Size and normalisation of a bare network; None with a ``Classifier``.
        policy: The limits; its ``require`` and ``publish`` play no part for a single file.
        reference: CA of the model as received on ``clean.report``; without it nothing is said
            about lost accuracy.
        progress: Told how far it is.

    Returns:
        The record of ``verify`` for the float32 file, bound to the digest of the weights.

    Raises:
        ConfigError: Model, preprocessing, images and triggers do not fit together.
        StageError: The model cannot be staged; see ``onnxfile.export.export_onnx``.
    """
    classifier = as_classifier(model, clean, preprocessing)
    seeded = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory(prefix="lmr-guard-") as folder:
        return verify_artifact(
            export_onnx(classifier, Path(folder) / "float32.onnx"),
            Build(name="float32", weights_sha256=weights_sha256(classifier)),
            clean.report,
            Evidence(triggers, random=random_patterns.draw(clean.report, seeded)),
            policy=policy or Policy(),
            reference=reference,
            progress=progress,
        )


@dataclass(frozen=True, slots=True)
class _Opinion:
    """What one piece of evidence says about one set of weights in float32, and why."""

    weights_sha256: str | None
    outcome: Outcome
    why: str


class onnx_export_gate(ContextDecorator):  # noqa: N801 - used like a function, as contextlib's are
    """Refuses ONNX exports of weights without a passing verdict while it is open.

    A context manager and a decorator. Gates nest, and each must agree; what stood at the entry
    points before is put back at the end, also after an exception. Evidence is read once, here.

    Args:
        evidence: Reports, or paths of ``report.json`` files, and records of ``verify_model``. A
            variant of a report counts as badly as the whole report. Only float forms count:
            an INT8 file that passed says nothing about its float weights. Where several are
            about the same weights, the worst decides. None at all refuses everything.

    Raises:
        InputError: A report is missing, or does not meet its schema.

    While it is open, an export raises:
        ExportRefused: No evidence is about these weights (exit code 3), or what there is did not
            pass (1, or 3 where incomplete); the module is not an eager one in eval mode (3); or
            the weights changed during the export (1), in which case a file may lie there
            that must not be used.
    """

    def __init__(self, *evidence: Path | str | Report | Variant) -> None:
        self._opinions = tuple(opinion for item in evidence for opinion in _opinions(item))
        self._snapshots: list[list[tuple[ModuleType, str, Callable[..., Any]]]] = []

    def __enter__(self) -> "onnx_export_gate":
        """Closes every entry point to what has no verdict.

        Raises:
            StageError: This torch lacks one of them, so that the gate could not hold.
        """
        snapshot = [(module, name, getattr(module, name)) for module, name in _entry_points()]
        self._snapshots.append(snapshot)
        for module, name, original in snapshot:
            setattr(module, name, self._guarding(original))
        return self

    def __exit__(self, *raised: object) -> None:
        """Puts back what stood there when this gate was entered last."""
        for module, name, original in self._snapshots.pop():
            setattr(module, name, original)

    def _guarding(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def guarded(model: object, *args: object, **kwargs: object) -> object:
            network = _eager(model)
            before = weights_sha256(network)
            self._require_passed(before)
            result: object = original(model, *args, **kwargs)
            _require_unchanged(before, weights_sha256(network))
            return result

        return guarded

    def _require_passed(self, digest: str) -> None:
        about = [opinion for opinion in self._opinions if opinion.weights_sha256 == digest]
        outcome = max((opinion.outcome for opinion in about), default=Outcome.INCOMPLETE)
        if not about or outcome is not Outcome.PASS:
            got = "; ".join(o.why for o in about if o.outcome is not Outcome.PASS)
            raise ExportRefused(
                f"expected a passing verdict about the weights {digest[:_DIGITS]}, got "
                f"{got or self._about_others()}",
                incomplete=outcome is Outcome.INCOMPLETE,
            )

    def _about_others(self) -> str:
        others = {(opinion.weights_sha256 or "unknown")[:_DIGITS] for opinion in self._opinions}
        if not others:
            return (
                "no evidence about a float form; hand in a record of verify_model or a report.json"
            )
        return (
            f"evidence about {', '.join(sorted(others))} only; verify the very module that is "
            "exported: a Classifier is known by its network, but a wrapper such as "
            "Sequential(normalise, network) has a digest of its own"
        )


def _entry_points() -> list[tuple[ModuleType, str]]:
    found = []
    for path, name in _ENTRY_POINTS:
        try:
            module = importlib.import_module(path)
            getattr(module, name)
        except (ImportError, AttributeError) as error:
            raise StageError(
                f"expected torch {torch.__version__} to export through {path}.{name}, got "
                f"{error}; the gate does not know this version, use one that it was tested with"
            ) from error
        found.append((module, name))
    return found


def _eager(model: object) -> nn.Module:
    """The module, if its state dict and its mode say what will be exported."""
    kind = type(model).__name__
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise ExportRefused(
            f"expected an eager torch module, got {kind}: its weights and mode cannot be told "
            "from outside; export the module that it was made from",
            incomplete=True,
        )
    if any(module.training for module in model.modules()):
        raise ExportRefused(
            f"expected {kind} in eval mode, as it was audited, got train mode; call .eval() first",
            incomplete=True,
        )
    return model


def _require_unchanged(before: str, after: str) -> None:
    if before != after:
        raise ExportRefused(
            f"expected the weights {before[:_DIGITS]} to stay during the export, got "
            f"{after[:_DIGITS]} after it; do not use what was written"
        )


def _opinions(evidence: Path | str | Report | Variant) -> list[_Opinion]:
    if isinstance(evidence, Variant):
        verdict = evidence.verdict
        found = [_Opinion(evidence.weights_sha256, verdict.outcome, _why(evidence.name, verdict))]
        return found if evidence.achieved.bits == _FLOAT_BITS else []
    report = evidence if isinstance(evidence, Report) else Report.read(Path(evidence))
    place = "in memory" if isinstance(evidence, Report) else evidence
    return [
        _Opinion(
            variant.weights_sha256,
            max(report.verdict, variant.verdict.outcome),
            f"{variant.verdict.outcome.word} for {variant.name} in a report that says "
            f"{report.verdict.word}: {place}",
        )
        for variant in report.variants
        if variant.achieved.bits == _FLOAT_BITS
    ]


def _why(name: str, verdict: Verdict) -> str:
    reasons = "; ".join(verdict.reasons()) or "nothing was checked"
    return f"{verdict.outcome.word} for {name}: {reasons}"
