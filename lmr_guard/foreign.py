# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""ONNX files from elsewhere: audited as they are, by whomever they were made."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lmr_guard.classifier import Preprocessing
from lmr_guard.contracts import Labelled, Progress, Rate, silent
from lmr_guard.errors import ConfigError
from lmr_guard.evidence import Evidence, Known, require_any
from lmr_guard.files import Artifact
from lmr_guard.measure import predict, right
from lmr_guard.onnxfile.predictor import OnnxPredictor, Session, try_apart
from lmr_guard.received import inputs
from lmr_guard.received.inputs import Images
from lmr_guard.received.parts import check_agreement
from lmr_guard.release import verify as verification
from lmr_guard.release.decision import decide
from lmr_guard.release.environment import environment
from lmr_guard.release.policy import Policy
from lmr_guard.release.records import Build
from lmr_guard.release.report import Report

__all__ = ["FileFormat", "verify"]

_NAME = "float32"
_PATIENCE = 600.0  # seconds a batch


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFormat:
    """What an ONNX file takes and gives, where it does not say so itself.

    Args:
        size: Channels, rows, columns; None takes what the file says.
        mean: One value per channel, for a file that takes normalised images; None where it
            takes pixels in [0, 1].
        std: As ``mean``; the two go together.
        classes: Class names in the order of its outputs; None takes folder names sorted.
        upright: Whether images are turned as their cameras say; see ``Preprocessing``.

    Raises:
        ConfigError: One of ``mean`` and ``std`` without the other, or values that are not finite.
    """

    size: Sequence[int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    classes: tuple[str, ...] | None = None
    upright: bool = False

    def __post_init__(self) -> None:
        """Validates; see the class."""
        if (self.mean is None) != (self.std is None):
            raise ConfigError("expected mean and std together, got one of them; give the other")
        if not all(math.isfinite(value) for value in (*(self.mean or ()), *(self.std or ()))):
            raise ConfigError(f"expected finite mean and std, got {self.mean} and {self.std}")


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
    for other in (place, *(() if reference is None else (Path(reference),))):
        try_apart(other)
    predictor = OnnxPredictor(place, Session(threads=threads))
    artifact = Artifact(place, predictor.sha256, predictor.bytes)
    shape, count = _shape(predictor, said), predictor.num_classes
    del predictor  # Each holds the whole model.
    session = Session(
        threads=threads, preprocessing=shape if said.mean else None, patience=_PATIENCE
    )
    images = inputs.images(clean, shape, count, said.classes, minimum=1, progress=progress)
    known = inputs.triggers(triggers, images, shape, progress=progress)
    check_agreement(predict(OnnxPredictor(place, session), images), images)
    inputs.require_every_class(images)
    variant = verification.verify(
        artifact,
        Build(name=_NAME),
        images,
        Evidence(known),
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
        notes=(*images.notes, *(() if reference else (unjudged,))),
    )


def _accuracy_of(reference: Path | str | None, images: Labelled, session: Session) -> Rate | None:
    if reference is None:
        return None
    logits = predict(OnnxPredictor(Path(reference), session), images)
    check_agreement(logits, images)
    return right(logits, images)


def _shape(predictor: OnnxPredictor, wanted: FileFormat) -> Preprocessing:
    """What images must look like: the file says, or the user where it leaves axes free."""
    said = tuple(predictor.shape[1:])
    asked = tuple(wanted.size) if wanted.size is not None else said
    fits = len(asked) == len(said) and all(w in (None, g) for w, g in zip(said, asked, strict=True))
    if not fits or None in asked:
        text = "x".join("any" if size is None else str(size) for size in said)
        raise ConfigError(
            f"expected an input size, channels, rows and columns, that fits {text}, got "
            f"{wanted.size}"
        )
    channels, height, width = (int(size) for size in asked if size is not None)
    if channels not in {1, 3}:
        raise ConfigError(f"expected images of 1 or 3 channels, got {channels} in {predictor.path}")
    mean, std = wanted.mean or (0.0,) * channels, wanted.std or (1.0,) * channels
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        raise ConfigError(
            f"expected {channels} values each for mean and std > 0, got {mean}, {std}"
        )
    shape = Preprocessing(channels=channels, height=height, width=width, mean=mean, std=std)
    return replace(shape, upright=wanted.upright)
