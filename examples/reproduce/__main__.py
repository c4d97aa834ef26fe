# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Run the paper's tables cell by cell, and show them beside the paper's numbers.

::

    python -m examples.reproduce run table3
    python -m examples.reproduce run table1 --scale full --data data --device cuda
    python -m examples.reproduce show table3
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import NoReturn

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bars

from examples.reproduce import show, tables
from examples.reproduce.cells import Cell, commit, path, write
from examples.reproduce.data import Reader
from examples.reproduce.plants import Nursery
from examples.reproduce.work import Worker
from lmr_guard.contracts import Progress
from lmr_guard.errors import ConfigError, ExitCode, GuardError

__all__ = ["RESULTS", "main"]

_WIDE = 240
_INTERRUPTED = 130
RESULTS = Path(__file__).parent / "results"


class _Parser(argparse.ArgumentParser):
    """Complains in one line, as everything else here does."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see python -m examples.reproduce --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run or show, and return the exit code."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = _WIDE
    try:
        options = _parser().parse_args(arguments)
        plan = tables.Plan(scale=options.scale, seeds=options.seeds, data=options.data)
        if options.command == "run":
            return _run(options, plan, console)
        drawing = (options.draw, options.method)
        for part in show.rendered(options.table, plan, options.out, *drawing):
            console.print(part)
    except GuardError as error:
        print(f"error: {error}", file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted; finished cells are kept", file=sys.stderr)
        return _INTERRUPTED
    return ExitCode.PASSED


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m examples.reproduce", description=_first_line(__doc__))
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="fill the cells of a table that are missing")
    seen = commands.add_parser("show", help="print paper and ours side by side")
    for command in (run, seen):
        command.add_argument("table", help="table1 table2 table3 main fig2 .. fig7")
        command.add_argument("--scale", choices=("small", "full"), default="small")
        command.add_argument("--seeds", type=_seeds, default=(0, 1, 2), help="default: 0,1,2")
        command.add_argument("--out", type=Path, default=RESULTS, help="results folder")
        command.add_argument("--data", type=Path, help="holds cifar10, tiny100, imagenet12")
    seen.add_argument("--draw", type=Path, help="write a figure to this .png or .svg")
    seen.add_argument(
        "--method", choices=("lmr", "lmr-paper"), default="lmr", help="drawn in fig4 .. fig7"
    )
    run.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    run.add_argument("--threads", type=_positive, help="of torch; default at small scale: 1")
    run.add_argument("--cache", type=Path, default=_cache(), help="keeps trained networks")
    run.add_argument("--tiny", action="store_true", help="too short to work, but quick")
    run.add_argument("--only", default="", help="cells whose name holds this text")
    run.add_argument("--commit", help="recorded where there is no git repository")
    run.add_argument(
        "--limit-seconds", type=float, default=float("inf"), help="start no cell after that time"
    )
    return parser


def _first_line(text: str | None) -> str:
    return (text or "").splitlines()[0]


def _seeds(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if len(set(parts)) < len(parts) or not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"expected seeds such as 0,1,2, got {text!r}")
    return tuple(int(part) for part in parts)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text!r}")
    return int(text)


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "lmr-guard" / "reproduce"


def _run(options: argparse.Namespace, plan: tables.Plan, console: Console) -> int:
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("expected a CUDA device, got none; leave --device out")
    if options.tiny and options.out == RESULTS:
        raise ConfigError("expected --out beside --tiny, got none; its cells are no results")
    if options.threads or plan.scale == "small":
        torch.set_num_threads(options.threads or 1)
    wanted = [c for c in tables.cells(options.table, plan) if options.only in c.name]
    if not wanted:
        raise ConfigError(f"expected cells with {options.only!r} in their name, got none")
    missing = [cell for cell in wanted if not path(options.out, cell).exists()]
    console.print(f"{options.table}: {len(missing)} of {len(wanted)} cells to do")
    with _bars(console) as progress:
        reader = Reader(options.data, progress)
        nursery = Nursery(options.cache, options.device, tiny=options.tiny, progress=progress)
        worker = Worker(reader, nursery, options.commit or commit(), progress)
        return _work(missing, worker, options, console)


def _work(
    missing: Sequence[Cell], worker: Worker, options: argparse.Namespace, console: Console
) -> int:
    """Cell after cell; one that fails is told and does not stop the others."""
    begun, failed = perf_counter(), 0
    for number, cell in enumerate(missing, start=1):
        if perf_counter() - begun > options.limit_seconds:
            console.print(f"stopped after {options.limit_seconds:g} s, before {cell.name}")
            break
        start = perf_counter()
        try:
            write(options.out, cell, worker(cell))
        except Exception as error:  # noqa: BLE001 - hours of other cells may follow
            failed += 1
            told = str(error) if isinstance(error, GuardError) else repr(error)
            console.print(f"[{number}/{len(missing)}] {cell.name}: failed: {told}", markup=False)
            continue
        seconds = perf_counter() - start
        console.print(f"[{number}/{len(missing)}] {cell.name}: {seconds:.1f} s", markup=False)
    return ExitCode.FAILED if failed else ExitCode.PASSED


@contextmanager
def _bars(console: Console) -> Iterator[Progress]:
    """One line that says which step runs, only where somebody watches."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("")

        def observe(step: str, done: int, total: int, /) -> None:
            bars.update(task, description=step, completed=done, total=total)

        yield observe


if __name__ == "__main__":
    sys.exit(main())
