# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""ONNX files from elsewhere: audited as they are, by whomever they were made."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from lmr_guard import random_patterns
from lmr_guard.contracts import Labelled, Progress, Rate, silent
from lmr_guard.evidence import Evidence, Known, require_any
from lmr_guard.files import Artifact
from lmr_guard.measure import predict, right
from lmr_guard.onnxfile.fileformat import FileFormat, expected_shape
from lmr_guard.onnxfile.predictor import OnnxPredictor, Session, try_apart
from lmr_guard.received import inputs
from lmr_guard.received.inputs import Images
from lmr_guard.received.names import told_by_model
from lmr_guard.received.parts import check_agreement
from lmr_guard.release.decision import decide
from lmr_guard.release.environment import environment
from lmr_guard.release.policy import Policy
from lmr_guard.release.records import Build
from lmr_guard.release.report import Report
from lmr_guard.release.verify import verify_artifact

__all__ = ["FileFormat", "verify"]

_NAME = "float32"
_PATIENCE = 600.0  # seconds a batch


def verify(
    path: Path | str,
    clean: Images,
    triggers: Sequence[Known] = (),
    *,
    file_format: FileFormat | None = None,
    reference: Path | str | None = None,
    policy: Policy | None = None,
    threads: int | None = None,
    progress: Progress = silent,
) -> Report:
    """Audit an ONNX classifier, whoever made it; all clean images are the report part.

    Args:
        path: The file; it is measured as variant ``float32``, whatever is in it.
        clean: A folder that holds one folder of clean images per class, or images and labels.
        triggers: What to audit with.
        file_format: What the file takes and gives, where it does not say so itself.
        reference: Another ONNX file, whose clean accuracy this one is compared with.
        policy: The limits; None takes the default ones. ``require`` is taken to mean this file.
        threads: Of ONNX Runtime; None leaves it the choice.
        progress: Told how far each step is.

    Returns:
        A report; nothing is published.

    Raises:
        ExportRefused: No evidence at all was given.
        ConfigError, InputError: See ``release.verify`` and ``received.inputs``.
    """
    require_any(triggers)
    place, limits, said = Path(path), policy or Policy(), file_format or FileFormat()
    opened = said.session(threads)
    for other in (place, *(() if reference is None else (Path(reference),))):
        try_apart(other, opened)
    predictor = OnnxPredictor(place, opened)
    artifact = Artifact(place, predictor.sha256, predictor.bytes)
    shape, count = expected_shape(predictor, said), predictor.num_classes
    names = said.classes or told_by_model(predictor.classes)
    del predictor  # Each holds the whole model.
    session = replace(opened, preprocessing=shape if said.mean else None, patience=_PATIENCE)
    images = inputs.images(clean, shape, count, names, minimum=1, progress=progress)
    known = inputs.triggers(triggers, images, shape, progress=progress)
    check_agreement(predict(OnnxPredictor(place, session), images), images)
    inputs.require_every_class(images)
    variant = verify_artifact(
        artifact,
        Build(name=_NAME),
        images,
        Evidence(known, random=_drawn(images, artifact)),
        policy=limits,
        reference=_accuracy_of(reference, images, session),
        session=session,
        progress=progress,
    )
    unjudged = "No reference was given: lost clean accuracy was not judged."
    return Report(
        model=str(place),
        model_sha256=artifact.sha256,
        verdict=decide([variant], replace(limits, require=(_NAME,))),
        variants=(variant,),
        policy=limits,
        environment=environment(),
        config={"images": {"report": len(images)}, "classes": list(images.classes)},
        notes=(*images.notes, *inputs.notes_on(known), *(() if reference else (unjudged,))),
    )


def _drawn(images: Labelled, artifact: Artifact) -> tuple[random_patterns.RandomPattern, ...]:
    """Other patterns for each file: who makes it cannot know them and change it accordingly."""
    seed = int(artifact.sha256[:15], 16)
    return random_patterns.draw(images, torch.Generator().manual_seed(seed))


def _accuracy_of(reference: Path | str | None, images: Labelled, session: Session) -> Rate | None:
    if reference is None:
        return None
    logits = predict(OnnxPredictor(Path(reference), session), images)
    check_agreement(logits, images)
    return right(logits, images)
