# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""``lmr-guard report``: a report for people; loads neither torch nor ONNX."""

from pathlib import Path

import click

from lmr_guard import terminal
from lmr_guard.cli.helping import Helpful
from lmr_guard.errors import ConfigError, ExitCode
from lmr_guard.release import page
from lmr_guard.release.report import Report

__all__ = ["report"]

_PATH = click.Path(path_type=Path)
_STDOUT = Path("-")


@click.command(cls=Helpful)
@click.argument("report_file", metavar="REPORT.json", type=_PATH)
@click.option(
    "--html",
    "html_file",
    type=_PATH,
    metavar="FILE",
    help="Where the page goes; default: beside REPORT.json, with the suffix .html.",
)
@click.option(
    "--markdown",
    "markdown_file",
    type=_PATH,
    metavar="FILE|-",
    help="Instead, or as well: Markdown into a file, or to standard output.",
)
def report(*, report_file: Path, html_file: Path | None, markdown_file: Path | None) -> int:
    """Draw REPORT.json as a page that loads nothing, or as Markdown.

    Exit codes: 0 drawn, whatever the verdict; 4 usage, 5 no report.
    """
    found = Report.read(report_file)
    if html_file == _STDOUT:
        raise ConfigError("expected a file for --html, got standard output; name one")
    if html_file is None and markdown_file is None:
        html_file = report_file.with_suffix(".html")
    if markdown_file is not None and markdown_file == html_file:
        raise ConfigError("expected two files for --html and --markdown, got one for both")
    if html_file is not None:
        page.write(found, html_file)
    if markdown_file == _STDOUT:
        terminal.document(page.markdown(found))
        return ExitCode.PASSED
    if markdown_file is not None:
        page.write_markdown(found, markdown_file)
    for written in filter(None, (html_file, markdown_file)):
        terminal.say(f"{found.verdict.word}: {written}")
    return ExitCode.PASSED
