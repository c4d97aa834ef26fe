# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What localising and auditing cost, as multiples of RNP on the same network in the same run.

    python -m examples.cost --out cost.json

RNP (unlearning, recovery of the masks, the defender's sweep), localize (forms included) and the
audit of the twelve standard variants take turns on one network of ResNet-18's shape for 32x32
images, on one thread; processor time counts on the CPU, the clock on a GPU. The images are made
here: a smooth picture a class, and noise. Then one search of an untrained network for growing
numbers of classes, with all repeats, in multiples of that for ten.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch
import torch.nn.functional as F

from examples.reproduce.baselines import rnp, units
from examples.reproduce.cells import commit
from lmr_guard import pipeline
from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.compress import quantize, recipes, sweep
from lmr_guard.contracts import Clean, Labelled
from lmr_guard.files import atomic
from lmr_guard.localize import inversion, listening
from lmr_guard.measure import accuracy
from lmr_guard.redteam.networks import slim_resnet18
from lmr_guard.redteam.training import Schedule, fit_clean
from lmr_guard.release import report

_SHAPE = Preprocessing(height=32, width=32, mean=(0.5,) * 3, std=(0.25,) * 3)


def pictures(classes: int, count: int, seed: int) -> Labelled:
    """``count`` images (3, 32, 32) of ``classes`` smooth pictures in turn, each with noise."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(classes, 3, 4, 4, generator=generator)
    smooth = F.interpolate(coarse, (32, 32), mode="bicubic", align_corners=True)
    labels = torch.arange(count) % classes
    noise = torch.randn(count, 3, 32, 32, generator=generator.manual_seed(seed + 1))
    pixels = (smooth[labels] + 0.15 * noise).clamp(0, 1)
    return Labelled((pixels * 255).to(torch.uint8), labels, tuple(map(str, range(classes))))


def network(classes: int, width: int, device: str) -> Classifier:
    """Untrained, its weights drawn by seed 0; the global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = slim_resnet18(classes, width)
    return Classifier(made, _SHAPE, classes).to(device).eval()


def seconds(work: Callable[[], object], device: str) -> float:
    """Processor time of the work, or the time on the clock where a GPU does it."""
    clock = process_time if device == "cpu" else perf_counter
    if device != "cpu":
        torch.cuda.synchronize()
    start = clock()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - start


def _rnp(model: Classifier, clean: Clean, config: rnp.Config) -> None:
    found, _ = rnp.masks(model, clean.repair, config, torch.Generator().manual_seed(0))
    for threshold in units.THRESHOLDS:
        accuracy(units.pruned(model, found, threshold), clean.select)


def compared(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each, round by round, and the ratios."""
    images = 60 if options.tiny else 500
    epochs = 1 if options.tiny else 6
    steps = 1 if options.tiny else inversion.InversionSettings().steps
    clean = Clean(pictures(10, images, 1), pictures(10, images // 2, 2), pictures(10, images, 3))
    fresh = network(10, options.width, options.device)
    schedule = Schedule(epochs=epochs, lr=0.05, batch=64)
    generator = torch.Generator().manual_seed(0)
    model = fit_clean(fresh, pictures(10, 4 * images, 4), schedule, generator)
    search = inversion.InversionSettings(steps=steps)
    config = pipeline.GuardConfig(device=options.device)
    config = replace(config, localize=replace(config.localize, inversion=search))
    chosen = recipes.parse(["float32", "int8"]) if options.tiny else recipes.standard()
    forms = [
        form.classifier if form.recipe.int8 is None else quantize.rounded(form.classifier)
        for form in sweep.torch_forms(model, chosen, clean, torch.Generator().manual_seed(0))
    ]
    searching = listening.ListeningSettings(inversion=search)
    baseline = rnp.Config()
    if options.tiny:
        short = Schedule(epochs=1)
        baseline = rnp.Config(unlearning=short, recovery=short)

    def audited() -> None:
        for form in forms:
            _searched(form, clean.report, searching)

    jobs: dict[str, Callable[[], object]] = {
        "rnp": lambda: _rnp(model, clean, baseline),
        "localize": lambda: pipeline.suspect(model, clean, config),
        "audit": audited,
    }
    rounds = [
        {name: round(seconds(work, options.device), 2) for name, work in jobs.items()}
        for _ in range(options.rounds)
    ]
    return {
        "network": f"slim_resnet18, width {options.width}",
        "clean accuracy": accuracy(model, clean.report).value,
        "images": {"repair": images, "report": images},
        "variants": len(forms),
        "seconds": rounds,
        "localize / rnp": _ratio(rounds, "localize"),
        "audit / rnp": _ratio(rounds, "audit"),
    }


def _ratio(rounds: list[dict[str, float]], job: str) -> dict[str, float]:
    ratios = [each[job] / each["rnp"] for each in rounds]
    named = (("least", min), ("median", statistics.median), ("most", max))
    return {name: round(float(of(ratios)), 2) for name, of in named}


def _searched(model: Classifier, images: Labelled, config: listening.ListeningSettings) -> None:
    listening.listen(model, images, config, torch.Generator().manual_seed(0), limit=2.0)


def grown(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of one search with all repeats by number of classes, over those for ten."""
    steps = 1 if options.tiny else inversion.InversionSettings().steps
    config = listening.ListeningSettings(
        inversion=inversion.InversionSettings(steps=steps), doubt=1.0, images=1000
    )
    spent = {}
    for classes in (10, 100, 1000):
        model, images = network(classes, options.width, options.device), pictures(classes, 1000, 1)
        work = partial(_searched, model, images, config)
        spent[classes] = min(seconds(work, options.device) for _ in range(options.rounds))
    return {f"{classes}": round(value / spent[10], 2) for classes, value in spent.items()}


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="also write the result here, as JSON")
    parser.add_argument("--width", type=int, default=16, help="channels of the first stage")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--tiny", action="store_true", help="all cut short, for the tests")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = {
        **compared(options),
        "search by classes": grown(options),
        "environment": {**report.environment(options.device), "commit": commit()},
    }
    text = json.dumps(found, indent=2)
    print(text)
    if options.out is not None:
        with atomic(options.out) as file:
            file.write(text.encode() + b"\n")


if __name__ == "__main__":
    main()
