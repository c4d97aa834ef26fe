# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""A class that weak patterns drawn at random carry images to: asked where no search names anybody.

A search looks for the smallest pattern of a space, and passes by triggers that lie in none. Some of
these are met by chance: a warp or a tone of the whole image is learnt so broadly that quite other
weak changes do it too. No honest network of ten classes that was asked has such a class, see
docs/methods/chance.md. A cut may give it one, above all for patterns of the whole image. Hence only
patches and frames are tried on cut forms, and two must agree: that is how a backdoor shows which
sleeps until channels are cut.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lmr_guard import by_chance, random_patterns
from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Labelled
from lmr_guard.likes import Likes
from lmr_guard.measure import predict
from lmr_guard.random_patterns import STRENGTHS, Kind
from lmr_guard.results import Method, Suspicion

__all__ = ["LOCAL", "Asked", "ask", "met", "met_by_chance", "met_in_cuts"]

LOCAL: frozenset[Kind] = frozenset({"patch", "frame"})
"""Kinds of patterns that leave most of an image as it is."""

# Cut forms that must carry to a class.
_AGREEING = 2


@dataclass(frozen=True, slots=True)
class Asked:
    """What random patterns did to one form.

    Args:
        form: Its name.
        most: Of the kinds of pattern that carry that of the highest share, else of all kinds.
    """

    form: str
    most: Likes

    @property
    def target(self) -> int | None:
        """The class that images are carried to; None where no pattern carries."""
        return self.most.target if self.most.carrying.hits else None

    def record(self) -> dict[str, object]:
        """Plain data for the report."""
        return {
            "by": "chance",
            "form": self.form,
            "class": self.most.target,
            "kind": self.most.named,
            "look": self.most.look,
            "carrying": self.most.carrying.to_json(),
            "share": round(self.most.share, 4),
            "median": self.most.median,
        }


def met(
    found: Suspicion,
    forms: Sequence[tuple[str, Classifier]],
    cut: Sequence[str],
    images: Labelled,
    generator: torch.Generator,
) -> Suspicion:
    """The suspicion with what random patterns say: of forms that were not cut, else of those.

    Cut forms are asked as they are: levelled they would lose some of what a sleeping backdoor
    wakes with.

    Args:
        found: Nobody was suspected.
        forms: By name, the model as received among them; not touched.
        cut: The names of those that lost channels.
        images: Clean images.
        generator: CPU generator; decides the patterns.
    """
    whole = [(name, form) for name, form in forms if name not in cut]
    found = met_by_chance(found, ask(whole, images, generator))
    if found.target is not None:
        return found
    pruned = [(name, form) for name, form in forms if name in cut]
    return met_in_cuts(found, ask(pruned, images, generator, kinds=LOCAL))


def ask(
    forms: Sequence[tuple[str, Classifier]],
    images: Labelled,
    generator: torch.Generator,
    *,
    kinds: Collection[Kind] = frozenset(STRENGTHS),
) -> list[Asked]:
    """What the same random patterns do to each form; nothing where the limits were not measured.

    Args:
        forms: By name; not touched.
        images: Clean images.
        generator: CPU generator; decides the patterns.
        kinds: Of the patterns that are tried.
    """
    if not by_chance.measurable(images):
        return []
    drawn = random_patterns.draw(images, generator)
    patterns = [pattern for pattern in drawn if pattern.kind in kinds]
    found = []
    for name, model in forms:
        own = by_chance.recognised(predict(model, images), images)

        def answers(pixels: Tensor, model: Classifier = model) -> Tensor:
            answered: Tensor = model(pixels.to(model.device)).float().cpu()
            return answered

        weighed = by_chance.weighed(by_chance.meet(answers, own, patterns))
        told = [each for each in weighed if each.rate.trials >= by_chance.FEWEST]
        if told:
            found.append(Asked(name, max(told, key=_carried)))
    return found


def _carried(each: Likes) -> tuple[bool, float]:
    return bool(each.carrying.hits), each.share


def met_by_chance(found: Suspicion, asked: Sequence[Asked]) -> Suspicion:
    """The suspicion with what was asked as evidence, and with the class that is carried to.

    Args:
        found: Nobody was suspected.
        asked: Of the model as received and of forms that were not cut.
    """
    carrying = [each for each in asked if each.target is not None]
    leading = max(carrying, key=lambda each: each.most.share, default=None)
    return _named(found, asked, None if leading is None else leading.target)


def met_in_cuts(found: Suspicion, asked: Sequence[Asked]) -> Suspicion:
    """The suspicion with what was asked as evidence, and with the class that all point to.

    Named is the class that two or more forms carry to, as long as none carries to another.

    Args:
        found: Nobody was suspected.
        asked: Of forms that were cut.
    """
    carrying = [each.target for each in asked if each.target is not None]
    agreed = len(carrying) >= _AGREEING and len(set(carrying)) == 1
    return _named(found, asked, carrying[0] if agreed else None)


def _named(found: Suspicion, asked: Sequence[Asked], target: int | None) -> Suspicion:
    evidence = (*found.evidence, *(each.record() for each in asked))
    if target is None:
        return replace(found, evidence=evidence)
    votes = [each.target == target for each in asked]
    return replace(
        found,
        target=target,
        method=Method.CHANCE,
        agreement=round(sum(votes) / len(votes), 4),
        evidence=evidence,
        probability=None,
    )
