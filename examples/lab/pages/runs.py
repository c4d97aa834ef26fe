# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Three small runs of the guard on digits, whose reports are drawn."""

from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from lmr_guard import demo, foreign, pipeline
from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.compress import recipes
from lmr_guard.contracts import Progress
from lmr_guard.errors import StageError
from lmr_guard.evidence import Patch, PatchFile
from lmr_guard.files import save_weights
from lmr_guard.localize.rule import LocalizeSettings
from lmr_guard.redteam import badnets
from lmr_guard.redteam.networks import digits_resnet
from lmr_guard.redteam.training import Schedule
from lmr_guard.release.policy import Policy
from lmr_guard.release.report import Report
from lmr_guard.repel import RepelSettings
from lmr_guard.settings import Settings

__all__ = ["NAMES", "run"]

NAMES = ("repaired", "unrepaired", "audited")
"""A backdoored model repaired; the same without repair; one published file, by few images."""

_SIDE, _PATCH, _AT, _TARGET = 16, 4, 11, 3
_ARCHITECTURE = "lmr_guard.redteam.networks:digits_resnet"
_POLICY = Policy(max_asr=0.15, max_accuracy_drop=0.05)
# From fewer, as by default, localize abstains on this network: docs/report.md says so.
_REPAIR, _SELECT = 500, 150
# The audited file has fewer images than that.
_MANY = Policy(max_asr=0.15, max_accuracy_drop=0.05, min_trials=1000)


def run(folder: Path, results: Path, seed: int, progress: Progress) -> None:
    """Plants BadNets, guards the model in three ways, and keeps the reports.

    Args:
        folder: Empty; files of the runs.
        results: Gets ``NAME.json`` for each of ``NAMES``.
        seed: Of everything random.
        progress: Told how far each step is.

    Raises:
        StageError: The repaired model did not pass: there is no file to audit.
    """
    attackers, users = demo.digits(seed)
    trigger = Patch(torch.ones(1, _PATCH, _PATCH), _AT, _AT, "patch", _TARGET)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = digits_resnet()
    shape = Preprocessing(channels=1, height=_SIDE, width=_SIDE, mean=(0.0,), std=(1.0,))
    recipe = badnets.BadNets(trigger=trigger, schedule=Schedule(epochs=15, batch=64, shift=1))
    generator = torch.Generator().manual_seed(seed)
    fresh = Classifier(network, shape, 10)
    planted = badnets.plant(recipe, fresh, attackers, generator, progress)
    save_weights(planted.classifier, folder / "model.safetensors")
    demo.write_folder(users, folder / "clean")
    Image.new("L", (_PATCH, _PATCH), 255).save(folder / "patch.png")
    known = [PatchFile(folder / "patch.png", _AT, _AT, _TARGET)]
    for name in NAMES[:2]:
        report = pipeline.guard(
            folder / "model.safetensors",
            folder / "clean",
            folder / name,
            known,
            arch=_ARCHITECTURE,
            settings=_settings(seed, repair=name == "repaired"),
            progress=progress,
        )
        _keep(report, results / f"{name}.json")
    shipped = folder / "repaired" / "float32.onnx"
    if not shipped.exists():
        raise StageError(
            "expected that the repaired model passes, so that a file can be audited, got a run "
            f"that published no float32: {results / 'repaired.json'} says why"
        )
    found = foreign.verify(
        shipped, folder / "clean", known, policy=_MANY, threads=1, progress=progress
    )
    _keep(found, results / "audited.json")


def _keep(report: Report, path: Path) -> None:
    """Without the folder, which is another one each time."""
    replace(report, model=Path(report.model).name).write(path)


def _settings(seed: int, *, repair: bool) -> Settings:
    return Settings(
        localize=LocalizeSettings(confirm=1),
        repel=RepelSettings(learning_rates=(0.01,), shifts=(0,)),
        recipes=recipes.parse(["float32", "int8", "l1-0.4"]),
        policy=_POLICY,
        repair=repair,
        compare=repair,
        repair_images=_REPAIR,
        select_images=_SELECT,
        seed=seed,
        threads=1,
    )
