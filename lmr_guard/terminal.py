# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What a terminal, or the log of a pipeline, sees while a command works, and what stops it."""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TextIO

import click
import rich.progress
from rich.console import Console, RenderableType
from rich.text import Text

from lmr_guard.contracts import Progress, silent
from lmr_guard.errors import StageError

__all__ = [
    "QUIET",
    "complain",
    "decided",
    "document",
    "ignore_stops",
    "progress",
    "say",
    "show",
    "span",
    "stoppable",
]

QUIET = 20.0
"""Seconds that a log goes without a line at least."""

_MINUTE = 60

# Windows has no SIGHUP.
_STOPS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


@contextmanager
def stoppable() -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP raise KeyboardInterrupt inside, once: nothing cuts the tidying.

    A signal that the process was started to ignore, as under ``nohup``, stays ignored. Python lets
    only the main thread hear signals; elsewhere this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _STOPS}
    handlers = {n: h for n, h in before.items() if h is not None and h is not signal.SIG_IGN}

    def stop(_signal: int, _frame: object) -> None:
        for number in handlers:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in handlers:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def ignore_stops() -> None:
    """For a process that was interrupted and is about to end: its exit code stays what it is."""
    for number in _STOPS:
        signal.signal(number, signal.SIG_IGN)


def complain(message: str, code: int) -> int:
    """One line on standard error; returns ``code``."""
    one_line = " ".join(message.split())
    _write(sys.stderr, f"lmr-guard: {one_line}\n")
    return code


def say(text: str) -> None:
    """One line on standard output."""
    _write(sys.stdout, f"{text}\n")


def document(text: str) -> None:
    """A whole document on standard output, as UTF-8 whatever the terminal's encoding.

    Raises:
        StageError: There is no room for it; half a document is none.
        BrokenPipeError: Nobody reads it.
    """
    try:
        click.echo(text.encode(), nl=False)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise StageError(
            f"expected room on standard output, got {error.strerror}; write to a file"
        ) from error


def decided(text: str) -> None:
    """As ``document``, of a command whose exit code is the answer, also where nobody reads."""
    try:
        document(text)
    except BrokenPipeError:
        _forget(sys.stdout)


def show(*things: Any) -> None:  # noqa: ANN401 - whatever rich can show
    """Tables and texts with rich's markup on standard output."""
    console = Console()
    with console.capture() as captured:
        for thing in things:
            console.print(thing)
    _write(sys.stdout, captured.get())


def _write(stream: TextIO | None, text: str) -> None:
    """Where nobody reads any more, or the disk of a log is full, the work goes on all the same."""
    if stream is None:
        return
    encoding = stream.encoding or "utf-8"
    try:
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except (OSError, ValueError):
        _forget(stream)


def _forget(stream: TextIO) -> None:
    """What is left in the buffer would fail again when the process ends."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Progress]:
    """Bars on standard error; where that is no terminal a line now and then, see ``QUIET``.

    Args:
        quiet: Nothing at all, nowhere.
    """
    if quiet:
        yield silent
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _logged()
        return
    with _Shown(console) as bars:
        yield bars.observer


class _Shown(rich.progress.Progress):
    """A bar for each step, and below them what is left of the whole run, where that is known."""

    def __init__(self, console: Console) -> None:
        # The first drawing comes before the base class is done.
        self.observer = _Observer(self)
        columns = (
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(bar_width=20),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TextColumn("left"),
            rich.progress.TimeRemainingColumn(),
        )
        super().__init__(*columns, console=console, transient=True)

    def get_renderables(self) -> Iterable[RenderableType]:
        """What is drawn, from top to bottom."""
        yield from super().get_renderables()
        if line := self.observer.line():
            yield Text(line)


class _Observer:
    """Told by the work; see ``remaining.Watching``."""

    def __init__(self, bars: rich.progress.Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, Any] = {}
        self._start = time.monotonic()
        self._left: tuple[float, float, float] | None = None

    def __call__(self, step: str, done: int, total: int, /) -> None:
        if step not in self._tasks:
            self._tasks[step] = self._bars.add_task(step, total=total)
        self._bars.update(self._tasks[step], completed=done, total=total)
        if done == total:
            self._bars.remove_task(self._tasks.pop(step))

    def left(self, least: float, most: float, /) -> None:
        self._left = (time.monotonic(), least, most)

    def line(self) -> str:
        """Of the whole run; empty where nothing is known, or it takes longer than was told."""
        now = time.monotonic()
        told, least, most = self._left or (now, 0.0, 0.0)
        if (ends := most - (now - told)) <= 0:
            return ""
        begins, spent = max(0.0, least - (now - told)), timedelta(seconds=int(now - self._start))
        return f"whole run {spent}, about {span(begins, ends)} left"


def span(least: float, most: float) -> str:
    """Two durations in seconds, in the unit of the longer one, rounded up.

    >>> span(20, 50), span(200, 900), span(10, 61), span(170, 180)
    ('20 to 50 seconds', '4 to 15 minutes', '1 to 2 minutes', '3 minutes')
    """
    unit, name = (1, "second") if most <= _MINUTE else (_MINUTE, "minute")
    low, high = (max(1, math.ceil(seconds / unit)) for seconds in (least, most))
    several = "" if high == 1 else "s"
    return f"{high} {name}{several}" if low == high else f"{low} to {high} {name}s"


def _logged() -> Progress:
    start = last = time.monotonic()
    begun: dict[str, tuple[float, int]] = {}

    def observe(step: str, done: int, total: int, /) -> None:
        nonlocal last
        now = time.monotonic()
        first, before = begun.setdefault(step, (now, done))
        if now - last >= QUIET:
            last = now
            told = f"{timedelta(seconds=round(now - start))} {step} {done}/{total}"
            if before < done < total:
                left = (now - first) * (total - done) / (done - before)
                told += f", about {timedelta(seconds=round(left))} left of this step"
            complain(told, 0)
        if done == total:
            begun.pop(step)

    return observe
