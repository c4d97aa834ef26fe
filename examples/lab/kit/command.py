# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Command lines: one line for whatever is wrong, and piece after piece of long work."""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import NoReturn, Protocol, TypeVar

import rich.progress
from rich.console import Console, RenderableType

from examples.lab.kit.records import Record, Store
from lmr_guard.contracts import Progress
from lmr_guard.errors import ConfigError, ExitCode, GuardError

__all__ = [
    "Named",
    "OneTable",
    "add_work_options",
    "answer",
    "do_each",
    "fill_or_show",
    "matching",
    "missing",
    "parser",
    "print_parts",
    "refuse_tiny_results",
    "show_progress",
]


class Named(Protocol):
    """A cell or a network, which is what its record is called."""

    @property
    def name(self) -> str:
        """No two of a table share one."""
        ...


Piece = TypeVar("Piece", bound=Named)


class _Parser(argparse.ArgumentParser):
    """Complains in one line, as everything else here does; see ``answer``."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def parser(experiment: str, purpose: str | None) -> argparse.ArgumentParser:
    """Of one experiment; ConfigError, in place of an exit, for arguments that cannot be meant.

    Args:
        experiment: Name of its folder.
        purpose: A docstring, whose first line the help shows.
    """
    told = (purpose or "").splitlines()[0]
    return _Parser(prog=f"python -m examples.lab.{experiment}", description=told)


def add_work_options(command: argparse.ArgumentParser, pieces: str) -> None:
    """What every command that works through pieces takes.

    Args:
        command: Gets ``--only``, ``--tiny`` and ``--limit-seconds``.
        pieces: What they are called, in the plural.
    """
    command.add_argument("--only", default="", help=f"{pieces} whose name holds this text")
    command.add_argument("--tiny", action="store_true", help="too short to work, but quick")
    command.add_argument(
        "--limit-seconds", type=float, default=float("inf"), help="begin none after that time"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OneTable:
    """An experiment that fills one table.

    Args:
        experiment: Name of its folder.
        purpose: A docstring, whose first line the help shows.
        results: The file that is committed.
        pieces: What its records are of, in the plural.
        width: Columns, where nobody watches.
    """

    experiment: str
    purpose: str | None
    results: Path
    pieces: str
    width: int


def fill_or_show(
    table: OneTable,
    arguments: Sequence[str] | None,
    run: Callable[[argparse.Namespace, Store, Console], int],
    **shows: Callable[[list[Record]], RenderableType],
) -> int:
    """Do the work of an experiment, or show what came of it, and return the exit code.

    Args:
        table: Where its records stand, and what they are of.
        arguments: ``run`` or one of ``shows``, ``--out``, and what ``add_work_options`` adds; None
            takes those of the process.
        run: Fills the table.
        shows: The other commands, and what each prints of the records.
    """

    def act(console: Console) -> int:
        command = parser(table.experiment, table.purpose)
        command.add_argument("command", choices=("run", *shows))
        command.add_argument("--out", type=Path, default=table.results, help="file of records")
        add_work_options(command, table.pieces)
        options = command.parse_args(arguments)
        store = Store(options.out)
        if options.command in shows:
            console.print(shows[options.command](store.read()))
            return ExitCode.PASSED
        refuse_tiny_results(options.out, table.results, tiny=options.tiny)
        return run(options, store, console)

    return answer(act, width=table.width, pieces=table.pieces)


def answer(act: Callable[[Console], int], *, width: int, pieces: str) -> int:
    """Act, and return the exit code; what cannot go on is told in one line.

    Args:
        act: Told where to print; returns an exit code.
        width: Columns, where nobody watches.
        pieces: What is kept where the user interrupts, in the plural.
    """
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = width
    try:
        return act(console)
    except GuardError as error:
        print(f"error: {error}", file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        print(f"interrupted; finished {pieces} are kept", file=sys.stderr)
        return ExitCode.INTERRUPTED


def refuse_tiny_results(out: Path, results: Path, *, tiny: bool) -> None:
    """Raises ConfigError where work that is cut short would stand among the results."""
    if tiny and out == results:
        raise ConfigError("expected --out beside --tiny, got none; its records are no results")


def matching(pieces: Iterable[Piece], only: str, called: str) -> list[Piece]:
    """Those whose name holds a text.

    Args:
        pieces: All of them.
        only: The text.
        called: What they are called, in the plural.

    Raises:
        ConfigError: There is none.
    """
    found = [piece for piece in pieces if only in piece.name]
    if not found:
        raise ConfigError(f"expected {called} with {only!r} in their name, got none")
    return found


def missing(pieces: Sequence[Piece], store: Store, console: Console) -> list[Piece]:
    """Those without a record; a record that is cut off is none, and is told.

    Raises:
        InputError: The file of records is damaged.
    """
    there = store.names()
    if store.cut_off():
        console.print(
            f"{store.path}: the last line is cut off; what it held is done again", markup=False
        )
    return [piece for piece in pieces if piece.name not in there]


def do_each(
    pieces: Sequence[Piece], do: Callable[[Piece], object], *, limit: float, console: Console
) -> ExitCode:
    """One after another; one that fails is told and does not stop the others.

    Args:
        pieces: In this order.
        do: May raise whatever it likes.
        limit: None is begun after so many seconds.
        console: Where each is told.
    """
    begun, failed = perf_counter(), 0
    for number, piece in enumerate(pieces, start=1):
        if perf_counter() - begun > limit:
            console.print(f"stopped after {limit:g} s, before {piece.name}")
            break
        start, place = perf_counter(), f"[{number}/{len(pieces)}] {piece.name}"
        try:
            do(piece)
        except Exception as error:  # noqa: BLE001 - hours of other pieces may follow
            failed += 1
            told = str(error) if isinstance(error, GuardError) else repr(error)
            console.print(f"{place}: failed: {told}", markup=False)
            continue
        console.print(f"{place}: {perf_counter() - start:.1f} s", markup=False)
    return ExitCode.FAILED if failed else ExitCode.PASSED


def print_parts(parts: Iterable[RenderableType], console: Console) -> ExitCode:
    """One below the other."""
    for part in parts:
        console.print(part)
    return ExitCode.PASSED


@contextmanager
def show_progress(console: Console) -> Iterator[Progress]:
    """One line that says which step runs, only where somebody watches."""
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
    )
    hidden = not console.is_terminal
    with rich.progress.Progress(*columns, console=console, transient=True, disable=hidden) as bars:
        task = bars.add_task("")

        def observe(step: str, done: int, total: int, /) -> None:
            bars.update(task, description=step, completed=done, total=total)

        yield observe
