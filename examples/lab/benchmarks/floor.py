# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What the network alone costs, and how far above that a search and a step of repair are.

The floor of a search is a forward and a backward pass to the pixels for each image that it tries;
that of a step of repair the passes that its losses need: the model on lured and on rehearsed images
and one twin, forward and backward, and the teacher forward. In the same arithmetic and layout, so
what is above 1 is ours: patterns, projections, drawing, twins' weights, the optimiser.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from examples.lab.benchmarks.subjects import time_of, trained
from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Clean
from lmr_guard.localize import inversion, spaces
from lmr_guard.repel import RepelSettings
from lmr_guard.repel.trainer import Trainer, lures_for, phase1_loss, tolerated
from lmr_guard.settings import Settings
from lmr_guard.workshop import Structure, repair_twins

__all__ = ["above_floor", "rates"]

_SUSPECT = 3


def above_floor(options: argparse.Namespace) -> dict[str, Any]:
    """Least, median and most of a stage's time over that of its passes, for each precision."""
    model, clean = trained(options.width, options.device, tiny=options.tiny)
    found: dict[str, Any] = {"machine": rates()}
    for precision in ("float32", "auto"):
        settings = Settings(device=options.device, precision=precision)
        working = settings.working(model, clean.repair)
        pairs = {
            **{f"search, {space}": _search(working, clean, space) for space in spaces.SPACES},
            "step of repair": _step(working, clean, settings),
        }
        for name, (ours, bare) in pairs.items():
            ratios = []
            for _ in range(options.rounds):
                floor = time_of(bare, options.device)
                ratios.append(time_of(ours, options.device) / max(floor, 1e-9))
            three = (min(ratios), statistics.median(ratios), max(ratios))
            found[f"{name}, {precision}"] = [round(each, 2) for each in three]
    return found


def _search(
    model: Classifier, clean: Clean, space: spaces.Space
) -> tuple[Callable[[], object], Callable[[], object]]:
    (settings,) = inversion.starts_in(space, inversion.LOOK)
    count = model.num_classes * settings.batch
    pixels = clean.repair.pixels[:count].to(model.device)

    def ours() -> None:
        inversion.invert(model, clean.repair, space, inversion.LOOK, _seeded())

    def bare() -> None:
        for _ in range(settings.steps):
            _to_pixels(model, pixels)

    return ours, bare


def _to_pixels(model: Classifier, pixels: Tensor) -> None:
    changed = pixels.clone().requires_grad_()
    torch.autograd.grad(model(changed).logsumexp(dim=1).sum(), [changed])


def _step(
    model: Classifier, clean: Clean, settings: Settings
) -> tuple[Callable[[], object], Callable[[], object]]:
    repel: RepelSettings = settings.repel
    twins = repair_twins(model, settings.recipes, Structure(model))
    outside = clean.repair.subset(clean.repair.labels != _SUSPECT)
    trainer = Trainer(
        model.clone(),
        _SUSPECT,
        repel,
        _seeded(),
        clean=clean.repair,
        augmentation=tolerated(model, clean.select, repel, _seeded()),
        twins=twins,
        lures=lures_for(model, outside, _SUSPECT, repel, twins=twins, generator=_seeded()),
    )
    alone, pixels = model.clone(), clean.repair.pixels[: repel.batch].to(model.device)
    optimiser = torch.optim.SGD(alone.parameters(), lr=1e-6)

    def ours() -> None:
        trainer.epoch(outside, lambda z, y: phase1_loss(z, y, _SUSPECT, repel), 1e-6)

    def bare() -> None:
        for _ in range(repel.pass_steps or 1):
            for _ in range(3 if twins else 2):
                alone(pixels).logsumexp(dim=1).sum().backward()
            with torch.no_grad():
                alone(pixels)
            optimiser.step()
            optimiser.zero_grad()

    return ours, bare


def rates(size: int = 1024) -> dict[str, float]:
    """What this machine does at best: 1e9 multiply-adds a second of a matrix, 1e9 bytes moved."""
    found = {}
    for name, kind in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        one, other = torch.ones(2, size, size, dtype=kind)

        def multiply(one: Tensor = one, other: Tensor = other) -> Tensor:
            return one @ other

        multiply()
        best = min(time_of(multiply, "cpu") for _ in range(5))
        found[f"{name}, multiply-adds"] = round(size**3 / best / 1e9, 1)
    block = torch.ones(1 << 25)
    block.clone()
    best = min(time_of(block.clone, "cpu") for _ in range(5))
    found["bytes, read and written"] = round(8 * len(block) / best / 1e9, 1)
    return found


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)
