# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Every defence of the tables behind one call: a backdoored network in, repaired ones out."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch

from examples.lab.kit.baselines import finetune, mnp, rnp, units
from examples.lab.kit.measuring import synchronised
from examples.lab.kit.planting import StoredTrigger
from examples.lab.reproduce.data import DataSet, Scale
from lmr_guard import repel
from lmr_guard.classifier import Classifier, weights_sha256
from lmr_guard.compress.recipes import Int8, Recipe, standard
from lmr_guard.compress.twins import twins
from lmr_guard.contracts import Clean, Progress, Twin, silent
from lmr_guard.errors import StageError
from lmr_guard.redteam.training import Schedule
from lmr_guard.results import Repair

__all__ = ["METHODS", "Repaired", "Situation", "phases"]

# Slim networks have about a tenth of the units, and each mask matters ten times as much: at RNP's
# rate every threshold cost most of the clean accuracy.
_SLIM_MASKS = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class Situation:
    """What a defender is given, and for the oracle what none is.

    Args:
        classifier: Backdoored.
        clean: The defender's images, and those to report on.
        suspect: The class to repel; None where localize abstained.
        dataset: Says how training images may be varied.
        scale: Of the networks.
        trigger: For methods that are named ``oracle`` only.
        generator: Gives each method a CPU generator of its own, by a word.
        device: Whose clock counts.
        tiny: Whether everything is cut short.
        progress: Told how far a method is.
    """

    classifier: Classifier
    clean: Clean
    suspect: int | None
    dataset: DataSet
    scale: Scale
    trigger: StoredTrigger
    generator: Callable[[str], torch.Generator]
    device: str
    tiny: bool = False
    progress: Progress = silent

    def varied(self, schedule: Schedule) -> Schedule:
        """The schedule with the augmentation of the data set."""
        varied = replace(schedule, shift=self.dataset.shift, flip=self.dataset.flip)
        return replace(varied, epochs=1) if self.tiny else varied

    def masking(self, schedule: Schedule) -> Schedule:
        """The same for learning masks, whose rate follows from the width of the network."""
        varied = self.varied(schedule)
        return replace(varied, lr=varied.lr * _SLIM_MASKS) if self.scale == "small" else varied

    def short(self, config: repel.RepelSettings) -> repel.RepelSettings:
        """The configuration, or the least that still goes through both phases."""
        if not self.tiny:
            return config
        return replace(
            config,
            learning_rates=(0.01,),
            phase1_epochs=1,
            phase1_minimum=1,
            phase2_epochs=1,
            lure_steps=1,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Repaired:
    """What one method made of it.

    Args:
        name: As it stands in records.
        classifier: None where the method does not apply.
        seconds: That the defence took; None for the network as received.
        record: Settings and what the method tells of itself; ``note`` is for the reader.
        recover: What is done to each pruned form before it is measured; None leaves it as cut.
    """

    name: str
    classifier: Classifier | None
    seconds: float | None = None
    record: dict[str, Any] = field(default_factory=dict)
    recover: Callable[[Classifier], Classifier] | None = None


def _twins(classifier: Classifier) -> tuple[Twin, ...]:
    """The compressed forms that LMR looks through by default, as the guard's command does."""
    try:
        return twins(classifier, standard())
    except StageError:
        return twins(classifier, [recipe for recipe in standard() if recipe.prune is None])


def _recipe(name: str, situation: Situation) -> tuple[repel.RepelSettings, tuple[Twin, ...]]:
    """``lmr`` is the project's default, ``lmr-paper`` the paper's without what was added."""
    if name == "lmr-paper":
        return situation.short(repel.PAPER), ()
    return situation.short(repel.RepelSettings()), _twins(situation.classifier)


def _none(situation: Situation) -> Iterator[Repaired]:
    yield Repaired("none", situation.classifier)


def _lmr(situation: Situation) -> Iterator[Repaired]:
    yield _run_lmr("lmr", situation)


def _lmr_paper(situation: Situation) -> Iterator[Repaired]:
    yield _run_lmr("lmr-paper", situation)


def _lmr_recovered(situation: Situation) -> Iterator[Repaired]:
    repaired = _run_lmr("lmr", situation)
    yield repaired
    config = situation.short(repel.AFTER_PRUNING)
    told = {"suspect": situation.suspect, "config": asdict(config)}

    def recover(pruned: Classifier) -> Classifier:
        seen = twins(pruned, [Recipe(int8=Int8())])
        return _repel("lmr-recovered", replace(situation, classifier=pruned), config, seen)[0]

    known = situation.suspect is not None
    yield replace(repaired, name="lmr-recovered", record=told, recover=recover if known else None)


def _run_lmr(name: str, situation: Situation) -> Repaired:
    told: dict[str, Any] = {"suspect": situation.suspect}
    if situation.suspect is None:
        told["note"] = "localize named no class: not repaired"
        return Repaired(name, situation.classifier, 0.0, told)
    start = synchronised(situation.device)
    config, seen = _recipe(name, situation)
    model, record = _repel(name, situation, config, seen)
    told["twins"] = [twin.name for twin in seen]
    told["config"] = asdict(config)
    told["history"] = [line for line in record.history if line.get("phase") != 1]
    told["steps"] = [record.phase1_steps, record.phase2_steps]
    return Repaired(name, model, synchronised(situation.device) - start, told)


def _repel(
    name: str,
    situation: Situation,
    config: repel.RepelSettings,
    seen: tuple[Twin, ...],
    observe: Callable[[int, Classifier], None] | None = None,
) -> tuple[Classifier, Repair]:
    if situation.suspect is None:
        raise StageError("expected a suspect class to repel, got none")
    return repel.repel(
        situation.classifier,
        situation.suspect,
        situation.clean,
        settings=config,
        generator=situation.generator(name),
        twins=seen,
        observe=observe,
        progress=situation.progress,
    )


def phases(name: str, situation: Situation) -> tuple[Classifier, Classifier]:
    """The network after phase 1 and after phase 2 of the learning rate that LMR kept.

    Args:
        name: ``lmr`` or ``lmr-paper``.
        situation: As for any method.

    Raises:
        StageError: There is no suspect class, or nothing could be repaired.
    """
    config, seen = _recipe(name, situation)
    shown: list[tuple[int, Classifier]] = []
    repaired, _ = _repel(
        name, situation, config, seen, lambda phase, model: shown.append((phase, model))
    )
    kept = weights_sha256(repaired)
    at = next(i for i, (n, model) in enumerate(shown) if n == 2 and weights_sha256(model) == kept)
    return shown[at - 1][1], shown[at][1]


def _finetune(situation: Situation) -> Iterator[Repaired]:
    config = finetune.Config()
    config = replace(config, schedule=situation.varied(config.schedule))
    start = synchronised(situation.device)
    drawn = situation.generator("finetune")
    model = finetune.finetune(situation.classifier, situation.clean.repair, config, drawn)
    seconds = synchronised(situation.device) - start
    yield Repaired("finetune", model, seconds, {"config": asdict(config)})


def _rnp(situation: Situation) -> Iterator[Repaired]:
    found = _learn_masks("rnp", situation, rnp.Config())
    if isinstance(found, str):
        for name in ("rnp", "rnp-oracle"):
            yield Repaired(name, None, None, {"note": found})
        return
    yield _by_select("rnp", situation, found)
    start = synchronised(situation.device)
    report, trigger = situation.clean.report, situation.trigger
    best = rnp.oracle_threshold(situation.classifier, found.masks, report, trigger)
    model = units.prune(situation.classifier, found.masks, best)
    seconds = found.seconds + synchronised(situation.device) - start
    yield Repaired("rnp-oracle", model, seconds, {**found.record, "threshold": best})


def _mnp(situation: Situation) -> Iterator[Repaired]:
    found = _learn_masks("mnp", situation, mnp.Config())
    if isinstance(found, str):
        yield Repaired("mnp", None, None, {"note": found})
    else:
        yield _by_select("mnp", situation, found)


@dataclass(frozen=True, slots=True, eq=False)
class _Learnt:
    """Masks, the accuracy that pruning by them may cost, seconds, and what the record says."""

    masks: units.Masks
    tolerance: float
    seconds: float
    record: dict[str, Any]


def _learn_masks(name: str, situation: Situation, plain: rnp.Config | mnp.Config) -> _Learnt | str:
    """What RNP or MNP has learnt, or why it does not apply."""
    ascent, masking = situation.varied(plain.ascent), situation.masking(plain.masking)
    config = plain.with_schedules(ascent, masking)
    start = synchronised(situation.device)
    try:
        units.full_masks(situation.classifier)
    except StageError as error:
        return str(error)
    drawn = situation.generator(name)
    masks, forgot = units.find_masks(situation.classifier, situation.clean.repair, config, drawn)
    note = {} if forgot.reached else {"note": "unlearning did not reach its stop accuracy"}
    told = {
        "config": asdict(config),
        "epochs": forgot.epochs,
        "unlearned_accuracy": round(forgot.accuracy, 4),
        **note,
    }
    return _Learnt(masks, config.tolerance, synchronised(situation.device) - start, told)


def _by_select(name: str, situation: Situation, found: _Learnt) -> Repaired:
    """Pruned at the threshold that a defender can choose."""
    start = synchronised(situation.device)
    model, select = situation.classifier, situation.clean.select
    threshold, sweep = units.choose_threshold(model, found.masks, select, found.tolerance)
    if threshold is not None:
        model = units.prune(model, found.masks, threshold)
    seconds = found.seconds + synchronised(situation.device) - start
    swept = [[step, clean.hits, clean.trials] for step, clean in sweep]
    return Repaired(name, model, seconds, {**found.record, "threshold": threshold, "select": swept})


METHODS: Mapping[str, Callable[[Situation], Iterator[Repaired]]] = MappingProxyType(
    {
        "none": _none,
        "rnp": _rnp,
        "mnp": _mnp,
        "finetune": _finetune,
        "lmr": _lmr,
        "lmr-recovered": _lmr_recovered,
        "lmr-paper": _lmr_paper,
    }
)
"""Methods by name.

``rnp`` gives ``rnp`` (a defender's threshold) and ``rnp-oracle``; ``lmr-recovered`` gives ``lmr``,
and the same with each pruned form repaired once more (``repel.AFTER_PRUNING``).
"""
