# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What all units of a plan came to: ``fleet.json``, and the same as a page."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmr_guard.errors import ExitCode
from lmr_guard.fleet.plan import Plan, Unit
from lmr_guard.fleet.unit import LOG, RELEASE, Done
from lmr_guard.release import page
from lmr_guard.release.records import Outcome
from lmr_guard.release.report import Report, write_json

__all__ = ["NAMES", "Row", "Summary"]

_JSON, _PAGE = "fleet.json", "fleet.html"
NAMES = (_JSON, _PAGE)
"""The files of a summary."""

_REPORT = "report.json"
# From best to worst: verdicts as a report ranks them, then what kept a unit from one.
_ORDER = (
    ExitCode.PASSED,
    ExitCode.INCOMPLETE,
    ExitCode.REFUSED,
    ExitCode.USAGE,
    ExitCode.UNSAFE_INPUT,
    ExitCode.FAILED,
)
_OUTCOMES = {outcome.exit_code: outcome for outcome in Outcome}
_WORDS = {
    ExitCode.USAGE: "usage",
    ExitCode.UNSAFE_INPUT: "unsafe input",
    ExitCode.FAILED: "failed",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One unit and what it came to.

    Args:
        unit: Of the plan.
        done: Its record.
        published: Names of the files that it published.
        again: Whether it ran this time; False where an earlier verdict was taken over.
        logged: Whether there is a log of it.
    """

    unit: Unit
    done: Done
    published: tuple[str, ...] = ()
    again: bool = True
    logged: bool = False

    @property
    def outcome(self) -> Outcome:
        """For a reader; what is no verdict is incomplete."""
        return _OUTCOMES.get(ExitCode(self.done.exit_code), Outcome.INCOMPLETE)

    @property
    def word(self) -> str:
        """The verdict, or what kept it from one."""
        return _WORDS.get(ExitCode(self.done.exit_code), self.outcome.word)

    @property
    def release(self) -> str:
        """Where its release lies, seen from the summary."""
        return f"units/{self.unit.name}/{RELEASE}"

    @property
    def page(self) -> str | None:
        """Its own page, or its log; None where it has neither."""
        if self.done.report_sha256 is not None:
            return f"{self.release}/{page.PAGE}"
        return f"units/{self.unit.name}/{LOG}" if self.logged else None

    def to_json(self) -> dict[str, Any]:
        """Its entry in ``fleet.json``."""
        return {
            "name": self.unit.name,
            "model": self.unit.model,
            "policy": self.unit.policy,
            "verdict": self.word,
            "exit_code": self.done.exit_code,
            "told": self.done.told,
            "digest": self.done.digest,
            "report": f"{self.release}/{_REPORT}" if self.done.report_sha256 else None,
            "report_sha256": self.done.report_sha256,
            "published": [f"{self.release}/{name}" for name in self.published],
            "seconds": self.done.seconds,
        }

    @classmethod
    def of(cls, unit: Unit, done: Done, folder: Path, *, again: bool) -> "Row":
        """With what its report says; ``folder`` is that of the unit."""
        logged = (folder / LOG).is_file()
        if done.report_sha256 is None:
            return cls(unit, done, again=again, logged=logged)
        report = Report.read(folder / RELEASE / _REPORT)
        names = tuple(str(variant.published) for variant in report.published)
        return cls(unit, done, names, again, logged)


@dataclass(frozen=True, slots=True)
class Summary:
    """A plan and all that its units came to.

    Args:
        plan: What was asked for.
        rows: One each, in the order of the plan; of one shard where it was cut.
    """

    plan: Plan
    rows: Sequence[Row]

    @property
    def exit_code(self) -> ExitCode:
        """The worst of the units; 0 where a shard has none."""
        codes = [ExitCode(row.done.exit_code) for row in self.rows]
        return max(codes, key=_ORDER.index, default=ExitCode.PASSED)

    @property
    def counts(self) -> dict[str, int]:
        """How many units came to each word."""
        words = [row.word for row in self.rows]
        return {word: words.count(word) for word in sorted(set(words))}

    def line(self) -> str:
        """All of it in one line."""
        parts = ", ".join(f"{count} {word}" for word, count in self.counts.items()) or "no unit"
        again = sum(row.again for row in self.rows)
        return (
            f"fleet of {len(self.rows)}: {parts}; {again} ran, {len(self.rows) - again} taken over"
        )

    def reasons(self) -> Iterator[str]:
        """A line for each unit that did not pass."""
        for row in self.rows:
            if row.done.exit_code != ExitCode.PASSED:
                yield f"{row.unit.name}: {row.word}: {row.done.told}"

    def to_json(self) -> dict[str, Any]:
        """The content of ``fleet.json``."""
        return {
            "schema_version": "1.0",
            "plan": {"path": str(self.plan.path), "sha256": self.plan.sha256},
            "exit_code": int(self.exit_code),
            "counts": self.counts,
            "units": [row.to_json() for row in self.rows],
        }

    def write(self, out: Path) -> None:
        """Writes both files into a folder. Raises StageError where the file system refuses."""
        write_json(self.to_json(), out / _JSON)
        worst = max((row.outcome for row in self.rows), default=Outcome.INCOMPLETE)
        told = {"fleet": self, "verdict": worst, "line": self.line()}
        page.write_page(page.rendered("fleet.html.jinja", told), out / _PAGE)
