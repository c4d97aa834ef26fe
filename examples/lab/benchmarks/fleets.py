# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""How much sooner a fleet ends with two workers on Ray than with one.

The clock is read around the whole fleet, the start of the cluster included. Each worker has one
thread, so that what is compared is workers; both take turns, first one, then the other.
"""

import argparse
import os
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image

from lmr_guard import demo
from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.errors import StageError
from lmr_guard.files import save_weights
from lmr_guard.fleet import executors, fleet
from lmr_guard.fleet.plan import Names, Option, Plan, read
from lmr_guard.redteam.networks import digits_resnet
from lmr_guard.redteam.training import Schedule, fit_clean

__all__ = ["spread"]

_WORKERS = (1, 2)
_OPTIONS = {
    "arch": Option(on="--arch"),
    "clean": Option(on="--clean", names=Names.PATH),
    "input_size": Option(on="--input-size", joined=True),
    "mean": Option(on="--mean", joined=True),
    "std": Option(on="--std", joined=True),
    "seed": Option(on="--seed", kind=int),
    "suspect": Option(on="--suspect", kind=int),
    "trigger": Option(on="--trigger", names=Names.PATCH, many=True),
    "variants": Option(on="--variants", joined=True),
    "audit_steps": Option(on="--audit-steps", kind=int),
}
_DEFAULTS = """\
[defaults]
arch = "lmr_guard.redteam.networks:digits_resnet"
input_size = [1, 16, 16]
mean = [0.0]
std = [1.0]
clean = "clean"
model = "model.safetensors"
trigger = "patch.png@11,11:3"
suspect = 3
variants = ["float32", "int8"]
audit_steps = 0
"""


def spread(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each round by workers, and how many times sooner two of them end."""
    rounds: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="lmr-guard-fleet-") as place:
        plan = _planned(Path(place), 2 if options.tiny else options.units)
        for number in range(options.rounds):
            order = _WORKERS if number % 2 == 0 else _WORKERS[::-1]
            took = {w: _timed(plan, Path(place) / f"{number}-{w}", w) for w in order}
            rounds.append({f"{workers} workers": took[workers] for workers in _WORKERS})
    ratios = [each["1 workers"] / each["2 workers"] for each in rounds]
    return {
        "units": len(plan.units),
        "seconds": rounds,
        "times sooner": [min(ratios), median(ratios), max(ratios)],
        "load at the end": os.getloadavg()[0],
    }


def _timed(plan: Plan, out: Path, workers: int) -> float:
    executor = partial(executors.ray, workers=workers, threads=1)
    start = time.monotonic()
    found = fleet.run(plan, out, executor=executor)
    took = time.monotonic() - start
    if any(row.done.report_sha256 is None for row in found.rows):
        raise StageError(f"expected a verdict of each unit, got: {'; '.join(found.reasons())}")
    return round(took, 1)


def _planned(place: Path, count: int) -> Plan:
    """One honest network of digits, to be repaired and audited under seeds of its own."""
    attackers, users = demo.digits(0)
    shape = Preprocessing(channels=1, height=16, width=16, mean=(0.0,), std=(1.0,))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fresh = Classifier(digits_resnet(), shape, 10)
    schedule = Schedule(epochs=8, lr=0.1, batch=64, shift=1)
    trained = fit_clean(fresh, attackers, schedule, torch.Generator().manual_seed(0))
    save_weights(trained, place / "model.safetensors")
    demo.write_folder(users, place / "clean")
    Image.new("L", (4, 4), 255).save(place / "patch.png")
    units = "".join(f'\n[[unit]]\nname = "u{n}"\nseed = {n}\n' for n in range(count))
    path = place / "plan.toml"
    path.write_text(_DEFAULTS + units, encoding="utf-8")
    return read(path, _OPTIONS)
