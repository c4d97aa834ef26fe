# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What is measured of one network, and what localize and the paper's localiser say of it."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from time import perf_counter, process_time
from typing import Any

from examples.population.images import defence
from examples.population.nursery import Grown, generator
from examples.population.plan import Member
from examples.population.records import FORMAT, Record
from examples.reproduce.cells import counts
from examples.reproduce.data import Held
from examples.reproduce.work import plain_unlearning
from lmr_guard import pipeline
from lmr_guard.classifier import Classifier, weights_sha256
from lmr_guard.compress import quantize, recipes, sweep
from lmr_guard.contracts import Clean, Progress, silent
from lmr_guard.errors import StageError
from lmr_guard.localize import inversion, rule
from lmr_guard.measure import accuracy, against_trigger
from lmr_guard.release import report

__all__ = ["TOOK", "measured", "scored"]

TOOK = 0.9
"""The ASR that an attack must reach in the form that wakes it."""

_FORMS = {"float32": "float32", "int8": "rounded-8", "pruned": "l1-0.4"}


def scored(
    member: Member,
    held: Held,
    grown: Grown,
    *,
    commit: str | None,
    tiny: bool = False,
    progress: Progress = silent,
) -> Record:
    """The content of the member's record.

    Args:
        member: Who it is.
        held: Its images.
        grown: The trained network.
        commit: Of the code.
        tiny: Whether searches are cut short, for the tests.
        progress: Told how far localize is.

    Raises:
        GuardError: A step could not be done.
    """
    clean = defence(held, generator(member, "defence"), tiny=tiny)
    forms, took = measured(member, grown, clean)
    config = _tiny(member.seed) if tiny else pipeline.GuardConfig(seed=member.seed)
    start, used = perf_counter(), process_time()
    suspicion = pipeline.suspect(grown.classifier, clean, config, progress)
    seconds = {"localize": perf_counter() - start, "localize_processor": process_time() - used}
    start = perf_counter()
    runs = plain_unlearning(grown.classifier, clean.repair, generator(member, "unlearning"))
    seconds["unlearning"] = perf_counter() - start
    return {
        "format": FORMAT,
        "name": member.name,
        "member": asdict(member),
        "took": took,
        "forms": forms,
        "suspicion": report.suspicion_record(suspicion),
        "unlearning": {"class": _majority([run["class"] for run in runs]), "runs": runs},
        "images": {
            "train": len(held.train),
            "repair": len(clean.repair),
            "select": len(clean.select),
            "report": len(clean.report),
        },
        "planted": {**grown.record, "weights": weights_sha256(grown.classifier)[:16]},
        "settings": {"tiny": tiny, "localize": asdict(config.localize)},
        "seconds": {step: round(value, 2) for step, value in seconds.items()},
        "environment": {**report.environment(), "commit": commit},
    }


def measured(
    member: Member, grown: Grown, clean: Clean
) -> tuple[dict[str, dict[str, Any]], bool | None]:
    """Accuracy and, where there is a trigger, ASR of each form; whether the attack took.

    Args:
        member: Who it is.
        grown: The trained network.
        clean: Its images; rates are counted on ``report``.
    """
    forms = {name: _numbers(form, clean, grown) for name, form in _forms(member, grown, clean)}
    return forms, None if member.attack is None else _took(forms, grown)


def _forms(member: Member, grown: Grown, clean: Clean) -> Iterator[tuple[str, Classifier]]:
    """As received, with weights rounded to 8 bits, and with 40 % of the channels cut."""
    yield "float32", grown.classifier
    yield "rounded-8", quantize.rounded(grown.classifier)
    drawn = generator(member, "compress")
    try:
        for form in sweep.torch_forms(grown.classifier, recipes.parse(["l1-0.4"]), clean, drawn):
            yield "l1-0.4", form.classifier
    except StageError:
        return  # A network that cannot be pruned has no such form.


def _numbers(form: Classifier, clean: Clean, grown: Grown) -> dict[str, Any]:
    told = {"ca": counts(accuracy(form, clean.report))}
    if grown.trigger is not None:
        told["asr"] = counts(against_trigger(form, clean.report, grown.trigger).asr)
    return told


def _took(forms: dict[str, dict[str, Any]], grown: Grown) -> bool:
    awake = forms.get(_FORMS[grown.record["wakes"]])
    return awake is not None and awake["asr"]["hits"] >= TOOK * awake["asr"]["trials"]


def _majority(classes: list[int]) -> int:
    """The class that most runs name; of several the one that was named first."""
    return Counter(classes).most_common(1)[0][0]


def _tiny(seed: int) -> pipeline.GuardConfig:
    search = rule.LocalizeSettings(
        inversion=inversion.InversionSettings(steps=1), confirm=1, repeats=0
    )
    forms = recipes.parse(["float32", "int8"])
    return pipeline.GuardConfig(seed=seed, localize=search, recipes=forms)
