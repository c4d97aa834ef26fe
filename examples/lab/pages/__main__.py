# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Pages of real reports in a browser: pictures for ``docs/report.md``, and accessibility.

``run`` makes the reports, some minutes; ``shoot`` draws them, checks them with axe-core and takes
the pictures; it ends with 1 where axe-core finds something serious or a page loads anything.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from examples.lab.kit import command
from examples.lab.pages import browser, runs
from lmr_guard.errors import ExitCode
from lmr_guard.release import page
from lmr_guard.release.report import Report

__all__ = ["RESULTS", "main"]

RESULTS = Path(__file__).parent / "results"
_PICTURES = Path(__file__).parents[3] / "docs" / "report"
_HIGH = 2750
_LARGEST = 150_000  # bytes


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one of the two commands; returns the exit code."""

    def act(console: Console) -> int:
        parser = command.parser("pages", __doc__)
        commands = parser.add_subparsers(dest="command", required=True)
        runner = commands.add_parser("run", help="make the reports anew")
        runner.add_argument("--seed", type=int, default=1)
        commands.add_parser("shoot", help="draw and check them")
        given = parser.parse_args(arguments)
        return _run(given.seed, console) if given.command == "run" else _shoot(console)

    return command.answer(act, width=100, pieces="reports")


def _run(seed: int, console: Console) -> int:
    RESULTS.mkdir(exist_ok=True)
    with TemporaryDirectory() as folder, command.show_progress(console) as progress:
        runs.run(Path(folder), RESULTS, seed, progress)
    for name in runs.NAMES:
        console.print(f"{name}: {Report.read(RESULTS / f'{name}.json')!r}", markup=False)
    return ExitCode.PASSED


def _shoot(console: Console) -> int:
    _PICTURES.mkdir(exist_ok=True)
    faults = 0
    with browser.opened() as chromium, TemporaryDirectory() as folder:
        for name in runs.NAMES:
            place = Path(folder) / f"{name}.html"
            report = Report.read(RESULTS / f"{name}.json")
            page.write(report, place)
            for look in browser.LOOKS:
                seen = browser.look_at(chromium, place, look, high=_HIGH)
                wrong = [*seen.serious, *seen.loaded, *seen.said]
                if len(seen.picture) > _LARGEST:
                    wrong.append(f"a picture of {len(seen.picture)} bytes")
                told = f"{name} ({report.verdict.word}), {look}"
                console.print(
                    f"{told}: {len(seen.serious)} serious, {len(seen.minor)} minor, "
                    f"{len(seen.loaded)} loaded, {len(seen.picture) // 1000} kB",
                    markup=False,
                )
                for line in (*wrong, *seen.minor):
                    console.print(f"  {line}", markup=False)
                faults += len(wrong)
                (_PICTURES / f"{report.verdict.word}-{look}.png").write_bytes(seen.picture)
    return ExitCode.REFUSED if faults else ExitCode.PASSED


if __name__ == "__main__":
    sys.exit(main())
