# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What a run that was cut short may leave, and what it may not."""

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

from examples.lab.reliability.running import Ended
from lmr_guard.errors import GuardError
from lmr_guard.files import PREFIX, sha256_of
from lmr_guard.release.page import PAGE
from lmr_guard.release.report import Report

__all__ = ["Held", "held", "leftovers", "untold"]


class Held(StrEnum):
    """What an output holds."""

    NOTHING = "nothing"
    WHOLE = "whole"
    BEGUN = "begun"
    """A record and some of its files, with the journal by which the next run takes them back."""
    WRONG = "wrong"


def held(out: Path) -> tuple[Held, list[str]]:
    """What an output of ``run`` holds, and what is wrong with it in words."""
    entries = sorted(out.iterdir()) if out.is_dir() else []
    names = {entry.name for entry in entries if not entry.name.startswith(PREFIX)}
    if not names:
        return Held.NOTHING, []
    if "report.json" not in names:
        return Held.WRONG, [f"{', '.join(sorted(names))} without report.json"]
    try:
        report = Report.read(out / "report.json")
    except GuardError as error:
        return Held.WRONG, [f"a report that does not read: {error}"]
    promised = {str(variant.published): variant.sha256 for variant in report.published}
    if faults := _differences(out, names - {"report.json", PAGE}, promised):
        return Held.WRONG, faults
    missing = sorted({PAGE, *promised} - names)
    if missing and not _is_taken_back(out, names | set(missing)):
        return Held.WRONG, [f"a report without {', '.join(missing)}"]
    return Held.BEGUN if missing else Held.WHOLE, []


def _differences(out: Path, names: set[str], promised: dict[str, str]) -> list[str]:
    """Where files are others than the report says; missing ones do not count."""
    if not promised:
        return ["a report that publishes nothing"]
    odd = [f"{name} is not in the report" for name in sorted(names - promised.keys())]
    there = sorted(names & promised.keys())
    return odd + [f"{n} has other bytes" for n in there if sha256_of(out / n) != promised[n]]


def _is_taken_back(out: Path, names: set[str]) -> bool:
    """Whether the next run is told to remove these."""
    journals = list(out.glob(f"{PREFIX}*/filling.json"))
    return len(journals) == 1 and set(json.loads(journals[0].read_bytes())) == names


def leftovers(*folders: Path) -> list[str]:
    """What nobody tidied away, in words."""
    found = (entry for folder in folders for entry in folder.glob(f"{PREFIX}*"))
    return [f"left behind: {entry.name} in {entry.parent.name}" for entry in found]


def untold(ended: Ended, codes: Sequence[int]) -> list[str]:
    """What is wrong with how a command ended that was not killed: another code, no clear line."""
    found = []
    if ended.code not in codes:
        found.append(f"exit code {ended.code}: {ended.said[-300:]!r}")
    lines = ended.said.splitlines()
    refused = ended.code not in {0, 1, 3} and ended.code >= 0
    if refused and (len(lines) != 1 or not lines[0].startswith("lmr-guard: expected ")):
        found.append(f"{len(lines)} lines on standard error: {ended.said[-300:]!r}")
    return found
