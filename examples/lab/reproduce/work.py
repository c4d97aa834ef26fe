# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What is done in a cell: plant, localise, repair, compress, measure."""

import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from time import process_time
from typing import Any

import torch

from examples.lab.kit.measuring import counts, name_by_unlearning, synchronised
from examples.lab.kit.planting import StoredTrigger, Trained
from examples.lab.kit.provenance import provenance
from examples.lab.kit.records import Record
from examples.lab.reproduce import figures
from examples.lab.reproduce.cells import Cell
from examples.lab.reproduce.data import DATASETS, Reader, defence
from examples.lab.reproduce.defences import METHODS, Repaired, Situation, phases
from examples.lab.reproduce.planting import Planter, generator
from lmr_guard import pipeline
from lmr_guard.classifier import Classifier, weights_sha256
from lmr_guard.compress import quantize, recipes, sweep
from lmr_guard.contracts import Clean, Labelled, Predictor, Progress, silent
from lmr_guard.errors import StageError
from lmr_guard.localize import inversion, rule
from lmr_guard.measure import accuracy, against_trigger
from lmr_guard.onnxfile.export import export_onnx
from lmr_guard.onnxfile.predictor import OnnxPredictor, Session
from lmr_guard.results import Suspicion
from lmr_guard.settings import Settings

__all__ = ["Worker"]


class Worker:
    """Does cells, one after another, with data and networks kept between them.

    Args:
        reader: Gives images.
        planter: Gives backdoored networks.
        commit: Of the code, for the records.
        progress: Told how far each step is.
    """

    def __init__(
        self, reader: Reader, planter: Planter, commit: str | None, progress: Progress = silent
    ) -> None:
        self._reader = reader
        self._planter = planter
        self._commit = commit
        self._progress = progress

    def __call__(self, cell: Cell) -> Record:
        """The cell's record.

        Raises:
            GuardError: A step could not be done.
        """
        used, start = process_time(), self._now()
        held = self._reader.held(cell.dataset, cell.seed)
        clean = defence(held, cell.share, generator(cell, "defence"))
        planted = self._planter.plant(cell, held)
        seconds = {"data_and_plant": self._now() - start}
        found = self._localize(cell, planted.classifier, clean, seconds)
        suspect = cell.target if cell.suspect == "target" else found["localized"]["suspect"]
        start = self._now()
        found |= self._repair(cell, self._situation(cell, planted, clean, suspect))
        seconds["repair_and_measure"] = self._now() - start
        return {
            "name": cell.name,
            "cell": asdict(cell),
            "environment": provenance(self._commit, self._planter.device),
            "images": {
                "train": len(held.train),
                "repair": len(clean.repair),
                "select": len(clean.select),
                "select_is_repair": clean.select is clean.repair,
                "report": len(clean.report),
            },
            "planted": {**planted.record, "weights": weights_sha256(planted.classifier)[:16]},
            "settings": {
                "tiny": self._planter.tiny,
                "lmr_suspect": cell.suspect,
                "localize": asdict(self._settings()),
            },
            **found,
            "seconds": {step: round(value, 2) for step, value in seconds.items()},
            "processor_seconds": round(process_time() - used, 2),
        }

    def _now(self) -> float:
        return synchronised(self._planter.device)

    def _localize(
        self, cell: Cell, classifier: Classifier, clean: Clean, seconds: dict[str, float]
    ) -> dict[str, Any]:
        """What the guard and the paper's localiser say, where asked; adds what each takes."""
        found: dict[str, Any] = {}
        if cell.localize or cell.suspect == "localized":
            start = self._now()
            config = Settings(seed=cell.seed, localize=self._settings())
            suspicion = pipeline.suspect(classifier, clean, config, self._progress)
            seconds["localize"] = self._now() - start
            found["localized"] = _suspicion_record(suspicion, cell.target)
        if cell.localize:
            start = self._now()
            drawn = generator(cell, "unlearning")
            found["unlearning"] = name_by_unlearning(classifier, clean.repair, drawn)
            seconds["unlearning"] = self._now() - start
        return found

    def _situation(
        self, cell: Cell, planted: Trained, clean: Clean, suspect: int | None
    ) -> Situation:
        assert planted.trigger is not None  # Every cell has a backdoor.
        return Situation(
            classifier=planted.classifier,
            clean=clean,
            suspect=suspect,
            dataset=DATASETS[cell.dataset],
            scale=cell.scale,
            trigger=planted.trigger,
            generator=lambda word: generator(cell, word),
            device=self._planter.device,
            tiny=self._planter.tiny,
            progress=self._progress,
        )

    def _repair(self, cell: Cell, situation: Situation) -> dict[str, Any]:
        """What each method of the cell comes to."""
        if cell.geometry:
            return {
                "geometry": {
                    method: _measure_geometry(method, situation) for method in cell.methods
                }
            }
        return {
            "measured": dict(
                _measure(cell, repaired, situation)
                for method in cell.methods
                for repaired in METHODS[method](situation)
            )
        }

    def _settings(self) -> rule.LocalizeSettings:
        if self._planter.tiny:
            one = (inversion.InversionSettings(steps=1),)
            return rule.LocalizeSettings(look=one, deep=one)
        return rule.LocalizeSettings()


def _measure_geometry(method: str, situation: Situation) -> figures.Summary:
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


def _suspicion_record(suspicion: Suspicion, target: int) -> dict[str, Any]:
    return {
        "suspect": suspicion.target,
        "hit": suspicion.target == target,
        "leads": max(range(len(suspicion.scores)), key=suspicion.scores.__getitem__),
        "scores": list(suspicion.scores),
        "agreement": suspicion.agreement,
    }


def _measure(cell: Cell, repaired: Repaired, situation: Situation) -> tuple[str, dict[str, Any]]:
    """What stands in the record under the method's name."""
    told: dict[str, Any] = {"forms": {}, **repaired.record}
    if repaired.seconds is not None:
        told["seconds"] = round(repaired.seconds, 2)
    if repaired.classifier is not None:
        report = situation.clean.report
        try:
            for form, predictor in _forms(cell, repaired, situation):
                told["forms"][form] = _numbers(predictor, report, situation.trigger)
        except StageError as error:
            told["note"] = str(error)
    return repaired.name, told


def _numbers(predictor: Predictor, images: Labelled, trigger: StoredTrigger) -> dict[str, Any]:
    result = against_trigger(predictor, images, trigger)
    own = images.subset(images.labels == result.target)
    return {
        "ca": counts(accuracy(predictor, images)),
        "asr": counts(result.asr),
        "ta": counts(result.ta),
        "ca_target": counts(accuracy(predictor, own)),
    }


def _forms(cell: Cell, repaired: Repaired, situation: Situation) -> Iterator[tuple[str, Predictor]]:
    """Each form by its label; 8 bits in ONNX Runtime, the others in torch."""
    assert repaired.classifier is not None  # Methods that do not apply have no forms.
    chosen, drawn, clean = (
        recipes.parse(cell.forms, refit="none"),
        generator(cell, "compress"),
        situation.clean,
    )
    for form in sweep.torch_forms(repaired.classifier, chosen, clean, drawn, situation.progress):
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
            yield (
                form.recipe.label,
                OnnxPredictor(quantised, Session(threads=torch.get_num_threads())),
            )
