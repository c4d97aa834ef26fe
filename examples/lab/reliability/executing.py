# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""One reader, one input, and whether what comes of it is right; loads nothing heavy."""

import contextlib
import signal
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.lab.reliability.mutation import Draws
from lmr_guard.errors import ExitCode, GuardError

__all__ = ["Target", "alarmed", "execute", "kind"]

_SLOW = 10.0  # seconds of one execution
_RIGHT = frozenset({ExitCode.USAGE, ExitCode.UNSAFE_INPUT})


@dataclass(frozen=True, slots=True)
class Target:
    """One reader.

    Args:
        name: Unique.
        make: What is handed to it, from what was drawn.
        read: The reader.
        file: Whether what it is handed are the bytes of a file, from a ``Spoiler``.
    """

    name: str
    make: Callable[[Draws], Any]
    read: Callable[[Any], object]
    file: bool = False


class _TooSlowError(BaseException):
    """No ``Exception``: readers turn those into refusals."""


def _ring(_signal: int, _frame: object) -> None:
    raise _TooSlowError(f"more than {_SLOW:g} seconds")


@contextlib.contextmanager
def alarmed() -> Iterator[None]:
    """Inside, an execution that takes too long is told of; see ``execute``."""
    before = signal.signal(signal.SIGALRM, _ring)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)


def execute(target: Target, given: Any) -> str | None:  # noqa: ANN401 - whatever it reads
    """What one execution raised that is no refusal; '' where it raised nothing, None for one.

    To be called inside ``alarmed``.
    """
    signal.setitimer(signal.ITIMER_REAL, _SLOW)
    try:
        target.read(given)
    except GuardError as error:
        return None if error.exit_code in _RIGHT else _told(error)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - a panic of Rust is no Exception
        return _told(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return ""


def _told(error: BaseException) -> str:
    """The error and the innermost line of this package that it went through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [
        f for f in frames if "site-packages" not in f.filename and "reliability" not in f.filename
    ]
    last = (ours or frames)[-1]
    place = f"{Path(last.filename).name}:{last.lineno} in {last.name}"
    first = (str(error).splitlines() or [""])[0][:160]
    return f"{type(error).__name__}: {first!a} ({place})"


def kind(error: str) -> str:
    """What two errors of ``execute`` share that are one and the same: their type and place."""
    return error.partition(":")[0] + error.rpartition("(")[2]
