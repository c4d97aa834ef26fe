# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What patterns drawn at random do to a network or a file. Forward passes only.

A weak pattern *carries* where it sends ``LIMIT`` or more of the images of other classes to one
class, of those that it was first tried on and of others, and half of its likes (the same kind and
strength) send less than ``ORDINARY`` to any class. Both are measured: docs/methods/chance.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Self

import torch
from torch import Tensor

from lmr_guard.contracts import Labelled, Predictor, Rate
from lmr_guard.random_patterns import Kind, RandomPattern

__all__ = [
    "FEWEST",
    "FEWEST_CLASSES",
    "LEAST_SIDE",
    "LIMIT",
    "ORDINARY",
    "Likes",
    "Met",
    "likes",
    "measurable",
    "meet",
    "recognised",
    "weighed",
]

LIMIT = 0.9
"""Share of the images of other classes from which on a pattern carries them to a class."""
ORDINARY = 0.4
"""Share that the median of a pattern's likes must stay below."""

FEWEST_CLASSES = 5
"""Below that many classes nothing is decided."""
LEAST_SIDE = 16
"""Nor where images are smaller than so many pixels: what is weak on larger ones is not on them."""
FEWEST = 12
"""Images of other classes that say something about a pattern."""

_FIRST = 24
_FURTHER = 100
# From where on a pattern is tried on further images.
_DOUBT = 0.5
_AT_ONCE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Likes:
    """What random patterns of one kind and strength did to one artefact.

    Args:
        kind: Of ``random_patterns.Kind``.
        strength: Of ``random_patterns.STRENGTHS``.
        carrying: How many of them carry the images of other classes to one class.
        median: Of them, of the share of the images of other classes that the class most hit gets.
        look: What the one was that carries most.
        target: The class that it carries to.
        rate: Of the images that it was first tried on.
        further: Of those that it was tried on then; None where it was not.
    """

    kind: str
    strength: float
    carrying: Rate
    median: float
    look: str
    target: int
    rate: Rate
    further: Rate | None = None

    @property
    def share(self) -> float:
        """Of the images that the one carries, in the set in which it carries fewer."""
        return self.rate.value if self.further is None else min(self.rate.value, self.further.value)

    @property
    def named(self) -> str:
        """Kind and strength, as reasons call them."""
        return f"{self.kind} {self.strength:g}"

    def to_json(self, confidence: float) -> dict[str, Any]:
        """Plain data for a record; ``upper`` bounds the share of such patterns that carry."""
        return {
            "kind": self.kind,
            "strength": self.strength,
            "carrying": {**self.carrying.to_json(), "upper": self.carrying.upper(confidence)},
            "median": self.median,
            "look": self.look,
            "target": self.target,
            "rate": self.rate.to_json(),
            **({} if self.further is None else {"further": self.further.to_json()}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """What ``to_json`` wrote."""
        return cls(
            kind=data["kind"],
            strength=data["strength"],
            carrying=Rate.from_json(data["carrying"]),
            median=data["median"],
            look=data["look"],
            target=data["target"],
            rate=Rate.from_json(data["rate"]),
            further=Rate.from_json(data["further"]) if "further" in data else None,
        )


@dataclass(frozen=True, slots=True)
class Met:
    """What one pattern did.

    Args:
        pattern: The pattern.
        target: The class that most images of other classes land in; -1 where none lands in any.
        rate: Of the images of other classes that it was first tried on, those that land there.
        further: Of those that it was tried on then; None where ``rate`` was low.
    """

    pattern: RandomPattern
    target: int
    rate: Rate
    further: Rate | None = None

    @property
    def share(self) -> float:
        """The lower of the two rates."""
        return self.rate.value if self.further is None else min(self.rate.value, self.further.value)


def recognised(logits: Tensor, report: Labelled) -> Labelled:
    """Images that the file gets right, the classes in turn.

    Args:
        logits: Of the images of ``report``, shape (N, K).
        report: Clean images.
    """
    right = (logits.argmax(dim=1) == report.labels).nonzero().flatten()
    ascending, order = report.labels[right].sort(stable=True)
    # How many of its class stand before each image: the first of every class come first.
    nth = torch.arange(len(right)) - torch.searchsorted(ascending, ascending)
    return report.subset(right[order[nth.argsort(stable=True)]])


@torch.no_grad()
def meet(
    predictor: Predictor, images: Labelled, patterns: Sequence[RandomPattern]
) -> tuple[Met, ...]:
    """Every pattern on the first images, and those that send half of them astray on more.

    Args:
        predictor: The file.
        images: See ``recognised``.
        patterns: Random ones; see ``random_patterns.draw``.
    """
    if not len(images):
        return tuple(Met(pattern, -1, Rate(0, 0)) for pattern in patterns)
    few = images.subset(torch.arange(min(_FIRST, len(images))))
    more = images.subset(torch.arange(len(few), min(len(few) + _FURTHER, len(images))))
    pixels, width = few.pixels, max(1, _AT_ONCE // len(few))
    found: list[Met] = []
    for start in range(0, len(patterns), width):
        part = patterns[start : start + width]
        landed = _landed(predictor, torch.cat([pattern(pixels) for pattern in part]))
        found += map(_most_hit, part, landed.view(len(part), -1), [few.labels] * len(part))
    return tuple(_again(predictor, more, met) if met.rate.value >= _DOUBT else met for met in found)


def likes(met: Sequence[Met]) -> Mapping[tuple[Kind, float], tuple[Met, ...]]:
    """What patterns did, by kind and strength, in the order of the first of each."""
    groups = dict.fromkeys(each.pattern.group for each in met)
    return {group: tuple(m for m in met if m.pattern.group == group) for group in groups}


def _landed(predictor: Predictor, pixels: Tensor) -> Tensor:
    """The class of each image; -1 where its outputs are not finite."""
    outputs = predictor(pixels)
    return outputs.argmax(dim=1).masked_fill(~outputs.isfinite().all(dim=1), -1)


def _most_hit(pattern: RandomPattern, landed: Tensor, labels: Tensor) -> Met:
    rates = {c: _rate(landed, labels, c) for c in landed.unique().tolist() if c >= 0}
    if not rates:
        return Met(pattern, -1, Rate(0, len(labels)))
    target = max(rates, key=lambda c: (rates[c].value, -c))
    return Met(pattern, target, rates[target])


def _rate(landed: Tensor, labels: Tensor, target: int) -> Rate:
    others = labels != target
    return Rate(int((landed[others] == target).sum()), int(others.sum()))


def _again(predictor: Predictor, more: Labelled, met: Met) -> Met:
    if not len(more):
        return met
    landed = _landed(predictor, met.pattern(more.pixels))
    return replace(met, further=_rate(landed, more.labels, met.target))


def weighed(met: Sequence[Met]) -> tuple[Likes, ...]:
    """What the patterns of each kind and strength came to; see the module for what carries."""
    return tuple(_weighed(*each) for each in likes(met).items())


def _weighed(group: tuple[Kind, float], met: Sequence[Met]) -> Likes:
    most, usual = max(met, key=lambda each: each.share), median(each.rate.value for each in met)
    carrying = sum(each.share >= LIMIT for each in met) if usual < ORDINARY else 0
    return Likes(
        kind=group[0],
        strength=group[1],
        carrying=Rate(carrying, len(met)),
        median=round(usual, 4),
        look=most.pattern.look,
        target=most.target,
        rate=most.rate,
        further=most.further,
    )


def measurable(images: Labelled) -> bool:
    """Whether the limits were measured for so many classes and images of that size."""
    return len(images.classes) >= FEWEST_CLASSES and min(images.images.shape[2:]) >= LEAST_SIDE
