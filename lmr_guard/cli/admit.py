# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""``lmr-guard admit``: the check of deploy scripts and registries; loads neither torch nor ONNX."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from lmr_guard import terminal
from lmr_guard.cli.helping import Helpful
from lmr_guard.errors import ExitCode, printable
from lmr_guard.release import admit
from lmr_guard.release.policy import policy_from_toml
from lmr_guard.release.report import Report

__all__ = ["admit_"]

_PATH = click.Path(path_type=Path)


@click.command(name="admit", cls=Helpful)
@click.argument("file", type=_PATH)
@click.option(
    "--report",
    "report_file",
    type=_PATH,
    required=True,
    metavar="report.json",
    help="Of the run that published FILE.",
)
@click.option(
    "--policy",
    "policy_file",
    type=_PATH,
    help="Your limits, a TOML file; a report that was judged by looser ones is refused.",
)
@click.option(
    "--max-age",
    metavar="30d",
    callback=lambda _context, _option, text: None if text is None else admit.parse_age(text),
    help="Refuse a report that is older, in days (d), hours (h) or minutes (m).",
)
def admit_(
    *, file: Path, report_file: Path, policy_file: Path | None, max_age: timedelta | None
) -> int:
    """Say whether FILE is what a report lets pass.

    It compares digests and measures nothing again. The report is not signed: check its signature
    first. Exit codes: 0 admitted, 1 refused, 4 usage, 5 unreadable or unsafe input.
    """
    policy = None if policy_file is None else policy_from_toml(policy_file)
    report, now = Report.read(report_file), datetime.now(UTC)
    variant = admit.admit(file, report, policy=policy, max_age=max_age, now=now)
    made = report.created
    age = "of unknown age" if made is None else f"{admit.in_words(now - made)} old"
    what = f"{printable(variant.name)} of {printable(str(report_file))}"
    terminal.say(f"admitted: {printable(str(file))} is {what}: pass, {age}")
    return ExitCode.PASSED
