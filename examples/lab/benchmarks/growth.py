# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Time and peak memory of one look at a network, as classes, pixels and parameters grow.

Each point is a process of its own, for the peak of a process is never less than that of what it did
before. Networks are untrained: what is measured is what the search holds, not what it finds.
"""

import argparse
import json
import resource
import subprocess
import sys
from typing import Any

import torch
import torchvision

from examples.lab.benchmarks.subjects import network, pictures, time_of
from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.errors import StageError
from lmr_guard.localize import inversion, listening
from lmr_guard.settings import Settings

__all__ = ["POINTS", "TINY", "grow", "measure"]

POINTS = (
    *(f"slim_resnet18 32 {classes} 500" for classes in (10, 100, 1000)),
    *(f"slim_resnet18 32 10 {images}" for images in (5000, 50000)),
    *(f"{name} 224 1000 1000" for name in ("resnet18", "resnet50", "vgg11")),
)
"""Network, side of its images, classes, images."""

TINY = ("slim_resnet18 32 10 50",)
_PEAK_UNIT = 1 if sys.platform == "darwin" else 1024


def grow(options: argparse.Namespace) -> dict[str, Any]:
    """Each point's record. Raises StageError where one could not be measured."""
    found: dict[str, Any] = {}
    for point in TINY if options.tiny else POINTS:
        asked = ["point", *point.split(), "--width", f"{options.width}", "--steps"]
        command = [sys.executable, "-m", "examples.lab.benchmarks", *asked, f"{options.steps}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            raise StageError(f"expected {point} to be measured, got: {done.stderr.strip()[-300:]}")
        found[point] = json.loads(done.stdout)
    return found


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
        "peak GB before": round(before / 1e9, 2),
        "peak GB": round(_peak() / 1e9, 2),
        "light": working.light,
    }


def _network(options: argparse.Namespace) -> Classifier:
    if options.network == "slim_resnet18":
        return network(options.classes, options.width, "cpu")
    torch.manual_seed(0)
    made = torchvision.models.get_model(options.network, num_classes=options.classes)
    shape = Preprocessing(height=options.side, width=options.side)
    return Classifier(made, shape, options.classes).eval()


def _peak() -> int:
    """The most bytes that this process has held at once so far."""
    return _PEAK_UNIT * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
