# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint and a folder of clean images say themselves of how a run should be started.

The architecture by names and shapes of the weights, stem, size and normalisation by which of the
usual ones the model recognises the images best. Only images of the ``repair`` part are looked at:
what a report will count is not chosen on.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.contracts import Clean, Labelled, Progress, Rate, silent
from lmr_guard.errors import ConfigError, GuardError, some
from lmr_guard.measure import predict, right
from lmr_guard.onnxfile.fileformat import FileFormat
from lmr_guard.received import converted, data, guessed, inputs, load
from lmr_guard.received.architectures import Architecture
from lmr_guard.received.checkpoint import read_weights
from lmr_guard.received.inputs import Received, Source
from lmr_guard.received.parts import divide
from lmr_guard.release.policy import Policy
from lmr_guard.settings import Settings

__all__ = ["Proposal", "policy_text", "propose"]

_MOST = 6  # architectures that are tried on images
_IMAGES = 400
_SURE = 0.01  # chance that a normalisation is better by chance
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_USUAL: dict[int, dict[str, tuple[tuple[float, ...], tuple[float, ...]]]] = {
    1: {"0.5 and 0.5": ((0.5,), (0.5,)), "none": ((0.0,), (1.0,))},
    3: {
        "ImageNet's": _IMAGENET,
        "CIFAR-10's": ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
        "0.5 and 0.5": ((0.5,) * 3, (0.5,) * 3),
        "none": ((0.0,) * 3, (1.0,) * 3),
    },
}


@dataclass(frozen=True, slots=True, eq=False)
class Proposal:
    """How to read a model, and that it was read so.

    Args:
        received: The model, seen to recognise the images.
        source: What has to be said beside the file.
        clean: The images in three parts, of the size that the network sees.
        agreement: Clean accuracy on images of ``repair``.
        told: What was guessed and by what, one sentence each.
    """

    received: Received
    source: Source
    clean: Clean
    agreement: Rate
    told: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Folder:
    """The clean images, to be read once for each size."""

    clean: Path
    settings: Settings
    progress: Progress

    def tried(self, source: Source, model: Classifier) -> "_Tried":
        """What a reading of the model says of some of the images to repair with."""
        shape, how = model.preprocessing, self.settings
        read = inputs.images(
            self.clean, shape, model.num_classes, how.classes, progress=self.progress
        )
        parts = divide(read, how.repair_images, how.select_images, how.generator("split"))
        few = parts.repair.subset(torch.arange(min(len(parts.repair), _IMAGES)))
        return _Tried(source, model, parts, predict(model, few), few)


@dataclass(frozen=True, slots=True, eq=False)
class _Tried:
    """One reading of the model, and what it says of the images."""

    source: Source
    model: Classifier
    clean: Clean
    logits: Tensor
    images: Labelled

    @property
    def right(self) -> Rate:
        return right(self.logits, self.images)

    @property
    def hits(self) -> Tensor:
        return self.logits.argmax(dim=1) == self.images.labels


def propose(
    checkpoint: Path,
    said: Architecture | FileFormat | None,
    clean: Path,
    settings: Settings,
    progress: Progress = silent,
    *,
    upright: bool = False,
) -> Proposal:
    """Guess what is not said, try it on the clean images, and read the model as a run would.

    Args:
        checkpoint: As for ``pipeline.guard``; an ONNX file says its architecture itself.
        said: What the user says; None, or an ``Architecture`` without sizes, leaves it to be told.
        clean: Folder of one folder per class.
        settings: Names of the classes, sizes of the parts, and the seed.
        progress: Told of every candidate and image.
        upright: See ``Preprocessing``; of what is guessed.

    Raises:
        ConfigError: No architecture of torchvision or timm fits; or see ``received.inputs``.
        InputError: The model does not recognise the images however it is read; or see there.
        ExportRefused: See ``converted.read``.
    """
    size = data.common_size(clean, settings.classes)
    folder, told = _Folder(clean, settings, progress), list[str]()
    tried = [
        each
        for candidate in _candidates(checkpoint, said, told, progress, upright=upright)
        for each in _readings(checkpoint, candidate, size, folder)
    ]
    found = [each for each in tried if isinstance(each, _Tried)]
    if not found:
        raise next(each for each in tried if isinstance(each, GuardError))
    best = max(found, key=lambda each: each.right.hits)
    if len(found) > 1:
        others = [f"{_named(each)}: {each.right}" for each in found if each is not best]
        told.append(f"{_named(best)} recognises {best.right}; the others: {'; '.join(others)}.")
    best = _normalised(best, told)
    received = inputs.model(checkpoint, best.source, clean)
    received = inputs.understood(received, best.clean)
    return Proposal(received, best.source, best.clean, best.right, tuple(told))


def _candidates(
    checkpoint: Path,
    said: Architecture | FileFormat | None,
    told: list[str],
    progress: Progress,
    *,
    upright: bool,
) -> Sequence[Source]:
    if converted.is_onnx(checkpoint):
        return [said or FileFormat()]
    if said is not None:
        return [said]
    weights = read_weights(checkpoint)
    fitting = [replace(each, upright=upright) for each in guessed.fitting(weights, progress)]
    if not fitting:
        raise ConfigError(
            f"expected weights of an image classifier of torchvision or timm, got {len(weights)} "
            f"({some(list(weights))}) that belong to none; name your own with --arch "
            "package.module:factory"
        )
    names = list(dict.fromkeys(each.name for each in fitting))
    told.append(f"Names and shapes of the weights fit {', '.join(names[:_MOST])}.")
    if len(fitting) > _MOST:
        told.append(f"{len(fitting) - _MOST} more fit and were not tried; --arch names one.")
    return fitting[:_MOST]


def _readings(
    checkpoint: Path,
    source: Source,
    size: tuple[int, int] | None,
    folder: _Folder,
) -> Iterator[_Tried | GuardError]:
    """The model as the source has it, and at the size of the images where that is another one."""
    try:
        first = _read(checkpoint, source)
        yield folder.tried(source, first)
    except GuardError as error:
        yield error
        return
    shape = first.preprocessing
    if size is None or size == (shape.height, shape.width) or not isinstance(source, Architecture):
        return
    if source.input_size is not None:
        return
    other = replace(source, input_size=(shape.channels, *size))
    try:
        yield folder.tried(other, _read(checkpoint, other))
    except GuardError as error:  # Not every network takes every size.
        yield error


def _read(checkpoint: Path, source: Source) -> Classifier:
    if isinstance(source, FileFormat):
        return converted.read(checkpoint, source)[0]
    if isinstance(source, str):
        source = Architecture(source)
    return load.classifier(checkpoint, source)


def _named(tried: _Tried) -> str:
    shape = tried.model.preprocessing
    if not isinstance(tried.source, Architecture):
        return "the file"
    stem = " with the stem for small images" if tried.source.stem == "cifar" else ""
    return f"{tried.source.name}{stem} at {shape.height}x{shape.width}"


# --- the normalisation --------------------------------------------------------------------------


def _normalised(own: _Tried, told: list[str]) -> _Tried:
    """With another normalisation where the model clearly recognises more images so."""
    source = own.source
    if isinstance(source, str) or source.mean is not None:
        return own
    shape = own.model.preprocessing
    others = {
        name: _with(own, mean, std)
        for name, (mean, std) in _choices(own).items()
        if (mean, std) != (shape.mean, shape.std)
    }
    better = {name: each for name, each in others.items() if _chance(each, own) < _SURE}
    if better:
        name, best = max(better.items(), key=lambda item: item[1].right.hits)
        like = [other for other, each in others.items() if _alike(other, each, name, best)]
        also = f", and about as many with {', '.join(like)}" if like else ""
        told.append(
            f"Normalisation: {name}, by which it recognises {best.right}, against {own.right} with "
            f"its own{also}."
        )
        return best
    like = [name for name, each in others.items() if _chance(own, each) >= _SURE]
    also = f"; the images do not tell it from {', '.join(like)}" if like else ""
    told.append(f"Normalisation: its own, by which it recognises {own.right}{also}.")
    return own


def _alike(name: str, tried: _Tried, chosen: str, best: _Tried) -> bool:
    return name != chosen and _chance(best, tried) >= _SURE


def _choices(own: _Tried) -> dict[str, tuple[tuple[float, ...], tuple[float, ...]]]:
    """The usual normalisations, and that of the images themselves."""
    pixels = own.images.pixels
    deviation, mean = torch.std_mean(pixels, dim=(0, 2, 3))
    rounded = [tuple(round(float(v), 4) for v in each) for each in (mean, deviation)]
    usual = _USUAL[own.model.preprocessing.channels]
    return {
        **usual,
        **({"that of the images": (rounded[0], rounded[1])} if min(rounded[1]) else {}),
    }


def _with(own: _Tried, mean: tuple[float, ...], std: tuple[float, ...]) -> _Tried:
    shape: Preprocessing = replace(own.model.preprocessing, mean=mean, std=std)
    model = Classifier(own.model.network, shape, own.model.num_classes).eval()
    assert not isinstance(own.source, str)  # noqa: S101 - ``_normalised`` asks
    source = replace(own.source, mean=mean, std=std)
    return _Tried(source, model, own.clean, predict(model, own.images), own.images)


def _chance(better: _Tried, than: _Tried) -> float:
    """Chance that one is right where the other is wrong so much more often, were both alike."""
    from scipy.stats import binomtest

    won = int((better.hits & ~than.hits).sum())
    lost = int((than.hits & ~better.hits).sum())
    if won <= lost:
        return 1.0
    return float(binomtest(won, won + lost, alternative="greater").pvalue)


# --- the policy ---------------------------------------------------------------------------------


def policy_text(policy: Policy, *, trials: int) -> str:
    """A policy as commented TOML, which ``policy_from_toml`` reads back.

    Args:
        policy: What it says.
        trials: Images that the report part holds, told beside the number that is asked for.
    """
    require = ", ".join(json.dumps(name) for name in policy.require)
    enough = "" if trials >= policy.min_trials else ": TOO FEW, every run will be INCOMPLETE"
    return f"""\
# Limits that a file must keep before it may ship. docs/usage.md says more.

# Highest attack success rate, a fraction; its upper Wilson bound counts.
max_asr = {policy.max_asr}
# Clean accuracy that may be lost against the model as received, a fraction.
max_accuracy_drop = {policy.max_accuracy_drop}
# Images that each number must rest on. The images that this file was written for leave {trials}
# to report on{enough}.
min_trials = {policy.min_trials}
# Of the two-sided Wilson bounds.
confidence = {policy.confidence}
# Variants that must pass, or nothing is published.
require = [{require}]
# Every variant that passed ("all"), or only the "smallest".
publish = "{policy.publish}"
# What a pattern that a search found on the model as received may still reach, a fraction.
max_excess = {policy.max_excess}
# How far one class may stand out in a search: how many times less of a pattern it needs.
max_strangeness = {policy.max_strangeness}
# Whether searches alone, without a known trigger, are evidence enough. Whoever trains against
# the searches can beat them.
accept_inverted = {str(policy.accept_inverted).lower()}
"""
