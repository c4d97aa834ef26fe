# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Time and peak memory as classes, images, pixels, parameters and variants grow.

One look at a network is measured, and the way of variants from the cut to the verdict. Each point
is a process of its own, for the peak of a process is never less than that of what it did before.
Networks are untrained: what is measured is what is held, not what is found.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torchvision

from examples.lab.benchmarks.subjects import network, pictures, time_of
from lmr_guard import pipeline
from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.compress import recipes
from lmr_guard.contracts import Clean
from lmr_guard.errors import StageError
from lmr_guard.localize import inversion, listening
from lmr_guard.release.policy import Policy
from lmr_guard.settings import Settings

__all__ = ["POINTS", "TINY", "VARIANTS", "build", "grow", "measure"]

POINTS = (
    *(f"slim_resnet18 32 {classes} 500" for classes in (10, 100, 1000)),
    *(f"slim_resnet18 32 10 {images}" for images in (5000, 50000)),
    *(f"{name} 224 1000 300" for name in ("resnet18", "resnet50", "vgg11")),
)
"""Network, side of its images, classes, images."""

VARIANTS = (1, 2, 10, 50)
"""How many variants are built and verified."""

TINY = ("slim_resnet18 32 10 50",)
_PEAK_UNIT = 1 if sys.platform == "darwin" else 1024


def grow(options: argparse.Namespace) -> dict[str, Any]:
    """Each point's record. Raises StageError where one could not be measured."""
    points, counts = (TINY, (1,)) if options.tiny else (POINTS, VARIANTS)
    common = ["--width", f"{options.width}", "--steps", f"{options.steps}"]
    asked = {point: ["point", *point.split(), *common] for point in points}
    asked |= {f"{count} variants": ["variants", f"{count}", *common[:2]] for count in counts}
    found: dict[str, Any] = {}
    for name, arguments in asked.items():
        command = [sys.executable, "-m", "examples.lab.benchmarks", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            raise StageError(f"expected {name} to be measured, got: {done.stderr.strip()[-300:]}")
        found[name] = json.loads(done.stdout)
    return found


def build(options: argparse.Namespace) -> dict[str, Any]:
    """So many variants, one of them not pruned, built and verified in this process."""
    images = pictures(10, 120, 1)
    clean = Clean(images, pictures(10, 60, 2), pictures(10, 120, 3))
    model, ratios = network(10, options.width, "cpu"), range(1, options.count)
    built = recipes.parse(["float32", *(f"l1-{0.01 * ratio:.2f}" for ratio in ratios)])
    policy = Policy(require=("float32",))
    settings = Settings(recipes=built, policy=policy, listening=None, repair=False, threads=1)
    with tempfile.TemporaryDirectory() as folder:
        spent = time_of(
            lambda: pipeline.run_stages(model, clean, (), folder=Path(folder), settings=settings),
            "cpu",
        )
    return {"seconds a variant": round(spent / options.count, 2), "peak GB": _gigabytes(_peak())}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One point, in this process."""
    data = pictures(options.classes, options.images, 1, options.side)
    model = _network(options)
    before = _peak()
    look = (inversion.InversionSettings(steps=options.steps),)
    searching = listening.ListeningSettings(look=look, deep=look, doubt=1e9)
    working = Settings().working(model, data.subset(torch.arange(min(len(data), 300))))
    drawn = torch.Generator().manual_seed(0)
    spent = time_of(lambda: listening.listen(working, data, searching, drawn), "cpu")
    return {
        "parameters": sum(each.numel() for each in model.parameters()),
        "steps": options.steps,
        "seconds a step": round(spent / options.steps, 3),
        "peak GB before": _gigabytes(before),
        "peak GB": _gigabytes(_peak()),
        "light": working.light,
    }


def _network(options: argparse.Namespace) -> Classifier:
    if options.network == "slim_resnet18":
        return network(options.classes, options.width, "cpu")
    torch.manual_seed(0)
    made = torchvision.models.get_model(options.network, num_classes=options.classes)
    shape = Preprocessing(height=options.side, width=options.side)
    return Classifier(made, shape, options.classes).eval()


def _gigabytes(count: int) -> float:
    return round(count / 1e9, 3)


def _peak() -> int:
    """The most bytes that this process has held at once so far."""
    return _PEAK_UNIT * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
