# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Host tools hold bare networks, the guard needs classifiers: the way in and the way back."""

from pathlib import Path
from typing import TypeVar, cast

import torch
from torch import nn

from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.contracts import Clean
from lmr_guard.errors import ConfigError, described
from lmr_guard.onnxfile.export import export_onnx
from lmr_guard.onnxfile.fileformat import FileFormat
from lmr_guard.received import converted

__all__ = ["Model", "as_classifier", "from_file", "same_kind", "to_file"]

Model = TypeVar("Model", bound=nn.Module)


def as_classifier(
    model: nn.Module, clean: Clean, preprocessing: Preprocessing | None
) -> Classifier:
    """An independent copy of ``model`` that takes pixels, in eval mode, on the model's device.

    Args:
        model: A ``Classifier``, or a bare network on normalised images; left as it is.
        clean: Its images must be of the size that the model sees, its classes the model's.
        preprocessing: Size and normalisation of a bare network; None with a ``Classifier``.

    Raises:
        ConfigError: The three do not fit together.
    """
    if not isinstance(clean, Clean):
        raise ConfigError(
            f"expected clean images as lmr_guard.contracts.Clean, got {described(clean)}; "
            "lmr_guard.received has read_folder and split, which make it"
        )
    classes = len(clean.repair.classes)
    if isinstance(model, Classifier):
        if preprocessing is not None:
            raise ConfigError(
                "expected preprocessing with a bare network only, got it with a Classifier, "
                "which holds its own; leave it out"
            )
        classifier = model.clone()
    elif preprocessing is None:
        raise ConfigError(
            f"expected preprocessing with a bare {type(model).__name__}, got none; say which size "
            "and normalisation its images have, mean 0 and std 1 where it normalises itself"
        )
    else:
        place = next(model.parameters(), torch.empty(0)).device
        classifier = Classifier(model, preprocessing, classes).clone().to(place)
    _require_fit(classifier, clean)
    return classifier


def from_file(path: Path, clean: Clean, said: FileFormat) -> Classifier:
    """The network of an ONNX file, once it is seen to compute what the file does.

    Args:
        path: Called ``.onnx``.
        clean: Both are compared on ``repair`` and ``select``.
        said: What the file does not say itself.

    Raises:
        ConfigError, ExportRefused, InputError: See ``converted.read`` and what it answers; or the
            images do not fit.
    """
    if not converted.is_onnx(path):
        raise ConfigError(
            f"expected a network, or a file called .onnx, got {str(path)!r}; load a checkpoint "
            "first"
        )
    classifier, origin = converted.read(path, said)
    _require_fit(classifier, clean)
    origin.compared(classifier, clean.repair.joined(clean.select))
    return classifier


def to_file(classifier: Classifier, path: Path, said: FileFormat) -> None:
    """Writes what ``from_file`` read, as a file that takes the same values, channels first.

    Raises:
        StageError: See ``export_onnx``.
    """
    if said.mean is not None:
        p = classifier.preprocessing
        bare = Preprocessing(
            channels=p.channels,
            height=p.height,
            width=p.width,
            mean=(0.0,) * p.channels,
            std=(1.0,) * p.channels,
        )
        classifier = Classifier(
            classifier.network, bare, classifier.num_classes, classifier.ending
        ).eval()
    export_onnx(classifier, path)


def _require_fit(classifier: Classifier, clean: Clean) -> None:
    p, got = classifier.preprocessing, tuple(clean.repair.images.shape[1:])
    expected = (p.channels, p.height, p.width)
    if got != expected:
        raise ConfigError(
            f"expected clean images of {expected}, as the preprocessing says, got {got}"
        )
    classes = len(clean.repair.classes)
    if classifier.num_classes != classes:
        raise ConfigError(
            f"expected clean images of {classifier.num_classes} classes, as the model has, got "
            f"{classes}"
        )


def same_kind(classifier: Classifier, model: Model) -> Model:
    """``classifier`` as the kind that ``model`` is: itself, or the network inside."""
    return cast("Model", classifier if isinstance(model, Classifier) else classifier.network)
