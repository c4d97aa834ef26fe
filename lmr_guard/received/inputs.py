# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What a caller hands in, whatever kind it is of, as the records that the stages work on.

============  =================================================================================
model         a checkpoint and its architecture; an ONNX file; a folder of the HuggingFace hub; an
              exported program; a ``Classifier``; a bare network in memory
clean images  a folder per class, a list, an archive or a table of images, see ``sources``; a tensor
              of images and one of labels; ``Labelled``
triggers      a ``Trigger``; a ``PatchFile`` or ``TriggeredFolder`` that is still to be read
============  =================================================================================
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from lmr_guard.classifier import Classifier, Preprocessing, weights_sha256
from lmr_guard.contracts import Clean, Labelled, Progress, Trigger, silent
from lmr_guard.errors import ConfigError, InputError, described, printable
from lmr_guard.evidence import Known, PatchFile, Triggered, TriggeredFolder, check
from lmr_guard.files import sha256_of
from lmr_guard.measure import predict
from lmr_guard.onnxfile.fileformat import FileFormat
from lmr_guard.received import converted, data, ending, exported, hub, load
from lmr_guard.received.architectures import Architecture, described_input
from lmr_guard.received.converted import OnnxOrigin
from lmr_guard.received.found import listed
from lmr_guard.received.names import ClassNames, told_by_model
from lmr_guard.received.parts import check_agreement, check_order

__all__ = [
    "Images",
    "Model",
    "Received",
    "Source",
    "images",
    "model",
    "notes_on",
    "require_every_class",
    "triggers",
    "understood",
]

Model = Path | str | nn.Module
"""A checkpoint, a file called ``.onnx``, a folder (see ``hub``), a ``Classifier``, or a network
that maps images (N, C, H, W) to logits or to probabilities (N, K)."""

Source = str | Architecture | FileFormat
"""What a checkpoint belongs to, or what an ONNX file or a folder does not say itself."""

Images = Path | str | Labelled | tuple[Tensor, Tensor]
"""What ``sources`` knows, such as a folder per class; or images (N, C, H, W) and labels (N,)."""

_PLAIN = "The network says nothing about its input: it was given pixels in [0, 1]."
_ROWS = "The file answers with a ZipMap; what is published answers with the rows it is made of."


@dataclass(frozen=True, slots=True, eq=False)
class Received:
    """The model as received.

    Args:
        classifier: In eval mode, on the device that it came on.
        name: Path of the checkpoint as the caller gave it, or what was in memory.
        sha256: Digest of that file; of a model in memory, or in several files, that of its weights.
        origin: The architecture and what was said beside it; plain data for the report.
        notes: What a reader must know about how the model was read, one sentence each.
        file: The ONNX file that it was read back from; None for other kinds.
        classes: Their names in the order of its head, where it names them; images may bear others.
    """

    classifier: Classifier
    name: str
    sha256: str
    origin: Mapping[str, object]
    notes: tuple[str, ...] = ()
    file: OnnxOrigin | None = None
    classes: ClassNames | None = None


def model(given: Model, arch: Source | None, clean: Images) -> Received:
    """The model as a classifier; what is in memory is copied, never touched.

    A network in memory that is no ``Classifier`` may tell its input in ``default_cfg``, as timm's
    networks do. One that does not takes pixels in [0, 1] of the size that ``clean`` has.

    Args:
        given: See ``Model``.
        arch: What a checkpoint belongs to; what an ONNX file does not say itself, where there is
            such; None with a model in memory.
        clean: Looked at for its size alone.

    Raises:
        ConfigError: ``arch`` is missing or superfluous, or nobody says the size of the images; or
            see ``converted.read``.
        ExportRefused, InputError: See ``load.classifier`` and ``converted.read``.
    """
    if isinstance(given, nn.Module):
        if arch is not None:
            raise ConfigError(f"expected no arch beside a model in memory, got {arch!r}")
        return _in_memory(given, clean)
    if converted.is_onnx(Path(given)):
        return _from_onnx(Path(given), arch)
    if not isinstance(arch, str | Architecture) and exported.is_exported(Path(given)):
        made, digest, origin = exported.read(Path(given), arch or FileFormat())
        return Received(made, str(given), digest, origin, made.notes)
    if not isinstance(arch, str | Architecture) and hub.is_folder(Path(given)):
        return _from_folder(Path(given), arch or FileFormat())
    if arch is None:
        raise ConfigError("expected an arch beside a checkpoint, got none; name its architecture")
    if isinstance(arch, FileFormat):
        raise ConfigError(
            f"expected an ONNX file beside a FileFormat, got {str(given)!r}; name its architecture"
        )
    source = Architecture(arch) if isinstance(arch, str) else arch
    path = Path(given)
    made = load.classifier(path, source)
    # The digest of an index would say nothing about the weights.
    digest = weights_sha256(made) if path.suffix.lower() == ".json" else sha256_of(path)
    return Received(made, str(path), digest, source.to_json(), made.notes)


def _from_folder(folder: Path, said: FileFormat) -> Received:
    classifier, origin, classes = hub.read(folder, said)
    digest = weights_sha256(classifier)
    return Received(classifier, str(folder), digest, origin, classifier.notes, classes=classes)


def _from_onnx(path: Path, said: Source | None) -> Received:
    if isinstance(said, str | Architecture):
        raise ConfigError(
            f"expected no arch beside an ONNX file, which holds its network, got {said!r}; "
            "leave it out"
        )
    if said is not None and said.classes is not None:
        raise ConfigError("expected the classes in the settings, got them in a FileFormat")
    classifier, origin = converted.read(path, said or FileFormat())
    names = told_by_model(origin.classes)
    made, notes = origin.to_json(), () if names is None else (_ROWS,)
    return Received(classifier, str(path), origin.sha256, made, notes, file=origin, classes=names)


def _in_memory(given: nn.Module, clean: Images) -> Received:
    kind = type(given).__name__
    notes: tuple[str, ...] = ()
    if isinstance(given, Classifier):
        classifier = load.plain(given)
        notes = classifier.notes
        kind = type(given.network).__name__
    else:
        described_by = getattr(given, "default_cfg", None) or {}
        shape = described_input(described_by)
        if shape is None and (described_by.get("mean") or described_by.get("std")):
            raise ConfigError(
                f"expected input_size beside mean and std in default_cfg of {kind}, got none; add "
                "it, or leave default_cfg out where the network normalises by itself"
            )
        if shape is None:
            shape, notes = _size_of(clean, kind), (_PLAIN,)
        classifier = load.in_memory(given, shape)
        notes = (*notes, *classifier.notes)
    p = classifier.preprocessing
    origin = Architecture(
        f"memory:{kind}",
        num_classes=classifier.num_classes,
        input_size=(p.channels, p.height, p.width),
        mean=p.mean,
        std=p.std,
    )
    digest = weights_sha256(classifier)
    return Received(classifier, f"memory:{kind}", digest, origin.to_json(), notes)


def _size_of(clean: Images, kind: str) -> Preprocessing:
    if isinstance(clean, Path | str):
        raise ConfigError(
            f"expected a network that tells the size of its images, got a bare {kind} beside a "
            "folder; wrap it: Classifier(network, Preprocessing(height=.., width=..), num_classes)"
        )
    pixels = clean.images if isinstance(clean, Labelled) else clean[0]
    if pixels.ndim != 4 or pixels.shape[1] not in {1, 3}:
        raise ConfigError(
            f"expected images of shape (N, C, H, W) with 1 or 3 channels, got {described(pixels)}"
        )
    channels, height, width = pixels.shape[1:]
    zeros, ones = (0.0,) * channels, (1.0,) * channels
    return Preprocessing(channels=channels, height=height, width=width, mean=zeros, std=ones)


def images(
    given: Images,
    shape: Preprocessing,
    num_classes: int | None,
    classes: Sequence[str] | None = None,
    *,
    minimum: int = 3,
    progress: Progress = silent,
) -> Labelled:
    """The clean images as bytes of the size that the network sees.

    Args:
        given: See ``Images``. Float images must lie in [0, 1], and are rounded to bytes.
        shape: Size and channels that the network sees.
        num_classes: K of the model; None takes as many as there are.
        classes: Names in the model's order; None takes folder names sorted, and "0", "1", ..
            where there are only labels.
        minimum: Images that each class of a folder must have at least.
        progress: Told of every image of a folder.

    Raises:
        InputError: See ``data.read_images``; or the model has a single output.
        ConfigError: Tensors of other shapes, types or ranges, or of another number of classes.
    """
    if num_classes == 1:
        raise InputError(
            "expected a model with one output for each class, got one in all, as of a sigmoid that "
            "tells two classes; give it two: (0, z) for the logit z"
        )
    if isinstance(given, Path | str):
        return data.read_images(
            Path(given),
            shape,
            classes=classes,
            expected_classes=num_classes,
            minimum=minimum,
            progress=progress,
        )
    labelled = given if isinstance(given, Labelled) else _labelled(*given, num_classes, classes)
    got, wanted = tuple(labelled.images.shape[1:]), (shape.channels, shape.height, shape.width)
    if got != wanted:
        raise ConfigError(f"expected clean images of {wanted}, as the model sees, got {got}")
    if num_classes is not None and len(labelled.classes) != num_classes:
        raise ConfigError(
            f"expected clean images of {num_classes} classes, as the model has, got "
            f"{len(labelled.classes)}"
        )
    return labelled


def require_every_class(given: Labelled) -> None:
    """Raises InputError where a class has no image: numbers on the others say nothing about it."""
    counts = given.labels.bincount(minlength=len(given.classes)).tolist()
    none = [name for name, count in zip(given.classes, counts, strict=True) if not count]
    if none:
        raise InputError(f"expected images of every class, got none of {listed(none)}; give some")


def _labelled(
    pixels: Tensor, labels: Tensor, num_classes: int | None, classes: Sequence[str] | None
) -> Labelled:
    if not len(pixels) or labels.is_floating_point():
        got = f"{len(pixels)} images with labels of {labels.dtype}"
        raise ConfigError(f"expected images and whole numbers as labels, got {got}")
    if pixels.is_floating_point():
        if not bool(((pixels >= 0) & (pixels <= 1)).all()):
            raise ConfigError(
                "expected float images in [0, 1], got others; leave the normalisation to the model"
            )
        pixels = (pixels * 255).round().to(torch.uint8)
    if classes is None:
        count = int(labels.max()) + 1 if num_classes is None else num_classes
        classes = [str(index) for index in range(count)]
    try:
        return Labelled(pixels.cpu(), labels.cpu().long(), tuple(classes))
    except ValueError as error:
        raise ConfigError(str(error)) from error


def triggers(
    known: Sequence[Known],
    clean: Labelled,
    shape: Preprocessing,
    others: Sequence[Labelled] = (),
    progress: Progress = silent,
) -> list[Trigger]:
    """The caller's triggers, read and checked against the images they will be measured on.

    Args:
        known: See ``evidence.Known``.
        clean: The ``report`` part.
        shape: Size and channels that the network sees.
        others: More clean images that no triggered one may be.
        progress: Told of every image of a folder.

    Raises:
        InputError: A file does not read.
        ConfigError: See ``evidence.check``.
    """
    read = [_read(item, clean, shape, progress) for item in known]
    check(read, clean, others)
    return read


def _read(item: Known, clean: Labelled, shape: Preprocessing, progress: Progress) -> Trigger:
    if isinstance(item, PatchFile):
        return item.read(shape.channels)
    if isinstance(item, TriggeredFolder):
        found = data.read_images(
            item.path, shape, classes=clean.classes, minimum=0, progress=progress
        )
        return Triggered(found, item.path.name, item.target, "given")
    return item


def notes_on(triggers: Sequence[Trigger]) -> tuple[str, ...]:
    """What a reader must know about how folders of triggered images were read."""
    return tuple(
        f"Triggered images of {printable(trigger.name)}: {note}"
        for trigger in triggers
        if isinstance(trigger, Triggered)
        for note in trigger.data.notes
    )


def understood(given: Received, clean: Clean, triggers: Sequence[Trigger] = ()) -> Received:
    """The model with logits of usual size, once it is seen to recognise the images.

    Args:
        given: As read; not touched. One that was read back from an ONNX file is first held
            against the file, on ``repair`` and ``select``.
        clean: ``repair``, and both ``repair`` and ``select``, must be of the model's classes in its
            order; ``select`` shows what it puts out, see ``ending``.
        triggers: As read; what is to be told of them joins the notes.

    Raises:
        InputError: The images are not of the model's classes, in its order.
        ConfigError: See ``converted.OnnxOrigin.compared``.
    """
    model = given.classifier.clone()
    both = clean.repair.joined(clean.select)
    if given.file is not None:
        given = replace(given, notes=(*given.notes, given.file.compared(model, both)))
    logits = predict(model, clean.repair)
    check_agreement(logits, clean.repair)
    check_order(torch.cat([logits, predict(model, clean.select)]), both)
    classifier = ending.understood(model, clean.select)
    images = (*clean.repair.notes, *notes_on(triggers))
    notes = (*given.notes, *images, *ending.described(classifier.ending))
    return replace(given, classifier=classifier, notes=notes)
