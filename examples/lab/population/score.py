# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What localize and the paper's localiser say of a network."""

from collections import Counter
from dataclasses import asdict
from time import perf_counter, process_time
from typing import Any

from examples.lab.kit.measuring import name_by_unlearning
from examples.lab.population.planting import generator
from examples.lab.population.subjects import Subject
from lmr_guard import pipeline
from lmr_guard.classifier import weights_sha256
from lmr_guard.compress import recipes
from lmr_guard.localize import inversion, rule
from lmr_guard.release import report
from lmr_guard.settings import Settings

__all__ = ["score"]


def score(subject: Subject) -> dict[str, Any]:
    """Both localisers' answers, and on what they rest.

    Raises:
        GuardError: A step could not be done.
    """
    member, clean, trained = subject.member, subject.clean, subject.trained
    usual = Settings(seed=member.seed).within(subject.budget)
    config = _tiny(member.seed) if subject.tiny else usual
    start, used = perf_counter(), process_time()
    suspicion = pipeline.suspect(trained.classifier, clean, config)
    seconds = {"localize": perf_counter() - start, "localize_processor": process_time() - used}
    start = perf_counter()
    drawn = generator(member, "unlearning")
    runs = name_by_unlearning(trained.classifier, clean.repair, drawn)
    seconds["unlearning"] = perf_counter() - start
    return {
        "forms": subject.forms,
        "suspicion": report.suspicion_record(suspicion),
        "unlearning": {"class": _majority([run["class"] for run in runs]), "runs": runs},
        "images": {
            "train": len(subject.held.train),
            "repair": len(clean.repair),
            "select": len(clean.select),
            "report": len(clean.report),
        },
        "planted": {**trained.record, "weights": weights_sha256(trained.classifier)[:16]},
        "settings": {"tiny": subject.tiny, "localize": asdict(config.localize)},
        "seconds": {step: round(value, 2) for step, value in seconds.items()},
    }


def _majority(classes: list[int]) -> int:
    """The class that most runs name; of several the one that was named first."""
    return Counter(classes).most_common(1)[0][0]


def _tiny(seed: int) -> Settings:
    one = (inversion.InversionSettings(steps=1),)
    search = rule.LocalizeSettings(look=one, deep=one)
    forms = recipes.parse(["float32", "int8"])
    return Settings(seed=seed, localize=search, recipes=forms)
