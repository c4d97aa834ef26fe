# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""One table: what each candidate score would have been worth on the same networks.

A score is a number for each class, the higher the more suspicious. Sizes count as
``inversion.strangeness`` does; values of which the largest is suspicious count as their ratio to
the median of the others (``x``) or as their distance from the others' mean in standard deviations
(``z``). Over the forms of a network there are three readings: on the model as ``received``, the
``highest`` over the forms of each class, and the largest ``change`` from the received model to a
compressed form, a quotient of ratios or a difference of distances. ``drift`` is such a change by
itself: it counts as ``drift.lead`` does (``x``) or in standard deviations of the others (``z``).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor

from examples.lab.kit.records import Record
from examples.lab.kit.tables import framed_table
from examples.lab.population.show import FAMILIES, KEYS
from examples.lab.population.split import HALVES
from lmr_guard.contracts import Rate
from lmr_guard.localize.drift import lead
from lmr_guard.localize.inversion import strangeness
from lmr_guard.localize.spaces import SPACES

__all__ = ["FALSE_ALARMS", "READINGS", "SCORES", "Row", "render", "rows", "threshold"]

FALSE_ALARMS = 0.05
"""Share of the clean calibration networks that may be above a score's threshold."""

READINGS = ("received", "highest", "change")

_STILL = 0.01
"""A spread of drifts below one image in a hundred is rounding noise."""

_Scorer = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class _Score:
    """How raw values become a score; ``ordinary`` is that of a class like the others."""

    values: str
    asked: str
    scorer: _Scorer
    ordinary: float


def _others(values: Tensor) -> Tensor:
    """Row c holds the values of all classes but c."""
    count = len(values)
    kept = ~torch.eye(count, dtype=torch.bool)
    return values.expand(count, count)[kept].view(count, count - 1)


def _ratio(values: Tensor) -> Tensor:
    """Over the median of the others; 1 where that is not positive."""
    medians = _others(values).quantile(0.5, dim=1)
    return torch.where(medians > 0, values / medians, 1.0)


def _distance(values: Tensor, sign: float = 1.0) -> Tensor:
    """From the mean of the others in their standard deviations."""
    others = _others(values)
    return sign * (values - others.mean(dim=1)) / others.std(dim=1).clamp_min(1e-6)


def _standing(values: Tensor) -> Tensor:
    """Distance from the mean of the others in their spread."""
    others = _others(values)
    return (values - others.mean(dim=1)) / others.std(dim=1, correction=0).clamp_min(_STILL)


def _listed() -> Iterator[tuple[str, _Score]]:
    for name in (*SPACES, "low", "waves", "blend", "filter", "latent", "active"):
        yield name, _Score(name, name, strangeness, 1.0)
    for name in ("margin", "margin_mean"):
        yield f"{name} x", _Score(name, "margin", _ratio, 1.0)
        yield f"{name} z", _Score(name, "margin", _distance, 0.0)
    for name in ("head_norm", "head_mean", "head_bias"):
        yield f"{name} z", _Score(name, "head", _distance, 0.0)
    yield "head_cosine -z", _Score("head_cosine", "head", partial(_distance, sign=-1.0), 0.0)


SCORES: Mapping[str, _Score] = MappingProxyType(dict(_listed()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One score on one half.

    Args:
        half: Which.
        score: Its name.
        reading: One of ``READINGS``, or ``as scored`` for what ``score`` recorded.
        top: Backdoored networks whose highest class is the attacker's.
        area: Under the ROC of the highest class's score, backdoored against clean; NaN where
            one of them is missing.
        above: As ``top``, and above the threshold.
        alarms: Clean networks above the threshold.
        families: ``above`` of each family of attacks.
        cost: Processor time over that of the three searches of inversion; NaN where not known.
    """

    half: str
    score: str
    reading: str
    top: Rate
    area: float
    above: Rate
    alarms: Rate
    families: Mapping[str, Rate]
    cost: float


@dataclass(frozen=True, slots=True)
class _Case:
    """A network and the score of each of its classes."""

    record: Record
    scores: Tensor

    @property
    def highest(self) -> float:
        return float(self.scores.max())

    @property
    def right(self) -> bool:
        return bool(self.record["member"]["target"] == int(self.scores.argmax()))


def rows(gathered: Sequence[Record], scored: Sequence[Record] = ()) -> list[Row]:
    """All rows. Attacks that did not take are left out; thresholds are the calibration half's.

    Args:
        gathered: Records of ``ask_candidates``.
        scored: Records of ``score``; theirs are the rows ``inversion`` and ``unlearning``.
    """
    found: list[Row] = []
    for name, score in SCORES.items():
        for reading in READINGS:
            cases = [_Case(record, _read(record, score, reading)) for record in gathered]
            found += _halves(name, reading, cases, _cost(gathered, score.asked))
    for name, scorer in (("drift x", lead), ("drift z", _standing)):
        cases = [_Case(record, _drifted(record, scorer)) for record in gathered]
        found += _halves(name, "highest", cases, _cost(gathered, "drift"))
    for name, read in (("inversion", _suspicion), ("unlearning", _votes)):
        cases = [_Case(record, read(record)) for record in scored]
        found += _halves(name, "as scored", cases, math.nan)
    return found


def threshold(highest: Sequence[float]) -> float:
    """The smallest of these scores of clean networks that at most ``FALSE_ALARMS`` are above."""
    ordered = sorted(highest, reverse=True)
    return ordered[math.floor(FALSE_ALARMS * len(ordered))] if ordered else math.inf


def _halves(name: str, reading: str, cases: Sequence[_Case], cost: float) -> Iterator[Row]:
    clean = {half: [c for c in _of(cases, half) if c.record["took"] is None] for half in HALVES}
    took = {half: [c for c in _of(cases, half) if c.record["took"]] for half in HALVES}
    limit = threshold([case.highest for case in clean["calibration"]])
    for half in HALVES:
        if not clean[half] + took[half]:
            continue
        above = [case.right and case.highest > limit for case in took[half]]
        families = [KEYS["family"](case.record["member"]) for case in took[half]]
        yield Row(
            half=half,
            score=name,
            reading=reading,
            top=_rate([case.right for case in took[half]]),
            area=_area([c.highest for c in took[half]], [c.highest for c in clean[half]]),
            above=_rate(above),
            alarms=_rate([case.highest > limit for case in clean[half]]),
            families={
                family: _rate(
                    [hit for hit, own in zip(above, families, strict=True) if own == family]
                )
                for family in FAMILIES
            },
            cost=cost,
        )


def _of(cases: Sequence[_Case], half: str) -> list[_Case]:
    return [case for case in cases if case.record["member"]["half"] == half]


def _rate(hits: Sequence[bool]) -> Rate:
    return Rate(sum(hits), len(hits))


def _area(backdoored: Sequence[float], clean: Sequence[float]) -> float:
    pairs = [(b > c) + 0.5 * (b == c) for b in backdoored for c in clean]
    return sum(pairs) / len(pairs) if pairs else math.nan


def _read(record: Record, score: _Score, reading: str) -> Tensor:
    forms = {
        name: score.scorer(torch.tensor(values[score.values]))
        for name, values in record["forms"].items()
    }
    received = forms["received"]
    if reading == "received":
        return received
    if reading == "highest":
        return torch.stack([*forms.values()]).amax(dim=0)
    compressed = [form for name, form in forms.items() if name != "received"]
    if not compressed:
        return torch.full_like(received, score.ordinary)
    highest = torch.stack(compressed).amax(dim=0)
    return highest / received if score.ordinary else highest - received


def _drifted(record: Record, scorer: _Scorer) -> Tensor:
    """Of each class the highest over all forms; not one form says nothing."""
    forms = [scorer(torch.tensor(values)) for values in record["drift"].values()]
    classes = len(next(iter(record["forms"]["received"].values())))
    return torch.stack([torch.zeros(classes), *forms]).amax(dim=0)


def _suspicion(record: Record) -> Tensor:
    return torch.tensor(record["suspicion"]["scores"])


def _votes(record: Record) -> Tensor:
    """The share of the runs that name each class, the majority's first of several ahead."""
    said: dict[str, Any] = record["unlearning"]
    named = [run["class"] for run in said["runs"]]
    votes = torch.tensor(named).bincount(minlength=len(record["suspicion"]["scores"])).float()
    votes[said["class"]] += 0.5
    return votes / len(named)


def _cost(gathered: Sequence[Record], asked: str) -> float:
    spent = [record["processor_seconds"] for record in gathered]
    inverting = sum(each[space] for each in spent for space in SPACES)
    return sum(each[asked] for each in spent) / inverting if inverting else math.nan


def render(gathered: Sequence[Record], scored: Sequence[Record]) -> Iterator[RenderableType]:
    """A table per half, the best on the calibration half first, and how to read them."""
    found = rows(gathered, scored)
    order = {
        (row.score, row.reading): (-row.above.value, -row.top.value) for row in reversed(found)
    }
    for half in HALVES:
        own = [row for row in found if row.half == half]
        if own:
            yield _table(half, sorted(own, key=lambda row: order[row.score, row.reading]))
    yield Text(
        "Counts over attacks that took, with Wilson bounds at 95 %. top: the attacker's class is "
        "highest. above: and higher than all but 5 % of the clean networks of the calibration "
        "half. alarms: clean networks above that. ROC: area under it. cost: processor time over "
        "that of the three searches of inversion, once a form. inversion and unlearning as "
        "scored: what localize and the paper's localiser say, on the networks that were scored."
    )


def _table(half: str, own: Sequence[Row]) -> Table:
    table = framed_table(
        f"{half} half", ["score"], ("top", "above", "alarms", "ROC", "cost"), wrap=False
    )
    for family in FAMILIES:
        table.add_column(family, justify="right")
    for row in own:
        table.add_row(
            f"{row.score}, {row.reading}",
            f"{row.top.hits}/{row.top.trials}",
            _share(row.above),
            _share(row.alarms),
            _number(row.area),
            _number(row.cost),
            *(f"{rate.hits}/{rate.trials}" for rate in row.families.values()),
        )
    return table


def _share(rate: Rate) -> str:
    return f"{rate.hits}/{rate.trials} [{rate.lower():.0%}, {rate.upper():.0%}]"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"
