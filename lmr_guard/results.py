# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What the stages came to: the records that reports are made of, in the words of ``contracts``."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import isfinite
from typing import Any, ClassVar, Literal, Self

from lmr_guard.contracts import Inverted, Rate, Source

__all__ = [
    "Achieved",
    "Drawing",
    "Hit",
    "Listening",
    "Margins",
    "Method",
    "Promise",
    "Repair",
    "Suspicion",
    "Tried",
    "TriggerResult",
    "Unheard",
]

Tried = Literal["shown", "replayed", "searched"]


class Method(StrEnum):
    """How a suspect was found, or why there is none."""

    INVERSION = "inversion"
    UNLEARNING = "inversion and unlearning"
    CHANCE = "random patterns"
    DRIFT = "drift"
    HINDERED = "no search could tell anything"
    NAMED = "named by the user"
    NOT_LOOKED_FOR = "not looked for"


@dataclass(frozen=True, slots=True)
class Drawing:
    """What a pattern looks like, for people; see ``localize.drawing``.

    Args:
        name: Of the pattern, e.g. ``"patch@received"``.
        target: The class that it sends images to.
        size: Of the pattern, as its search measures it, in [0, 1].
        png: A small picture, at most ``MOST_BYTES`` and ``MOST_PIXELS`` wide and high.

    Raises:
        ValueError: ``png`` is no such picture.
    """

    MOST_BYTES: ClassVar[int] = 1 << 15
    MOST_PIXELS: ClassVar[int] = 64

    name: str
    target: int
    size: float
    png: bytes

    def __post_init__(self) -> None:
        """Validates; see the class. Somebody else may have written it, and a browser opens it."""
        begins = self.png[:8] == b"\x89PNG\r\n\x1a\n" and self.png[12:16] == b"IHDR"
        sides = [int.from_bytes(self.png[at : at + 4], "big") for at in (16, 20)]
        fits = len(self.png) <= self.MOST_BYTES and max(sides) <= self.MOST_PIXELS
        if not begins or not fits or min(sides) < 1:
            raise ValueError(
                f"expected a PNG of at most {self.MOST_BYTES} bytes and {self.MOST_PIXELS} pixels "
                f"a side as the drawing of a pattern, got {len(self.png)} bytes of another"
            )

    def to_json(self) -> dict[str, object]:
        """Plain data for a record; the picture in base64."""
        picture = b64encode(self.png).decode()
        return {"name": self.name, "target": self.target, "size": self.size, "png": picture}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """What ``to_json`` wrote. Raises ValueError where that is no picture."""
        picture = b64decode(data["png"], validate=True)
        return cls(data["name"], data["target"], data["size"], picture)


@dataclass(frozen=True, slots=True)
class Suspicion:
    """What ``localize`` thinks, or that it does not know.

    Args:
        target: The suspect class, or None: abstained.
        scores: One score per class, higher is more suspicious; empty where the user named it.
        method: How it was found.
        agreement: Share of the single runs that named ``target`` (or the leading class, where
            abstained), in [0, 1].
        evidence: One line per search or run: form, class, numbers; plain data for the report.
        patterns: What was found to send images to ``target``: evidence of its own, for it can be
            tried on what was made of the model.
        classes: Names of the classes in index order; empty where the user named the suspect.
        drawings: What the patterns look like.
        others: Classes beside ``target`` that are suspect too, as with several backdoors, those of
            the highest scores first.
        probability: That the class which stands out most is an attacker's, in (0, 1); see
            ``localize.probability``. None where no search says so: nobody was looked for, or the
            suspect is another class.
        notes: What a reader must know about how model and images were read, where that is told
            with the suspicion; in a report it stands beside.
    """

    target: int | None
    scores: tuple[float, ...]
    method: Method
    agreement: float = 0.0
    evidence: tuple[dict[str, object], ...] = ()
    # These three stand in no record of a suspicion, hence they do not tell two of them apart.
    patterns: tuple[Inverted, ...] = field(default=(), compare=False)
    classes: tuple[str, ...] = field(default=(), compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)
    drawings: tuple[Drawing, ...] = ()
    others: tuple[int, ...] = ()
    probability: float | None = None

    @property
    def suspects(self) -> tuple[int, ...]:
        """All suspect classes in the order in which they are repelled; empty where abstained."""
        return () if self.target is None else (self.target, *self.others)

    @property
    def abstained(self) -> bool:
        """Whether somebody was looked for and nobody found."""
        return self.target is None and self.method is not Method.NOT_LOOKED_FOR

    @property
    def hindrance(self) -> str | None:
        """Why nobody could be found, where that is so; see ``localize.telling``."""
        if self.method is not Method.HINDERED:
            return None
        told = (str(each["why"]) for each in self.evidence if each.get("by") == "hindrance")
        return next(told, str(self.method))


@dataclass(frozen=True, slots=True)
class Listening:
    """What a fresh search for triggers found on one artefact.

    Args:
        target: The class that needs the least.
        strangeness: How far that class stands out; see ``localize.searches.outstanding``.
        pattern: What was found to send images to ``target``.
        evidence: One record per search; plain data for the report.
        hindrance: Why that tells nothing, where it does not; see ``localize.telling``.
        patterns: What was found for each class that was searched, in each space.
    """

    target: int
    strangeness: float
    pattern: Inverted
    evidence: tuple[dict[str, object], ...] = ()
    hindrance: str | None = None
    patterns: tuple[Inverted, ...] = ()


@dataclass(frozen=True, slots=True)
class Unheard:
    """Why no search for triggers was made on one artefact, though one was asked for.

    Args:
        hindrance: See ``localize.telling``; or why it was spared.
        spared: It could have been made, but the file is refused whatever it finds.
    """

    hindrance: str
    spared: bool = False


@dataclass(frozen=True, slots=True)
class Promise:
    """What a pattern does to the network that a file was made from, and so should to the file.

    Args:
        pattern: Of a search on that network.
        rate: See ``measure.carried``.
    """

    pattern: Inverted
    rate: Rate


@dataclass(frozen=True, slots=True)
class Repair:
    """What ``repel`` did.

    Args:
        suspect: The class whose margin was repelled.
        clean_before: CA on ``select`` before.
        clean_after: CA on ``select`` after.
        pruned_columns: Input columns of the head that were cut and kept at zero (phase 2).
        phase1_steps: Optimiser steps of phase 1 taken.
        phase2_steps: Optimiser steps of phase 2 taken.
        history: The augmentation, then one record per checkpoint and per rate that diverged.
        further: What was done about other suspects then; each began where the one before ended.
        settled: Whether weights were rounded layer by layer before, see ``repairing``; where that
            was enough, no step was taken.
    """

    suspect: int
    clean_before: Rate
    clean_after: Rate
    pruned_columns: tuple[int, ...]
    phase1_steps: int
    phase2_steps: int
    history: tuple[dict[str, object], ...] = ()
    further: tuple[Repair, ...] = ()
    settled: bool = False

    @property
    def suspects(self) -> tuple[int, ...]:
        """All classes that were repelled, in this order."""
        return (self.suspect, *(each.suspect for each in self.further))

    @property
    def done(self) -> str:
        """What was done, in a word or two."""
        steps = any(each.phase1_steps for each in (self, *self.further))
        repelled = "repelled" if steps else ""
        return ", then ".join(filter(None, ("settled" if self.settled else "", repelled)))

    @property
    def clean_at_last(self) -> Rate:
        """CA on ``select`` after all of it."""
        return (self, *self.further)[-1].clean_after


@dataclass(frozen=True, slots=True)
class Hit:
    """Where triggered images go that do not go to the trigger's target.

    Args:
        target: The class that gains most by the trigger, of those that are not its target.
        asr: Of triggered images of other classes those that land there.
        without: Of the same clean images those that land there without a trigger.
    """

    target: int
    asr: Rate
    without: Rate


@dataclass(frozen=True, slots=True)
class Margins:
    """How near images of other classes come to a target: quantiles of its margin.

    Each tuple holds 11 ascending numbers: the smallest, and for each tenth the smallest that at
    least so many images do not exceed, the last of which is the largest. All are margins of single
    images, in the unit of what was measured puts out. Above 0 an image lands in the target.

    Args:
        clean: Of the images as they are.
        triggered: Of the triggered images.

    Raises:
        ValueError: They are not 11 ascending finite numbers each.
    """

    TENTHS: ClassVar[int] = 10

    clean: tuple[float, ...]
    triggered: tuple[float, ...]

    def __post_init__(self) -> None:
        """Validates; see the class. Somebody else may have written them."""
        for values in (self.clean, self.triggered):
            finite = len(values) == self.TENTHS + 1 and all(map(isfinite, values))
            if not finite or list(values) != sorted(values):
                raise ValueError(
                    f"expected {self.TENTHS + 1} ascending margins, got "
                    f"{', '.join(f'{value:.4g}' for value in values[: self.TENTHS + 2])}"
                )

    def to_json(self) -> dict[str, list[float]]:
        """Plain data for a record."""
        return {"clean": list(self.clean), "triggered": list(self.triggered)}

    @classmethod
    def from_json(cls, data: Mapping[str, list[float]]) -> Self:
        """What ``to_json`` wrote. Raises ValueError where those are no such numbers."""
        return cls(tuple(map(float, data["clean"])), tuple(map(float, data["triggered"])))


@dataclass(frozen=True, slots=True)
class TriggerResult:
    """One trigger against one artefact: ASR over non-target images, TA over all of them.

    Args:
        name: Of the trigger, or of the pattern that a search found.
        source: Where the evidence comes from.
        target: The class that ASR was counted for; where the trigger names none it is the class
            most hit, which can only overstate the ASR.
        asr: See ``contracts``.
        ta: See ``contracts``.
        without: Of clean images of other classes those that land in the target: plain mistakes.
        tried: A trigger shown, a pattern found on the model as received and replayed, or one that
            was searched for on this very artefact.
        strangeness: Of a pattern that was searched for: see ``Listening``.
        elsewhere: Of a trigger whose target is told: it may be the wrong one.
        margins: How near the images that ASR was counted on come to the target; None where clean
            images were not looked at too, or some outputs are not finite.
    """

    name: str
    source: Source
    target: int
    asr: Rate
    ta: Rate
    without: Rate | None = None
    tried: Tried = "shown"
    strangeness: float | None = None
    elsewhere: Hit | None = None
    margins: Margins | None = None

    @property
    def label(self) -> str:
        """How records and reasons call it: a pattern by what was done with it, and its name."""
        return self.name if self.tried == "shown" else f"{self.tried}:{self.name}"


@dataclass(frozen=True, slots=True)
class Achieved:
    """What compression really did, measured on the result.

    Args:
        channel_sparsity: Share of the output channels that are gone, in [0, 1), of all layers that
            could lose some by their nature: all convolutions and linear layers but the head.
            Channels that can only go together count once.
        parameter_sparsity: Share of parameters that are gone, in [0, 1).
        bits: Of one weight: 8 or 32.
    """

    channel_sparsity: float = 0.0
    parameter_sparsity: float = 0.0
    bits: int = 32

    def to_json(self) -> dict[str, float]:
        """Plain data for a record."""
        return {
            "sparsity": self.channel_sparsity,
            "parameter_sparsity": self.parameter_sparsity,
            "bits": self.bits,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, float]) -> Self:
        """What ``to_json`` wrote."""
        return cls(data["sparsity"], data["parameter_sparsity"], int(data["bits"]))
