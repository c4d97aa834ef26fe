# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What is done in a cell: plant, localise, repair, compress, measure."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from time import process_time
from typing import Any

import torch

from examples.reproduce import figures
from examples.reproduce.cells import Cell, counts
from examples.reproduce.data import DATASETS, Reader, defence
from examples.reproduce.defences import METHODS, Repaired, Situation, phases
from examples.reproduce.plants import Nursery, Stored, generator, synchronised
from lmr_guard import pipeline
from lmr_guard.classifier import Classifier, weights_sha256
from lmr_guard.compress import quantize, recipes, sweep
from lmr_guard.contracts import Clean, Labelled, Predictor, Progress, Suspicion, silent
from lmr_guard.errors import StageError
from lmr_guard.localize import inversion, rule, unlearning
from lmr_guard.measure import accuracy, against_trigger
from lmr_guard.onnxfile.export import export_onnx
from lmr_guard.onnxfile.predictor import OnnxPredictor
from lmr_guard.release import report

__all__ = ["Worker", "plain_unlearning"]

# The paper repeats localisation three times.
_RESTARTS = 3


class Worker:
    """Does cells, one after another, with data and networks kept between them.

    Args:
        reader: Gives images.
        nursery: Gives backdoored networks.
        commit: Of the code, for the records.
        progress: Told how far each step is.
    """

    def __init__(
        self, reader: Reader, nursery: Nursery, commit: str | None, progress: Progress = silent
    ) -> None:
        self._reader = reader
        self._nursery = nursery
        self._commit = commit
        self._progress = progress

    def __call__(self, cell: Cell) -> dict[str, Any]:
        """The content of the cell's record, beside its name and fields.

        Raises:
            GuardError: A step could not be done.
        """
        device = self._nursery.device
        used = process_time()
        start = synchronised(device)
        held = self._reader.held(cell.dataset, cell.seed)
        clean = defence(held, cell.share, generator(cell, "defence"))
        planted = self._nursery.plant(cell, held)
        seconds = {"data_and_plant": synchronised(device) - start}
        found: dict[str, Any] = {}
        suspect: int | None = cell.target
        if cell.localize or cell.suspect == "localized":
            start = synchronised(device)
            suspicion = self._suspicion(cell, planted.classifier, clean)
            seconds["localize"] = synchronised(device) - start
            found["localized"] = _told(suspicion, cell.target)
            suspect = suspicion.target if cell.suspect == "localized" else cell.target
        if cell.localize:
            start = synchronised(device)
            drawn = generator(cell, "unlearning")
            found["unlearning"] = plain_unlearning(planted.classifier, clean.repair, drawn)
            seconds["unlearning"] = synchronised(device) - start
        situation = Situation(
            classifier=planted.classifier,
            clean=clean,
            suspect=suspect,
            dataset=DATASETS[cell.dataset],
            scale=cell.scale,
            trigger=planted.trigger,
            generator=lambda word: generator(cell, word),
            device=device,
            tiny=self._nursery.tiny,
            progress=self._progress,
        )
        start = synchronised(device)
        if cell.geometry:
            found["geometry"] = {m: _geometry(m, situation) for m in cell.methods}
        else:
            found["measured"] = dict(
                _measured(cell, repaired, clean, planted.trigger, self._progress)
                for method in cell.methods
                for repaired in METHODS[method](situation)
            )
        seconds["repair_and_measure"] = synchronised(device) - start
        return {
            "environment": {**report.environment(device), "commit": self._commit},
            "images": {
                "train": len(held.train),
                "repair": len(clean.repair),
                "select": len(clean.select),
                "select_is_repair": clean.select is clean.repair,
                "report": len(clean.report),
            },
            "planted": {**planted.record, "weights": weights_sha256(planted.classifier)[:16]},
            "settings": {
                "tiny": self._nursery.tiny,
                "lmr_suspect": cell.suspect,
                "localize": asdict(self._localize()),
            },
            **found,
            "seconds": {step: round(value, 2) for step, value in seconds.items()},
            "processor_seconds": round(process_time() - used, 2),
        }

    def _suspicion(self, cell: Cell, classifier: Classifier, clean: Clean) -> Suspicion:
        config = pipeline.GuardConfig(seed=cell.seed, localize=self._localize())
        return pipeline.suspect(classifier, clean, config, self._progress)

    def _localize(self) -> rule.LocalizeSettings:
        if self._nursery.tiny:
            return rule.LocalizeSettings(
                inversion=inversion.InversionSettings(steps=1), confirm=1, repeats=0
            )
        return rule.LocalizeSettings()


def plain_unlearning(
    classifier: Classifier, repair: Labelled, drawn: torch.Generator
) -> list[dict[str, Any]]:
    """The paper's localisation: the network as received, one rate, three restarts.

    Gradient ascent with batch statistics until chance accuracy; the class with the highest mean
    log-probability is named, whatever it is. The paper gives no rate: RNP's 0.01.
    """
    config = unlearning.UnlearningSettings(batch=128, max_steps=200)
    runs = []
    for _ in range(_RESTARTS):
        seed = int(torch.randint(2**31, (1,), generator=drawn))
        logits, steps, reached = unlearning.unlearn(
            classifier, repair, config, lr=0.01, frozen_bn=False, seed=seed
        )
        named = unlearning.named_by(logits)
        runs.append({"class": named, "steps": steps, "reached_chance": reached})
    return runs


def _geometry(method: str, situation: Situation) -> figures.Summary:
    """What figures 4 to 7 are drawn from."""
    first, second = phases(method, situation)
    suspect = situation.suspect
    assert suspect is not None  # phases has repelled it
    return figures.measure(
        situation.classifier,
        first,
        second,
        situation.clean.report,
        situation.trigger,
        suspect=suspect,
    )


def _told(suspicion: Suspicion, target: int) -> dict[str, Any]:
    return {
        "suspect": suspicion.target,
        "hit": suspicion.target == target,
        "leads": max(range(len(suspicion.scores)), key=suspicion.scores.__getitem__),
        "scores": list(suspicion.scores),
        "agreement": suspicion.agreement,
    }


def _measured(
    cell: Cell, repaired: Repaired, clean: Clean, trigger: Stored, progress: Progress
) -> tuple[str, dict[str, Any]]:
    """What stands in the record under the method's name."""
    told: dict[str, Any] = {"forms": {}, **repaired.record}
    if repaired.seconds is not None:
        told["seconds"] = round(repaired.seconds, 2)
    if repaired.classifier is not None:
        try:
            drawn = generator(cell, "compress")
            for form, predictor in _forms(cell.forms, repaired, clean, drawn, progress):
                told["forms"][form] = _numbers(predictor, clean.report, trigger)
        except StageError as error:
            told["note"] = str(error)
    return repaired.name, told


def _numbers(predictor: Predictor, images: Labelled, trigger: Stored) -> dict[str, Any]:
    result = against_trigger(predictor, images, trigger)
    own = images.subset(images.labels == result.target)
    return {
        "ca": counts(accuracy(predictor, images)),
        "asr": counts(result.asr),
        "ta": counts(result.ta),
        "ca_target": counts(accuracy(predictor, own)),
    }


def _forms(
    labels: Sequence[str],
    repaired: Repaired,
    clean: Clean,
    drawn: torch.Generator,
    progress: Progress,
) -> Iterator[tuple[str, Predictor]]:
    """Each form by its label; 8 bits in ONNX Runtime, the others in torch."""
    assert repaired.classifier is not None  # Methods that do not apply have no forms.
    chosen = recipes.parse(labels)
    for form in sweep.torch_forms(repaired.classifier, chosen, clean, drawn, progress):
        classifier = form.classifier
        if repaired.recover is not None and form.plan is not None:
            classifier = repaired.recover(classifier)
        if form.recipe.int8 is None:
            yield form.recipe.label, classifier
            continue
        with tempfile.TemporaryDirectory() as folder:
            exported, quantised = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
            export_onnx(classifier, exported)
            quantize.quantize(exported, quantised, clean.repair, form.recipe.int8)
            yield form.recipe.label, OnnxPredictor(quantised, threads=torch.get_num_threads())
