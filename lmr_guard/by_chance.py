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

import torch
from torch import Tensor

from lmr_guard.contracts import Labelled, Predictor, Rate
from lmr_guard.likes import Likes, lower
from lmr_guard.random_patterns import Kind, RandomPattern

__all__ = [
    "FEWEST",
    "FEWEST_CLASSES",
    "LEAST_SIDE",
    "LIMIT",
    "ORDINARY",
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
        return lower(self.rate, self.further)


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
