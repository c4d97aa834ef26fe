# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""``lmr-guard doctor``: whether this machine can do the work."""

import dataclasses
import json
from pathlib import Path

import click

from lmr_guard import terminal
from lmr_guard.cli.helping import Helpful, Place
from lmr_guard.doctor import State, examine
from lmr_guard.errors import ExitCode, printable

__all__ = ["doctor"]


@click.command(cls=Helpful)
@click.option(
    "--out",
    "folder",
    type=Place(),
    default=Path(),
    help="Where results would go; default: here.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON list on standard output.")
def doctor(*, folder: Path, as_json: bool) -> int:
    """Look at versions, ONNX Runtime, GPU, disk and threads.

    Exit codes: 0 all is well, 1 something is bad, 4 usage.
    """
    found = list(examine(folder))
    if as_json:
        listed = [dataclasses.asdict(each) for each in found]
        terminal.decided(json.dumps(listed, indent=2) + "\n")
    else:
        for each in found:
            terminal.say(printable(f"{each.state:<5} {each.about}: {each.told}"))
    bad = any(each.state is State.BAD for each in found)
    return ExitCode.REFUSED if bad else ExitCode.PASSED
