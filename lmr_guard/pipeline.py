# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The one place that puts the verbs in order: read ``guard`` first, then ``run_stages``.

::

    load -> localize -> repel -> compress -> stage -> verify -> publish -> attest
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from lmr_guard import localize, remaining
from lmr_guard.classifier import Classifier, weights_sha256
from lmr_guard.contracts import Clean, Progress, Trigger, silent
from lmr_guard.errors import StageError
from lmr_guard.evidence import Known, require_any
from lmr_guard.files import save_weights
from lmr_guard.received import inputs
from lmr_guard.received.inputs import Images, Model, Received, Source
from lmr_guard.received.parts import divide
from lmr_guard.release import page, publish, remarks
from lmr_guard.release.decision import decide
from lmr_guard.release.drills import DrillReport
from lmr_guard.release.environment import environment
from lmr_guard.release.records import Outcome, Variant
from lmr_guard.release.report import Report, write_json
from lmr_guard.repairing import Repaired, crowded, localize_and_repel, suspect, told
from lmr_guard.results import Method, Suspicion
from lmr_guard.settings import Settings
from lmr_guard.workshop import Structure, Workshop

__all__ = [
    "Measured",
    "Repaired",
    "guard",
    "localize_and_repel",
    "read_clean",
    "read_model",
    "repair",
    "report_on",
    "run_stages",
    "scan",
    "suspect",
]


def guard(
    model: Model,
    clean: Images,
    out: Path | str,
    triggers: Sequence[Known] = (),
    *,
    arch: Source | None = None,
    settings: Settings | None = None,
    drills: Sequence[DrillReport] = (),
    progress: Progress = silent,
) -> Report:
    """Repair, compress, audit and publish one model, or refuse.

    Args:
        model: A checkpoint, an ONNX file, or a network; not touched. See ``received.inputs``.
        clean: A folder that holds one folder of clean images per class, or images and labels.
        out: Appears complete, with report.json, its page and what was published, or not at all.
        triggers: What to audit with; no stage but ``verify`` sees them.
        arch: torchvision:NAME, timm:NAME or package.module:factory; see ``received.inputs``.
        settings: How; None takes all defaults.
        drills: What drills on the same weights came to; they decide nothing.
        progress: Told how far each step is; see ``remaining`` too.

    Returns:
        What stands in report.json. A refusal is a report whose ``verdict`` is no PASS.

    Raises:
        ExportRefused: No evidence at all, or see ``received.inputs``; nothing was written.
        ConfigError, InputError, StageError: See the stages; nothing was written.
    """
    how, into = settings or Settings(), Path(out)
    if not how.policy.accept_inverted:
        require_any(triggers)
    publish.require_outside(into, clean)
    with publish.staging(into) as stage:
        received = read_model(model, arch, clean, how, drills)
        parts = read_clean(received, clean, how, progress)
        shape, others = received.classifier.preprocessing, (parts.repair, parts.select)
        known = inputs.triggers(triggers, parts.report, shape, others, progress)
        received = inputs.understood(received, parts, known)
        report_on(received, parts, _nothing(received), how, drills).require_writable()
        progress = remaining.whole(progress, received.classifier, parts, how, len(known))
        measured = run_stages(
            received.classifier, parts, known, folder=stage, settings=how, progress=progress
        )
        result = stage / "out"
        result.mkdir()
        published = publish.publish_variants(
            measured.variants, stage / "compress", result, how.policy
        )
        report = report_on(received, parts, replace(measured, variants=published), how, drills)
        report.write(result / "report.json")
        page.write(report, result / page.PAGE)
        publish.finish(result, into)
    return report


def _nothing(received: Received) -> "Measured":
    """What is known before the work."""
    unrepaired = Repaired(received.classifier, Suspicion(None, (), Method.NOT_LOOKED_FOR), None)
    return Measured(unrepaired, (), (), Outcome.INCOMPLETE, ())


def scan(
    model: Model,
    clean: Images,
    *,
    arch: Source | None = None,
    settings: Settings | None = None,
    progress: Progress = silent,
) -> Suspicion:
    """Say which class of a model is suspect, if any; changes and decides nothing.

    The arguments and what is raised are those of ``guard``.
    """
    how = settings or Settings()
    received = read_model(model, arch, clean, how)
    parts = read_clean(received, clean, how, progress)
    received = inputs.understood(received, parts)
    notes = (*received.notes, *told(crowded(received.classifier)))
    return replace(suspect(received.classifier, parts, how, progress), notes=notes)


def repair(
    model: Model,
    clean: Images,
    out: Path | str | None = None,
    *,
    arch: Source | None = None,
    settings: Settings | None = None,
    progress: Progress = silent,
) -> Repaired:
    """Localize and repel only. What comes back is audited by nobody: no verdict covers it.

    Args:
        model: See ``guard``.
        clean: See ``guard``.
        out: Appears with repaired.safetensors and repair.json, where there was somebody to
            repel; None writes nothing.
        arch: See ``guard``.
        settings: See ``guard``.
        progress: See ``guard``.

    Raises:
        ConfigError, InputError, StageError: See the stages; nothing was written.
    """
    how, into = settings or Settings(), None if out is None else Path(out)
    if into is not None:
        publish.require_outside(into, clean)
    with nullcontext() if into is None else publish.staging(into) as stage:
        received = read_model(model, arch, clean, how)
        parts = read_clean(received, clean, how, progress)
        received = inputs.understood(received, parts)
        repaired = localize_and_repel(received.classifier, parts, how, progress)
        notes = (*received.notes, *told(repaired.crowded))
        found = replace(repaired.suspicion, notes=notes)
        repaired = replace(repaired, classifier=repaired.classifier.as_received(), suspicion=found)
        if stage is not None and into is not None and repaired.changed:
            result = stage / "out"
            result.mkdir()
            save_weights(repaired.classifier, result / "repaired.safetensors")
            write_json(repaired.to_json(received, how), result / "repair.json")
            publish.finish(result, into)
    return repaired


# --- the order ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """One classifier gone through all stages up to ``verify``, nothing published yet.

    Args:
        repaired: The suspicion, the repaired classifier and the record of the repair.
        received: The model as received in float32, and with ``compare`` in all its forms.
        variants: What would ship, measured.
        outcome: What the policy makes of the variants that it requires.
        notes: What could not be built, and what a reader must know beside the numbers.
    """

    repaired: Repaired
    received: Sequence[Variant]
    variants: Sequence[Variant]
    outcome: Outcome
    notes: Sequence[str]


def read_model(
    model: Model,
    arch: Source | None,
    clean: Images,
    settings: Settings,
    drills: Sequence[DrillReport] = (),
) -> Received:
    """The model, and whether what is said about it can be, before any image is read.

    Args:
        model: See ``guard``.
        arch: See ``guard``.
        clean: Looked at for its size alone.
        settings: Names the suspect, where the user knows it.
        drills: Refused where they are of other weights.

    Raises:
        ConfigError, InputError: See ``received.inputs``.
    """
    received = inputs.model(model, arch, clean)
    for drill in drills:
        drill.require_weights(weights_sha256(received.classifier))
    if settings.suspects:
        localize.named(settings.suspects, received.classifier.num_classes)
    return received


def read_clean(
    received: Received, clean: Images, settings: Settings, progress: Progress = silent
) -> Clean:
    """The clean images in three disjoint parts.

    Args:
        received: Says which size and how many classes.
        clean: See ``guard``.
        settings: Names of the classes, sizes of the parts, and the seed.
        progress: Told of every image.

    Raises:
        ConfigError, InputError: See ``received.inputs``.
    """
    shape, count = received.classifier.preprocessing, received.classifier.num_classes
    classes = settings.classes or received.classes
    images = inputs.images(clean, shape, count, classes, progress=progress)
    generator = settings.generator("split")
    return divide(images, settings.repair_images, settings.select_images, generator)


def run_stages(
    classifier: Classifier,
    clean: Clean,
    triggers: Sequence[Trigger],
    *,
    folder: Path,
    settings: Settings,
    progress: Progress = silent,
) -> Measured:
    """The verbs from localize to verify, in memory and in a private folder.

    Args:
        classifier: As received; not touched.
        clean: Three disjoint parts.
        triggers: What to audit with; no stage but ``verify`` sees them.
        folder: Empty and private; the audited files are left in its ``compress``.
        settings: See ``Settings``.
        progress: Told how far each step is.

    Raises:
        ConfigError, InputError, StageError: See the stages.
    """
    structure = Structure(classifier)
    workshop = Workshop(structure, clean, triggers, settings, folder, progress)
    received = workshop.received(classifier)
    if not received:
        raise StageError(f"expected to stage the model as received, got: {workshop.notes[0]}")
    repaired = localize_and_repel(classifier, clean, settings, progress, structure)
    variants = workshop.variants(
        repaired.classifier,
        received[0].clean_accuracy,
        suspects=() if repaired.repair is None else repaired.repair.suspects,
        replays=repaired.suspicion.patterns,
    )
    if settings.if_abstained == "refuse" and settings.repair and repaired.repair is None:
        variants = [remarks.refused(variant) for variant in variants]
    outcome = decide(variants, settings.policy)
    how, found = settings.localize, repaired.suspicion
    said = remarks.remarks(found, repaired.repair, how.sure, forms=how.forms != "none")
    said += told(repaired.crowded)
    return Measured(repaired, received, variants, outcome, [*workshop.notes, *said])


def report_on(
    received: Received,
    clean: Clean,
    measured: Measured,
    settings: Settings,
    drills: Sequence[DrillReport] = (),
) -> Report:
    """The record of a run; attests what ``measured`` holds."""
    return Report(
        model=received.name,
        model_sha256=received.sha256,
        verdict=measured.outcome,
        suspicion=measured.repaired.suspicion,
        repair=measured.repaired.repair,
        variants=tuple(measured.variants),
        received=tuple(measured.received),
        policy=settings.policy,
        environment=environment(settings.device),
        config={
            "load": received.origin,
            **settings.to_json(),
            "images": {part: len(getattr(clean, part)) for part in ("repair", "select", "report")},
            "classes": list(clean.report.classes),
        },
        notes=(*received.notes, *measured.notes),
        drills=tuple(drills),
    )
