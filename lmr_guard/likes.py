# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What random patterns of one kind and strength came to: a record, read without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from lmr_guard.contracts import Rate

__all__ = ["Likes", "lower"]


def lower(rate: Rate, further: Rate | None) -> float:
    """The lower of the shares of one or two sets of images."""
    return rate.value if further is None else min(rate.value, further.value)


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
        return lower(self.rate, self.further)

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
