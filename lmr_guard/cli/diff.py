# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""``lmr-guard diff``: what changed between two reports; loads neither torch nor ONNX."""

import dataclasses
import json
from pathlib import Path

import click

from lmr_guard import terminal
from lmr_guard.cli.helping import Helpful
from lmr_guard.errors import ExitCode, printable
from lmr_guard.release import differences
from lmr_guard.release.page.reading import short
from lmr_guard.release.report import Report

__all__ = ["diff"]

_PATH = click.Path(path_type=Path)
_LONGEST = 120  # letters of one value


@click.command(cls=Helpful)
@click.argument("first", metavar="A.json", type=_PATH)
@click.argument("second", metavar="B.json", type=_PATH)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@click.option("--quiet", is_flag=True, help="Print nothing; the exit code is the answer.")
def diff(*, first: Path, second: Path, as_json: bool, quiet: bool) -> int:
    """Tell what changed from report A to report B.

    Exit codes: 0 the same decision (verdict and published variants), 1 another, 4 usage,
    5 no report.
    """
    a, b = Report.read(first), Report.read(second)
    same = differences.same_decision(a, b)
    found = differences.changes(a, b)
    if as_json:
        listed = [dataclasses.asdict(change) for change in found]
        document = {"same_decision": same, "changes": listed}
        terminal.decided(json.dumps(document, indent=2) + "\n")
    elif not quiet:
        for change in found:
            terminal.say(printable(f"{change.about}: {change.what}: {_arrow(change)}"))
        told = "the same decision" if same else "another decision"
        words = [f"{report.verdict.word} ({len(report.published)} published)" for report in (a, b)]
        terminal.say(printable(f"{told}: {words[0]}, then {words[1]}; {len(found)} changes"))
    return ExitCode.PASSED if same else ExitCode.REFUSED


def _arrow(change: differences.Change) -> str:
    return f"{short(change.before, _LONGEST)} -> {short(change.after, _LONGEST)}"
