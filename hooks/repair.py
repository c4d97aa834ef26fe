# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Repairs a model right before another tool compresses it: ``pre_quantize`` and ``pre_prune``.

Both run localize and repel, that is ``pipeline.localize_and_repel``, and nothing else. They differ
in the compressed forms that are looked at, for a backdoor may sleep in the model as received and
wake in one of them. Each has three spellings::

    model, receipt = pre_quantize(network, clean=clean, preprocessing=preprocessing)

    with pre_prune(network, clean=clean, preprocessing=preprocessing) as guarded:
        pruner = torch_pruning.pruner.BasePruner(guarded.model, ...)

    @pre_quantize.hook(clean=clean, preprocessing=preprocessing, on_receipt=receipts.append)
    def quantise(network: nn.Module, into: Path) -> None: ...

An ONNX file goes in the place of the network, and the repaired one can be written as such again::

    _, receipt = pre_quantize("model.onnx", clean=clean, into="repaired.onnx")

A decorated function that is called with a file is handed the path of the repaired one.

The model handed in is never touched. What comes back is repaired, not audited: no trigger is
tried here, so a receipt is no verdict. Verify the compressed file before it ships.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Concatenate, Generic, NamedTuple, ParamSpec, TypeVar, cast, overload

from torch import nn

from lmr_guard.classifier import Classifier, Preprocessing, weights_sha256
from lmr_guard.compress.recipes import parse
from lmr_guard.contracts import Clean, Progress, Rate, silent
from lmr_guard.errors import ConfigError
from lmr_guard.hooks.kinds import Model, as_classifier, from_file, same_kind, to_file
from lmr_guard.measure import accuracy, predict, right
from lmr_guard.onnxfile.fileformat import FileFormat
from lmr_guard.pipeline import Repaired, localize_and_repel
from lmr_guard.received.ending import understood
from lmr_guard.received.parts import check_agreement
from lmr_guard.release import publish
from lmr_guard.release.policy import Policy
from lmr_guard.repel import RepelSettings
from lmr_guard.results import Method
from lmr_guard.settings import Settings

__all__ = ["Guarded", "Receipt", "RepairHook", "pre_prune", "pre_quantize"]

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_Given = TypeVar("_Given", bound=nn.Module | Path | str)
_NO_VERDICT = "no verdict: no trigger was tried; verify the compressed file before it ships"


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What a hook did to a model. It is no verdict: nothing was tried against a trigger.

    Args:
        hook: ``"pre_quantize"`` or ``"pre_prune"``.
        suspect: The class that was repelled; None where nobody was suspected, and the model came
            back as it was, unless ``done`` says otherwise.
        method: How the suspect was found.
        scores: One per class, higher is more suspicious; empty where the user named the suspect.
        agreement: Share of the votes for the leading class; see ``Suspicion``.
        clean_before: CA on ``select`` as received.
        clean_after: CA on ``select`` of what came back.
        weights_before: ``weights_sha256`` as received.
        weights_after: ``weights_sha256`` of what came back.
        recipes: Labels of the recipes whose forms localize and repel could look at.
        others: Classes that were repelled after it, as with several backdoors.
        done: What was done about them; see ``Repair.done``.
    """

    hook: str
    suspect: int | None
    method: Method
    scores: tuple[float, ...]
    agreement: float
    clean_before: Rate
    clean_after: Rate
    weights_before: str
    weights_after: str
    recipes: tuple[str, ...]
    others: tuple[int, ...] = ()
    done: str = "repelled"

    def __str__(self) -> str:
        """One line for a log."""
        if self.suspect is None:
            done = f"no class suspected ({self.method}), {self.done or 'nothing repaired'}, CA "
            done += f"{self.clean_before}" + (f" -> {self.clean_after}" if self.done else "")
        else:
            named = " and ".join(map(str, (self.suspect, *self.others)))
            done = (
                f"class {named} {self.done} ({self.method}), CA {self.clean_before} -> "
                f"{self.clean_after}"
            )
        return f"{self.hook}: {done}, weights {self.weights_after[:12]}; {_NO_VERDICT}"

    def to_json(self) -> dict[str, object]:
        """Plain data for a log or an experiment tracker, with ``type`` and ``version``."""
        return {
            "type": "receipt",
            "version": 1,
            "note": _NO_VERDICT,
            "hook": self.hook,
            "suspicion": {
                "target": self.suspect,
                **({"others": list(self.others)} if self.others else {}),
                "method": self.method,
                "scores": list(self.scores),
                "agreement": self.agreement,
            },
            "clean_accuracy": {
                "before": self.clean_before.to_json(),
                "after": self.clean_after.to_json(),
            },
            "weights_sha256": {"before": self.weights_before, "after": self.weights_after},
            "recipes": list(self.recipes),
            "done": self.done,
        }


class Guarded(NamedTuple, Generic[Model]):
    """A repaired model of the kind that was handed in, and the receipt.

    As a context manager it only gives the block a name: nothing was patched, so nothing is undone.
    """

    model: Model
    receipt: Receipt

    def __enter__(self) -> "Guarded[Model]":
        """Itself."""
        return self

    def __exit__(self, *raised: object) -> None:
        """Lets exceptions through."""


@dataclass(frozen=True, slots=True)
class RepairHook:
    """One place before compression at which a model is repaired.

    Args:
        name: What receipts call it.
        settings: Used where a call brings none; ``dataclasses.replace`` makes others from it. Its
            recipes say which compressed forms are looked at, so a model that will be pruned *and*
            quantised needs the recipes of both. Its policy is not used.
    """

    name: str
    settings: Settings

    @overload
    def __call__(
        self,
        model: Path | str,
        *,
        clean: Clean,
        preprocessing: None = None,
        file_format: FileFormat | None = None,
        into: Path | str | None = None,
        settings: Settings | None = None,
        progress: Progress = silent,
    ) -> Guarded[Classifier]: ...

    @overload
    def __call__(
        self,
        model: Model,
        *,
        clean: Clean,
        preprocessing: Preprocessing | None = None,
        file_format: None = None,
        into: Path | str | None = None,
        settings: Settings | None = None,
        progress: Progress = silent,
    ) -> Guarded[Model]: ...

    def __call__(
        self,
        model: Model | Path | str,
        *,
        clean: Clean,
        preprocessing: Preprocessing | None = None,
        file_format: FileFormat | None = None,
        into: Path | str | None = None,
        settings: Settings | None = None,
        progress: Progress = silent,
    ) -> Guarded[Model] | Guarded[Classifier]:
        """Localize and repel on a copy of ``model``.

        Randomness comes from ``settings.seed`` alone.

        Args:
            model: A ``Classifier``, or a bare network on normalised images; or an ONNX file, which
                is read back (extra ``onnx``) and held against the file on ``repair`` and
                ``select``. Not touched.
            clean: ``repair`` is learnt from, ``select`` is chosen on, ``report`` is not looked at.
            preprocessing: Size and normalisation of a bare network; None with others.
            file_format: What an ONNX file does not say itself; None with others.
            into: Where an ONNX file is written again, of the same input values (channels first) and
                outputs; None writes none, and needs to be with others.
            settings: How; None takes the hook's own.
            progress: Told how far each step is.

        Returns:
            The repaired copy, in eval mode, on the model's device, of a file as a ``Classifier``;
            an unchanged copy where nobody was suspected, which the receipt says.

        Raises:
            ConfigError: Model, preprocessing and images do not fit together; or the file cannot be
                read back.
            ExportRefused: The graph of the file can hide a backdoor from a repair.
            InputError: The model does not recognise the images, or has no head.
            StageError: See ``localize``, ``repel`` and ``export_onnx``.
        """
        return self._guarded(
            model,
            into,
            clean=clean,
            preprocessing=preprocessing,
            said=file_format,
            how=settings or self.settings,
            progress=progress,
        )

    def _guarded(
        self,
        model: Any,  # noqa: ANN401 - what comes back is of its kind, which two callers know
        into: Path | str | None,
        *,
        clean: Clean,
        preprocessing: Preprocessing | None,
        said: FileFormat | None,
        how: Settings,
        progress: Progress,
    ) -> Guarded[Any]:
        if isinstance(model, Path | str):
            if preprocessing is not None:
                raise ConfigError("expected no preprocessing beside an ONNX file; use file_format")
            path, place = Path(model), None if into is None else Path(into)
            return self._of_file(
                path, place, clean=clean, said=said or FileFormat(), how=how, progress=progress
            )
        if said is not None or into is not None:
            raise ConfigError(
                "expected file_format and into beside an ONNX file only, got a network"
            )
        return self._repaired(
            model, as_classifier(model, clean, preprocessing), clean, how, progress
        )

    def _of_file(
        self,
        path: Path,
        into: Path | None,
        *,
        clean: Clean,
        said: FileFormat,
        how: Settings,
        progress: Progress,
    ) -> Guarded[Classifier]:
        if into is not None:
            publish.require_place(into)
        read = from_file(path, clean, said)
        guarded = self._repaired(read, read, clean, how, progress)
        if into is not None:
            to_file(guarded.model, into, said)
        return guarded

    def _repaired(
        self, model: Model, classifier: Classifier, clean: Clean, how: Settings, progress: Progress
    ) -> Guarded[Model]:
        logits = predict(classifier, clean.select)
        check_agreement(logits, clean.select)
        before = right(logits, clean.select)
        repaired = localize_and_repel(understood(classifier, clean.select), clean, how, progress)
        after = accuracy(repaired.classifier, clean.select) if repaired.changed else before
        receipt = self._receipt(repaired, (before, after), weights_sha256(model), how)
        return Guarded(same_kind(repaired.classifier.as_received(), model), receipt)

    def hook(
        self,
        *,
        clean: Clean,
        on_receipt: Callable[[Receipt], object],
        preprocessing: Preprocessing | None = None,
        file_format: FileFormat | None = None,
        into: Path | str | None = None,
        settings: Settings | None = None,
        progress: Progress = silent,
    ) -> Callable[
        [Callable[Concatenate[_Given, _Arguments], _Result]],
        Callable[Concatenate[_Given, _Arguments], _Result],
    ]:
        """Decorates a function that compresses its first argument: it gets the repaired model.

        What it gets is of the kind that it is called with: a network, or the path of an ONNX file.

        Args:
            clean: See ``__call__``.
            on_receipt: Called with the receipt before the function runs, e.g. ``list.append``.
            preprocessing: See ``__call__``.
            file_format: See ``__call__``.
            into: Where an ONNX file is written again; None writes it under its own name into a
                folder that is gone when the function has run. Needs to be None with networks.
            settings: See ``__call__``.
            progress: See ``__call__``.
        """

        def decorate(
            compress: Callable[Concatenate[_Given, _Arguments], _Result],
        ) -> Callable[Concatenate[_Given, _Arguments], _Result]:
            @wraps(compress)
            def guarded(
                model: _Given, /, *args: _Arguments.args, **kwargs: _Arguments.kwargs
            ) -> _Result:
                with ExitStack() as kept:
                    place = into
                    if place is None and isinstance(model, Path | str):
                        folder = kept.enter_context(TemporaryDirectory(prefix="lmr-guard-"))
                        place = Path(folder) / Path(model).name
                    repaired, receipt = self._guarded(
                        model,
                        place,
                        clean=clean,
                        preprocessing=preprocessing,
                        said=file_format,
                        how=settings or self.settings,
                        progress=progress,
                    )
                    if place is not None:
                        repaired = str(place) if isinstance(model, str) else Path(place)
                    on_receipt(receipt)
                    return compress(cast("_Given", repaired), *args, **kwargs)

            return guarded

        return decorate

    def _receipt(
        self, repaired: Repaired, clean: tuple[Rate, Rate], weights_before: str, settings: Settings
    ) -> Receipt:
        done = "settled" if repaired.crowded is not None else ""
        return Receipt(
            hook=self.name,
            suspect=None if repaired.repair is None else repaired.repair.suspect,
            method=repaired.suspicion.method,
            scores=repaired.suspicion.scores,
            agreement=repaired.suspicion.agreement,
            clean_before=clean[0],
            clean_after=clean[1],
            weights_before=weights_before,
            weights_after=weights_sha256(repaired.classifier),
            recipes=tuple(recipe.label for recipe in settings.recipes),
            others=() if repaired.repair is None else repaired.repair.suspects[1:],
            done=done if repaired.repair is None else repaired.repair.done,
        )


def _settings(*labels: str) -> Settings:
    return Settings(recipes=parse(labels), policy=Policy(require=labels[:1]))


_STRONGER = RepelSettings(
    strides=(),
    train_bn=True,
    twin_weight=1.0,
    learning_rates=(0.03, 0.01, 0.003),
    phase2_epochs=12,
)
"""More than the guard does, and all of the way, for nothing is audited after a hook.

Whoever cuts elsewhere, without a refit, and takes batch norm statistics anew, wakes what a gentle
repair has only suppressed; and how much a gentle one leaves varies with the seed.
"""

pre_quantize = RepairHook("pre_quantize", replace(_settings("float32", "int8"), repel=_STRONGER))
"""Before INT8: looks at the model as received and with its weights rounded."""

pre_prune = RepairHook(
    "pre_prune",
    replace(
        _settings("float32", "l1-0.2", "l1-0.3", "l1-0.4", "l1-0.5", "l1-0.6"), repel=_STRONGER
    ),
)
"""Before channel pruning: looks at the model as received and at L1 prunings of 0.2 to 0.6."""
