# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The whole guard over RNP: searched, repaired, compressed, audited, with three forms and twelve.

The network is honest, so a search of it names nobody; it is searched all the same, and then
repaired with the suspect given, as on a backdoored one. Files are written and measured as in a run.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from examples.lab.benchmarks.stages import SUSPECT, in_turn, ratios, rnp_alone
from examples.lab.benchmarks.subjects import trained
from lmr_guard import pipeline
from lmr_guard.budgets import BUDGETS, Budget
from lmr_guard.classifier import Classifier
from lmr_guard.compress import recipes
from lmr_guard.contracts import Clean
from lmr_guard.release.policy import Policy
from lmr_guard.settings import Settings

__all__ = ["FORMS", "over_rnp"]

FORMS: dict[str, tuple[str, ...]] = {
    "3 forms": ("float32", "int8", "l1-0.4"),
    "12 forms": tuple(recipe.label for recipe in recipes.standard()),
}
"""What is built."""


def over_rnp(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of RNP and of the guard by budget and forms, round by round, and their ratios."""
    model, clean = trained(options.width, options.device, tiny=options.tiny)
    jobs: dict[str, Callable[[], object]] = {"rnp": rnp_alone(model, clean, tiny=options.tiny)}
    for budget in options.budget or BUDGETS:
        for name, labels in FORMS.items():
            short = labels[:1] if options.tiny else labels
            settings = _settings(short, budget, options)
            jobs[f"{name}, {budget}"] = _guard(model, clean, settings)
    rounds = in_turn(jobs, options.rounds, options.device)
    return {
        "network": f"slim_resnet18, width {options.width}",
        "images": {"repair": len(clean.repair), "report": len(clean.report)},
        "seconds": rounds,
        "times rnp": ratios(rounds, "rnp"),
    }


def _settings(labels: tuple[str, ...], budget: Budget, options: argparse.Namespace) -> Settings:
    settings = Settings(
        recipes=recipes.parse(labels),
        policy=Policy(require=("float32",)),
        device=options.device,
        threads=1,
    ).within(budget)
    if not options.tiny:
        return settings
    repel = replace(settings.repel, pass_steps=1, lure_steps=2, learning_rates=(0.01,))
    return replace(settings, repel=repel, listening=None)


def _guard(model: Classifier, clean: Clean, settings: Settings) -> Callable[[], object]:
    def work() -> None:
        pipeline.suspect(model, clean, settings)
        named = replace(settings, suspect=SUSPECT)
        with tempfile.TemporaryDirectory() as folder:
            pipeline.run_stages(model, clean, (), folder=Path(folder), settings=named)

    return work
