# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""``lmr-guard attest``: a report in the formats that pipelines read, and what was published."""

from pathlib import Path

import click

from lmr_guard import terminal
from lmr_guard.cli.helping import Helpful
from lmr_guard.errors import ConfigError, ExitCode
from lmr_guard.release import formats, signing
from lmr_guard.release.formats.checked import examined
from lmr_guard.release.report import Report

__all__ = ["attest"]

_PATH = click.Path(path_type=Path)
_STDOUT = Path("-")


@click.command(cls=Helpful)
@click.argument("report_file", metavar="[REPORT]", type=_PATH, required=False)
@click.option(
    "--format",
    "chosen",
    type=click.Choice([each.value for each in formats.Format]),
    help="What to write REPORT as.",
)
@click.option(
    "--out",
    type=_PATH,
    help="File, or folder in which it gets its usual name; default: standard output.",
)
@click.option(
    "--check",
    "folder",
    type=_PATH,
    metavar="DIR",
    help="Instead: whether DIR holds what its report.json and statement.json say, and no more.",
)
@click.option(
    "--sign",
    "private_key",
    type=_PATH,
    metavar="KEY.pem",
    help="With --check: sign DIR, where all is well, into DIR/model.sig. An elliptic curve's key.",
)
@click.option(
    "--signed-by",
    "public_key",
    type=_PATH,
    metavar="KEY.pub",
    help="With --check: DIR must be, file by file, what the holder of this key signed.",
)
def attest(
    *,
    report_file: Path | None,
    chosen: str | None,
    out: Path | None,
    folder: Path | None,
    private_key: Path | None,
    public_key: Path | None,
) -> int:
    """Write REPORT in a format that pipelines read, or check a published folder against its own.

    Exit codes of --check: 0 all is there, 1 something is not as the report says, 5 no report.
    """
    if folder is not None:
        if (report_file, chosen, out) != (None, None, None):
            raise ConfigError("expected --check alone, got more; check first, then write")
        return _checked(folder, private_key, public_key)
    if private_key is not None or public_key is not None:
        raise ConfigError("expected --sign and --signed-by with --check DIR, got no --check")
    if report_file is None or chosen is None:
        raise ConfigError("expected a report and --format, or --check and a folder, got neither")
    _write(report_file, formats.Format(chosen), _STDOUT if out is None else out)
    return ExitCode.PASSED


def _write(path: Path, chosen: formats.Format, out: Path) -> None:
    report = Report.read(path)
    beside = formats.Beside.of(report, path)
    if out != _STDOUT:
        terminal.say(f"{chosen}: {formats.write(report, out, chosen, beside)}")
        return
    terminal.document(formats.of(report, chosen, beside))


def _checked(folder: Path, private_key: Path | None, public_key: Path | None) -> int:
    if public_key is not None:
        signing.require_signed(folder, public_key)
    found = examined(folder)
    for line in found.problems:
        terminal.complain(line, ExitCode.REFUSED)
    if found.problems:
        return ExitCode.REFUSED
    for line in found.uncovered:
        terminal.say(line)
    terminal.say(f"{folder}: every file is as its report says, and there is no other")
    if public_key is not None:
        terminal.say(f"{folder}: signed by {public_key}")
    if private_key is not None:
        terminal.say(f"signature: {signing.sign(folder, private_key)}")
    return ExitCode.PASSED
