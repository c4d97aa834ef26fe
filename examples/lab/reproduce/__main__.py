# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Run the paper's tables cell by cell, and show them beside the paper's numbers.

::

    python -m examples.lab.reproduce run table3
    python -m examples.lab.reproduce run table1 --scale full --data data --device cuda
    python -m examples.lab.reproduce show table3
"""

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from examples.lab.kit import command
from examples.lab.kit.provenance import commit
from examples.lab.reproduce import show, tables
from examples.lab.reproduce.cells import Cell, store
from examples.lab.reproduce.data import Reader
from examples.lab.reproduce.planting import Planter
from examples.lab.reproduce.work import Worker
from lmr_guard.errors import ConfigError

__all__ = ["RESULTS", "main"]

_WIDE = 240
RESULTS = Path(__file__).parent / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run or show, and return the exit code."""
    return command.answer(partial(_act, arguments), width=_WIDE, pieces="cells")


def _act(arguments: Sequence[str] | None, console: Console) -> int:
    options = _parser().parse_args(arguments)
    plan = tables.Plan(scale=options.scale, seeds=options.seeds, data=options.data)
    if options.command == "run":
        return _run(options, plan, console)
    drawing = (options.draw, options.method)
    return command.print_parts(show.render(options.table, plan, options.out, *drawing), console)


def _parser() -> argparse.ArgumentParser:
    parser = command.parser("reproduce", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="fill the cells of a table that are missing")
    seen = commands.add_parser("show", help="print paper and ours side by side")
    for each in (run, seen):
        each.add_argument("table", help="table1 table2 table3 main fig2 .. fig7")
        each.add_argument("--scale", choices=("small", "full"), default="small")
        each.add_argument("--seeds", type=_seeds, default=(0, 1, 2), help="default: 0,1,2")
        each.add_argument("--out", type=Path, default=RESULTS, help="results folder")
        each.add_argument("--data", type=Path, help="holds cifar10, tiny100, imagenet12")
    seen.add_argument("--draw", type=Path, help="write a figure to this .png or .svg")
    seen.add_argument(
        "--method", choices=("lmr", "lmr-paper"), default="lmr", help="drawn in fig4 .. fig7"
    )
    command.add_work_options(run, "cells")
    run.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    run.add_argument("--threads", type=_positive, help="of torch; default at small scale: 1")
    run.add_argument("--cache", type=Path, default=_cache(), help="keeps trained networks")
    run.add_argument("--commit", help="recorded where there is no git repository")
    return parser


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
    command.refuse_tiny_results(options.out, RESULTS, tiny=options.tiny)
    if options.threads or plan.scale == "small":
        torch.set_num_threads(options.threads or 1)
    wanted = command.matching(tables.cells(options.table, plan), options.only, "cells")
    results = store(options.out, plan.scale, tables.folder(options.table))
    missing = command.missing(wanted, results, console)
    console.print(f"{options.table}: {len(missing)} of {len(wanted)} cells to do")
    with command.show_progress(console) as progress:
        planter = Planter(options.cache, options.device, tiny=options.tiny, progress=progress)
        reader = Reader(options.data, progress)
        worker = Worker(reader, planter, options.commit or commit(), progress)

        def record(cell: Cell) -> None:
            if cell.name not in results.names():  # Another process may have done it.
                results.add(worker(cell))

        return command.do_each(missing, record, limit=options.limit_seconds, console=console)


if __name__ == "__main__":
    sys.exit(main())
