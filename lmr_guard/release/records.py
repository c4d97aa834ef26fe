# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What was measured on a file and what it adds up to: findings, verdicts, variants."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum
from typing import Any, Self

from lmr_guard.contracts import Rate, Source
from lmr_guard.errors import ExitCode, InputError, printable
from lmr_guard.likes import Likes
from lmr_guard.results import Achieved, Hit, Margins, Tried, TriggerResult

__all__ = ["Build", "Check", "Finding", "Outcome", "Variant", "Verdict"]


class Outcome(IntEnum):
    """Ordered by severity: a verdict is as bad as its worst finding."""

    PASS = 0
    INCOMPLETE = 1
    FAIL = 2

    @property
    def word(self) -> str:
        """As records spell it."""
        return self.name.lower()

    @property
    def exit_code(self) -> ExitCode:
        """What a process answers that came to it."""
        return (ExitCode.PASSED, ExitCode.INCOMPLETE, ExitCode.REFUSED)[self]

    @classmethod
    def from_word(cls, word: str) -> "Outcome":
        """The outcome that ``word`` spells. Raises KeyError where there is none."""
        return cls[str(word).upper()]


class Check(StrEnum):
    """What ``verify`` looks at; its docstring says at what."""

    DIGEST = "digest"
    PROVIDER = "provider"
    GRAPH = "graph"
    DETERMINISTIC = "deterministic"
    INDEPENDENT = "independent"
    LOGITS = "logits"
    ACHIEVED = "achieved"
    TRIALS = "trials"
    ACCURACY = "accuracy"
    TRIGGERS = "triggers"
    ASR = "asr"
    ELSEWHERE = "elsewhere"
    EXCESS = "excess"
    LISTENS = "listens"
    AGREES = "agrees"
    CHANCE = "chance"
    SUSPECT = "suspect"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check of one artefact.

    Args:
        check: What was looked at.
        outcome: How it came out.
        reason: Why, in one line.
        about: The trigger in question, where the check is made for each of them.
    """

    check: Check
    outcome: Outcome
    reason: str
    about: str | None = None

    @property
    def label(self) -> str:
        """How records call it: the check, and the trigger that it is about."""
        return self.check if self.about is None else f"{self.check}:{self.about}"

    def to_json(self) -> dict[str, str]:
        """Plain data for a report."""
        return {"check": self.label, "outcome": self.outcome.word, "reason": self.reason}

    @classmethod
    def from_json(cls, data: Mapping[str, str]) -> Self:
        """What ``to_json`` wrote. Raises ValueError for a check that there is not."""
        check, colon, about = data["check"].partition(":")
        outcome = Outcome.from_word(data["outcome"])
        return cls(Check(check), outcome, data["reason"], about if colon else None)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the findings about one artefact add up to. No findings is INCOMPLETE, never PASS."""

    sha256: str
    findings: tuple[Finding, ...]

    @property
    def outcome(self) -> Outcome:
        """The worst finding."""
        if not self.findings:
            return Outcome.INCOMPLETE
        return max(finding.outcome for finding in self.findings)

    @property
    def passed(self) -> bool:
        """Whether everything checked passed and something was checked."""
        return self.outcome is Outcome.PASS

    def reasons(self) -> tuple[str, ...]:
        """Why it did not pass; empty where it did."""
        return tuple(f.reason for f in self.findings if f.outcome is not Outcome.PASS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """How a file was made, as far as its maker says.

    Args:
        name: Of the variant, as ``Policy.require`` spells it.
        asked: What the recipe asked for; None where it asked for nothing.
        achieved: What compression did; None where nothing is known, which counts as nothing done.
        weights_sha256: Digest of the torch weights that it was made from.
        plan: Which channels were cut; plain data for the report.
        whole: Which layers could lose no channels, and why, in one line; empty where all could.
    """

    name: str
    asked: Achieved | None = None
    achieved: Achieved | None = None
    weights_sha256: str | None = None
    plan: Mapping[str, object] = field(default_factory=dict)
    whole: str = ""


@dataclass(frozen=True, slots=True)
class Variant:
    """One staged file and what was measured on its bytes.

    ``per_class`` is the clean accuracy on the images of each class, in index order, and ``chance``
    what random patterns did; both are empty in reports of versions that did not count them.
    """

    name: str
    sha256: str
    bytes: int
    clean_accuracy: Rate
    triggers: tuple[TriggerResult, ...]
    achieved: Achieved
    provider: str
    verdict: Verdict
    weights_sha256: str | None = None
    published: str | None = None
    plan: Mapping[str, object] = field(default_factory=dict)
    searches: tuple[Mapping[str, object], ...] = ()
    per_class: tuple[Rate, ...] = ()
    chance: tuple[Likes, ...] = ()

    @property
    def shown(self) -> tuple[TriggerResult, ...]:
        """Given and drilled triggers; what inverted ones still reach stands in the findings."""
        return tuple(trigger for trigger in self.triggers if trigger.tried == "shown")

    @property
    def strangeness(self) -> float | None:
        """What the search for triggers on this file came to; None where there was none."""
        found = [t.strangeness for t in self.triggers if t.strangeness is not None]
        return max(found, default=None)

    def with_finding(self, finding: Finding) -> "Variant":
        """The same variant, judged by one more finding."""
        findings = (*self.verdict.findings, finding)
        return replace(self, verdict=replace(self.verdict, findings=findings))

    def to_json(self, confidence: float) -> dict[str, Any]:
        """Plain data for a report, with Wilson bounds at ``confidence``."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "bytes": self.bytes,
            "clean_accuracy": _bounded(self.clean_accuracy, confidence),
            "triggers": [_trigger(result, confidence) for result in self.triggers],
            "achieved": self.achieved.to_json(),
            "provider": self.provider,
            "verdict": self.verdict.outcome.word,
            "findings": [finding.to_json() for finding in self.verdict.findings],
            "weights_sha256": self.weights_sha256,
            "published": self.published,
            "plan": self.plan,
            **({"searches": list(self.searches)} if self.searches else {}),
            **({"per_class": _columns(self.per_class)} if self.per_class else {}),
            **(
                {"chance": [each.to_json(confidence) for each in self.chance]}
                if self.chance
                else {}
            ),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """What ``to_json`` wrote.

        Raises:
            InputError: The verdict is not the one that the findings come to.
            ValueError, KeyError: A check or an outcome that there is not.
        """
        findings = tuple(Finding.from_json(each) for each in data["findings"])
        verdict = Verdict(data["sha256"], findings)
        if verdict.outcome.word != data["verdict"]:
            raise InputError(
                f"expected the verdict that the findings about {printable(data['name'])} come to, "
                f"{verdict.outcome.word}, got {data['verdict']}; the report was changed"
            )
        return cls(
            name=data["name"],
            sha256=data["sha256"],
            bytes=data["bytes"],
            clean_accuracy=Rate.from_json(data["clean_accuracy"]),
            triggers=tuple(_trigger_from(each) for each in data["triggers"]),
            achieved=Achieved.from_json(data["achieved"]),
            provider=data["provider"],
            verdict=verdict,
            weights_sha256=data["weights_sha256"],
            published=data["published"],
            plan=data["plan"],
            searches=tuple(data.get("searches", ())),
            per_class=_rates(data["per_class"]) if "per_class" in data else (),
            chance=tuple(Likes.from_json(each) for each in data.get("chance", ())),
        )


def _columns(rates: Sequence[Rate]) -> dict[str, list[int]]:
    """Counts of many rates, with as few words as lines."""
    return {"hits": [rate.hits for rate in rates], "trials": [rate.trials for rate in rates]}


def _rates(data: Mapping[str, list[int]]) -> tuple[Rate, ...]:
    return tuple(Rate(h, n) for h, n in zip(data["hits"], data["trials"], strict=True))


def _bounded(rate: Rate, confidence: float) -> dict[str, float]:
    return rate.to_json() | {"lower": rate.lower(confidence), "upper": rate.upper(confidence)}


def _trigger(result: TriggerResult, confidence: float) -> dict[str, Any]:
    return {
        "name": result.label,
        "source": result.source,
        "target": result.target,
        **_bounded(result.asr, confidence),
        "ta": result.ta.to_json(),
        **({} if result.without is None else {"without": result.without.to_json()}),
        **({} if result.strangeness is None else {"strangeness": result.strangeness}),
        **({} if result.elsewhere is None else {"elsewhere": _hit(result.elsewhere)}),
        **({} if result.margins is None else {"margins": result.margins.to_json()}),
    }


def _hit(hit: Hit) -> dict[str, Any]:
    return {
        "target": hit.target,
        **hit.asr.to_json(),
        "without": hit.without.to_json(),
    }


def _trigger_from(data: Mapping[str, Any]) -> TriggerResult:
    name: str = data["name"]
    source: Source = data["source"]
    tried: Tried = "shown"
    word, colon, rest = name.partition(":")
    if source == "inverted" and colon and word in _TRIED:
        name, tried = rest, _TRIED[word]
    return TriggerResult(
        name=name,
        source=source,
        target=data["target"],
        asr=Rate.from_json(data),
        ta=Rate.from_json(data["ta"]),
        without=Rate.from_json(data["without"]) if "without" in data else None,
        tried=tried,
        strangeness=data.get("strangeness"),
        elsewhere=_hit_from(data["elsewhere"]) if "elsewhere" in data else None,
        margins=Margins.from_json(data["margins"]) if "margins" in data else None,
    )


def _hit_from(data: Mapping[str, Any]) -> Hit:
    return Hit(data["target"], Rate.from_json(data), Rate.from_json(data["without"]))


_TRIED: Mapping[str, Tried] = {"replayed": "replayed", "searched": "searched"}
