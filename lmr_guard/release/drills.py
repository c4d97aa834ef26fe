# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What a fire drill came to, as a record and as ``drill.json``; ``firedrill`` holds one."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from lmr_guard.contracts import Rate
from lmr_guard.errors import ConfigError, ExitCode, InputError, first_line
from lmr_guard.release.records import Outcome
from lmr_guard.untrusted import LARGEST_RECORD, parsed_json, read_bytes

__all__ = ["DRILL_VERSION", "DrillReport", "DrilledAttack", "DrilledForm"]

DRILL_VERSION = "1.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class DrilledForm:
    """One form under one attack.

    Args:
        name: Of the variant.
        asr_unrepaired: ASR without the guard.
        asr_repaired: ASR with it; None where the form was not built.
        awake: Whether the policy refuses its ASR without the guard, or with it.
        suppressed: Whether nothing was awake or the policy accepts the ASR with the guard.
    """

    name: str
    asr_unrepaired: Rate
    asr_repaired: Rate | None
    awake: bool
    suppressed: bool

    def to_json(self) -> dict[str, object]:
        """Plain data for a record."""
        after = self.asr_repaired
        return {
            "name": self.name,
            "asr_unrepaired": self.asr_unrepaired.to_json(),
            "asr_repaired": None if after is None else after.to_json(),
            "awake": self.awake,
            "suppressed": self.suppressed,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """What ``to_json`` wrote."""
        after = data["asr_repaired"]
        return cls(
            name=data["name"],
            asr_unrepaired=Rate.from_json(data["asr_unrepaired"]),
            asr_repaired=None if after is None else Rate.from_json(after),
            awake=data["awake"],
            suppressed=data["suppressed"],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DrilledAttack:
    """What one attack came to.

    Args:
        attack: Its name in ``redteam.catalogue``.
        wakes: The kind of form that wakes it.
        target: The class that it was planted for.
        suspect: The class that localize named; None where it abstained.
        forms: Every form, without and with the guard.
        took: Whether the backdoor was awake enough in some form to count as planted.
        outcome: The worst of the forms that were awake; INCOMPLETE where it did not take.
        seconds: What the attack and the guard took, on the clock.
    """

    attack: str
    wakes: str
    target: int
    suspect: int | None
    forms: tuple[DrilledForm, ...]
    took: bool
    outcome: Outcome
    seconds: float

    @property
    def localized(self) -> bool:
        """Whether localize named the attacker's class."""
        return self.suspect == self.target

    def to_json(self) -> dict[str, object]:
        """Plain data for a record."""
        return {
            "attack": self.attack,
            "wakes": self.wakes,
            "target": self.target,
            "suspect": self.suspect,
            "localized": self.localized,
            "variants": [form.to_json() for form in self.forms],
            "took": self.took,
            "outcome": self.outcome.word,
            "seconds": self.seconds,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """What ``to_json`` wrote."""
        return cls(
            attack=data["attack"],
            wakes=data["wakes"],
            target=data["target"],
            suspect=data["suspect"],
            forms=tuple(DrilledForm.from_json(each) for each in data["variants"]),
            took=data["took"],
            outcome=Outcome.from_word(data["outcome"]),
            seconds=data["seconds"],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillReport:
    """All attacks of one drill: the content of ``drill.json``.

    Args:
        model: Path of the checkpoint as the user gave it, or what was in memory.
        model_sha256: Digest of that file; of a model in memory that of its weights.
        weights_sha256: Digest of the weights that the attacks started from.
        attacks: One or more.
        config: What decided the drill.
        environment: See ``release.environment``.
    """

    model: str
    model_sha256: str
    weights_sha256: str
    attacks: tuple[DrilledAttack, ...]
    config: Mapping[str, Any]
    environment: Mapping[str, Any]

    @property
    def verdict(self) -> Outcome:
        """The worst of the attacks."""
        return max((attack.outcome for attack in self.attacks), default=Outcome.INCOMPLETE)

    @property
    def exit_code(self) -> ExitCode:
        """What the command line answers."""
        return self.verdict.exit_code

    def require_weights(self, digest: str) -> None:
        """Raises ConfigError where the attacks started from other weights."""
        if self.weights_sha256 != digest:
            raise ConfigError(
                f"expected a drill of these weights ({digest[:12]}), got one of "
                f"{self.weights_sha256[:12]}; drill this checkpoint"
            )

    def to_json(self) -> dict[str, Any]:
        """The content of ``drill.json``."""
        return {
            "drill_version": DRILL_VERSION,
            "source": "drilled",
            "model": {
                "path": self.model,
                "sha256": self.model_sha256,
                "weights_sha256": self.weights_sha256,
            },
            "verdict": self.verdict.word,
            "exit_code": int(self.exit_code),
            "attacks": [attack.to_json() for attack in self.attacks],
            "config": self.config,
            "environment": self.environment,
        }

    @classmethod
    def from_json(cls, data: object) -> Self:
        """What ``to_json`` wrote.

        Raises:
            InputError: No result of a drill, or of another version.
        """
        if not isinstance(data, Mapping) or data.get("drill_version") != DRILL_VERSION:
            raise InputError(f"expected a drill.json of version {DRILL_VERSION}, got another")
        try:
            found = cls(
                model=data["model"]["path"],
                model_sha256=data["model"]["sha256"],
                weights_sha256=data["model"]["weights_sha256"],
                attacks=tuple(DrilledAttack.from_json(each) for each in data["attacks"]),
                config=dict(data["config"].items()),
                environment=dict(data["environment"].items()),
            )
        except LookupError as error:
            raise InputError(f"expected a whole drill.json, got one without {error}") from error
        except (AttributeError, TypeError, ValueError) as error:
            told = first_line(error)
            raise InputError(f"expected a whole drill.json, got a damaged one ({told})") from error
        if not found.attacks:
            raise InputError("expected a drill of one or more attacks, got none")
        if data.get("verdict") != found.verdict.word:
            raise InputError(
                f"expected the verdict that the attacks come to, {found.verdict.word}, got "
                "another; the drill.json was changed"
            )
        return found

    @classmethod
    def read(cls, path: Path) -> Self:
        """The drill in a file, to be attached to a run on the same weights.

        Raises:
            InputError: No such file, or no result of a drill.
        """
        text = read_bytes(path, "the drill.json of a drill", LARGEST_RECORD)
        what = "the drill.json of a drill"
        document = parsed_json(text, what, f": {path}", got="no JSON")
        try:
            return cls.from_json(document)
        except InputError as error:
            raise InputError(f"{error}: {path}") from error
