# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The stages beside other repairs of the same network, each in float32 and as it is by default.

All take turns, round by round, and only ratios within a round count: a machine whose speed changes
changes all of them.
"""

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch

from examples.lab.benchmarks.plain import plain_lmr
from examples.lab.benchmarks.subjects import network, pictures, time_of, trained
from examples.lab.kit.baselines import finetune, mnp, rnp, units
from lmr_guard import pipeline
from lmr_guard.classifier import Classifier
from lmr_guard.compress import quantize, recipes, sweep
from lmr_guard.contracts import Clean
from lmr_guard.localize import inversion, listening
from lmr_guard.measure import accuracy
from lmr_guard.redteam.training import Schedule
from lmr_guard.settings import Settings

__all__ = ["BASES", "SUSPECT", "compare", "in_turn", "ratios", "rnp_alone", "time_by_classes"]

BASES = ("rnp", "mnp", "plain loop")
"""What the others are given as multiples of."""

SUSPECT = 3
"""Whom repairs repel."""

_SHORT = (inversion.InversionSettings(steps=1),)
Precision = Literal["auto", "float32"]


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each job, round by round, and their ratios to each base."""
    model, clean = trained(options.width, options.device, tiny=options.tiny)
    forms = _forms(model, clean, options)
    jobs = _jobs(model, clean, forms, options)
    rounds = in_turn(jobs, options.rounds, options.device)
    return {
        "network": f"slim_resnet18, width {options.width}",
        "clean accuracy": accuracy(model, clean.report).value,
        "images": {"repair": len(clean.repair), "report": len(clean.report)},
        "forms audited": len(forms),
        "light": Settings(device=options.device).working(model, clean.repair).light,
        "seconds": rounds,
        **{f"times {base}": ratios(rounds, base) for base in BASES},
    }


def _forms(model: Classifier, clean: Clean, options: argparse.Namespace) -> list[Classifier]:
    """What the audit searches, weights rounded in place of 8 bits."""
    chosen = recipes.parse(["float32", "int8"]) if options.tiny else recipes.standard()
    drawn = torch.Generator().manual_seed(0)
    return [
        form.classifier if form.recipe.int8 is None else quantize.rounded(form.classifier)
        for form in sweep.torch_forms(model, chosen[: options.forms], clean, drawn)
    ]


def _jobs(
    model: Classifier, clean: Clean, forms: Sequence[Classifier], options: argparse.Namespace
) -> dict[str, Callable[[], object]]:
    """What takes turns."""
    short = Schedule(epochs=1)
    weighing = mnp.Config(exposing=short, masking=short) if options.tiny else mnp.Config()
    tuning = finetune.Config(schedule=short) if options.tiny else finetune.Config()
    jobs: dict[str, Callable[[], object]] = {
        "rnp": rnp_alone(model, clean, tiny=options.tiny),
        "mnp": lambda: _masked(model, clean, weighing),
        "fine-tuning": lambda: finetune.finetune(model, clean.repair, tuning, _seeded()),
        "plain loop": lambda: plain_lmr(model, clean.repair, SUSPECT, 1 if options.tiny else None),
    }
    for precision in ("float32", "auto"):
        jobs |= _ours(model, clean, forms, options, precision)
    return jobs


def _ours(
    model: Classifier,
    clean: Clean,
    forms: Sequence[Classifier],
    options: argparse.Namespace,
    precision: Precision,
) -> dict[str, Callable[[], object]]:
    """Our stages in one precision."""
    settings = Settings(device=options.device, precision=precision)
    searching = listening.ListeningSettings()
    if options.tiny:
        repel = replace(settings.repel, pass_steps=1, lure_steps=2, learning_rates=(0.01,))
        localize = replace(settings.localize, look=_SHORT, deep=_SHORT)
        settings = replace(settings, localize=localize, repel=repel)
        searching = replace(searching, look=_SHORT, deep=_SHORT)
    named = replace(settings, suspect=SUSPECT)

    def audit_all() -> None:
        for form in forms:
            working = settings.working(form, clean.report)
            listening.listen(working, clean.report, searching, _seeded())

    return {
        f"localize, {precision}": lambda: pipeline.suspect(model, clean, settings),
        f"repel, {precision}": lambda: pipeline.localize_and_repel(model, clean, named),
        f"audit, {precision}": audit_all,
    }


def rnp_alone(model: Classifier, clean: Clean, *, tiny: bool) -> Callable[[], object]:
    """RNP with the defender's sweep over thresholds; all cut short where ``tiny``."""
    short = Schedule(epochs=1)
    pruning = rnp.Config(unlearning=short, recovery=short) if tiny else rnp.Config()
    return lambda: _masked(model, clean, pruning)


def _masked(model: Classifier, clean: Clean, config: rnp.Config | mnp.Config) -> None:
    """The masks, and the defender's sweep over thresholds."""
    found, _ = units.find_masks(model, clean.repair, config, _seeded())
    for threshold in units.THRESHOLDS:
        accuracy(units.prune(model, found, threshold), clean.select)


def in_turn(
    jobs: Mapping[str, Callable[[], object]], rounds: int, device: str
) -> list[dict[str, float]]:
    """Seconds of each job, which take turns, round by round."""
    return [
        {name: round(time_of(work, device), 3) for name, work in jobs.items()}
        for _ in range(rounds)
    ]


def ratios(rounds: Sequence[Mapping[str, float]], base: str) -> dict[str, list[float]]:
    """Least, median and most of each job over the base in the same round."""
    found = {}
    for job in rounds[0]:
        ratios = [each[job] / max(each[base], 1e-9) for each in rounds]
        three = (min(ratios), statistics.median(ratios), max(ratios))
        found[job] = [round(float(ratio), 2) for ratio in three]
    return found


def time_by_classes(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of one search with all that may follow by number of classes, over those for ten."""
    config = listening.ListeningSettings(doubt=1.0, images=1000)
    if options.tiny:
        config = replace(config, look=_SHORT, deep=_SHORT)
    settings, spent = Settings(device=options.device), {}
    for classes in (10, 100, 1000):
        images = pictures(classes, 1000, 1)
        model = settings.working(network(classes, options.width, options.device), images)

        def search(model: Classifier = model, classes: int = classes) -> None:
            listening.listen(model, pictures(classes, 1000, 1), config, _seeded())

        spent[classes] = min(time_of(search, options.device) for _ in range(options.rounds))
    return {f"{classes}": round(value / spent[10], 2) for classes, value in spent.items()}


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)
