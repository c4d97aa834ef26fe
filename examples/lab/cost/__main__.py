# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What localising and auditing cost, as multiples of RNP on the same network in the same run.

    python -m examples.lab.cost --out cost.json

RNP (unlearning, recovery of the masks, the defender's sweep), localize (forms included) and the
audit of the twelve standard variants take turns on one network of ResNet-18's shape for 32x32
images, on one thread; processor time counts on the CPU, the clock on a GPU. The images are made
here: a smooth picture per class, and noise. Then one search of an untrained network for growing
numbers of classes, deep ones too, in multiples of that for ten.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console

from examples.lab.kit import command
from examples.lab.kit.baselines import rnp, units
from examples.lab.kit.measuring import synchronised
from examples.lab.kit.networks import with_seed
from examples.lab.kit.provenance import commit, provenance
from lmr_guard import pipeline
from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.compress import quantize, recipes, sweep
from lmr_guard.contracts import Clean, Labelled
from lmr_guard.errors import ExitCode
from lmr_guard.files import atomic
from lmr_guard.localize import inversion, listening
from lmr_guard.measure import accuracy
from lmr_guard.redteam.networks import slim_resnet18
from lmr_guard.redteam.training import Schedule, fit_clean
from lmr_guard.settings import Settings

__all__ = ["compare_times", "main", "network", "pictures", "time_by_classes", "time_of"]

_WIDE = 120
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
    made = with_seed(partial(slim_resnet18, classes, width), 0)
    return Classifier(made, _SHAPE, classes).to(device).eval()


def time_of(work: Callable[[], object], device: str) -> float:
    """Processor time of the work in seconds, or the time on the clock where a GPU does it."""
    clock = process_time if device == "cpu" else partial(synchronised, device)
    start = clock()
    work()
    return clock() - start


def compare_times(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each, round by round, and the ratios."""
    images = 60 if options.tiny else 500
    clean = Clean(pictures(10, images, 1), pictures(10, images // 2, 2), pictures(10, images, 3))
    schedule = Schedule(epochs=1 if options.tiny else 6, lr=0.05, batch=64)
    model = fit_clean(
        network(10, options.width, options.device),
        pictures(10, 4 * images, 4),
        schedule,
        torch.Generator().manual_seed(0),
    )
    forms = _forms(model, clean, tiny=options.tiny)
    jobs = _jobs(model, clean, forms, options)
    rounds = [
        {name: round(time_of(work, options.device), 2) for name, work in jobs.items()}
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


def _forms(model: Classifier, clean: Clean, *, tiny: bool) -> list[Classifier]:
    """What the audit searches, weights rounded in place of 8 bits."""
    chosen = recipes.parse(["float32", "int8"]) if tiny else recipes.standard()
    drawn = torch.Generator().manual_seed(0)
    return [
        form.classifier if form.recipe.int8 is None else quantize.rounded(form.classifier)
        for form in sweep.torch_forms(model, chosen, clean, drawn)
    ]


def _jobs(
    model: Classifier, clean: Clean, forms: Sequence[Classifier], options: argparse.Namespace
) -> dict[str, Callable[[], object]]:
    """What takes turns."""
    short = Schedule(epochs=1)
    baseline = rnp.Config(unlearning=short, recovery=short) if options.tiny else rnp.Config()
    config = Settings(device=options.device)
    one = (inversion.InversionSettings(steps=1),)
    searching = listening.ListeningSettings()
    if options.tiny:
        config = replace(config, localize=replace(config.localize, look=one, deep=one))
        searching = replace(searching, look=one, deep=one)

    def audit_all() -> None:
        for form in forms:
            _listen(form, clean.report, searching)

    return {
        "rnp": lambda: _rnp(model, clean, baseline),
        "localize": lambda: pipeline.suspect(model, clean, config),
        "audit": audit_all,
    }


def _rnp(model: Classifier, clean: Clean, config: rnp.Config) -> None:
    drawn = torch.Generator().manual_seed(0)
    found, _ = units.find_masks(model, clean.repair, config, drawn)
    for threshold in units.THRESHOLDS:
        accuracy(units.prune(model, found, threshold), clean.select)


def _ratio(rounds: list[dict[str, float]], job: str) -> dict[str, float]:
    ratios = [each[job] / each["rnp"] for each in rounds]
    named = (("least", min), ("median", statistics.median), ("most", max))
    return {name: round(float(of(ratios)), 2) for name, of in named}


def _listen(model: Classifier, images: Labelled, config: listening.ListeningSettings) -> None:
    listening.listen(model, images, config, torch.Generator().manual_seed(0))


def time_by_classes(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of one search with all that may follow by number of classes, over those for ten."""
    config = listening.ListeningSettings(doubt=1.0, images=1000)
    if options.tiny:
        one = (inversion.InversionSettings(steps=1),)
        config = replace(config, look=one, deep=one)
    spent = {}
    for classes in (10, 100, 1000):
        model, images = network(classes, options.width, options.device), pictures(classes, 1000, 1)
        work = partial(_listen, model, images, config)
        spent[classes] = min(time_of(work, options.device) for _ in range(options.rounds))
    return {f"{classes}": round(value / spent[10], 2) for classes, value in spent.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write what was asked for, and return the exit code."""
    return command.answer(partial(_act, arguments), width=_WIDE, pieces="results")


def _act(arguments: Sequence[str] | None, console: Console) -> int:
    parser = command.parser("cost", __doc__)
    parser.add_argument("--out", type=Path, help="also write the result here, as JSON")
    parser.add_argument("--width", type=int, default=16, help="channels of the first stage")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--tiny", action="store_true", help="all cut short, for the tests")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = {
        **compare_times(options),
        "search by classes": time_by_classes(options),
        "environment": provenance(commit(), options.device),
    }
    text = json.dumps(found, indent=2)
    console.print(text, markup=False)
    if options.out is not None:
        with atomic(options.out) as file:
            file.write(text.encode() + b"\n")
    return ExitCode.PASSED


if __name__ == "__main__":
    sys.exit(main())
