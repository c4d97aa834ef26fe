# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Hands spoilt input to readers and records whatever they raise that is no refusal.

Each execution follows from a seed and its number alone, so that ``--replay`` can do it again.
"""

import contextlib
import json
import mmap
import os
import struct
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from examples.lab.reliability.executing import Target, alarmed, execute, kind
from examples.lab.reliability.mutation import drawn
from examples.lab.reliability.targets import targets
from lmr_guard import pictures
from lmr_guard.errors import GuardError

__all__ = ["Crash", "Limits", "Run", "again", "beside", "fuzz", "workplace"]


@dataclass(frozen=True, slots=True)
class Limits:
    """When to stop: whichever comes first.

    Args:
        seed: Of all executions.
        most: Executions.
        seconds: On the clock.
    """

    seed: int = 0
    most: int = 1 << 62
    seconds: float = 30.0


@dataclass(slots=True)
class Crash:
    """One kind of wrong answer.

    Args:
        number: The first execution that gave it.
        error: What was raised, and where.
        times: How many executions gave it.
    """

    number: int
    error: str
    times: int = 1


@dataclass(slots=True)
class Run:
    """What came of one target.

    Args:
        target: Its name.
        seed: See ``Limits``.
        executions: How many there were.
        accepted: How many inputs were read without complaint.
        seconds: On the clock.
        crashes: Each kind once.
    """

    target: str
    seed: int
    executions: int = 0
    accepted: int = 0
    seconds: float = 0.0
    crashes: list[Crash] = field(default_factory=list)


def fuzz(target: Target, limits: Limits, seen: mmap.mmap | None = None) -> Run:
    """Executes until a limit is reached.

    Args:
        target: What.
        limits: How much.
        seen: Told the number of each execution before it begins.
    """
    run = Run(target.name, limits.seed)
    kinds: dict[str, Crash] = {}
    start = time.monotonic()
    with alarmed(), pictures.quiet():
        for number, draws in drawn(limits.seed):
            if number >= limits.most or time.monotonic() - start > limits.seconds:
                break
            if seen is not None:
                struct.pack_into("<q", seen, 0, number)
            error = execute(target, target.make(draws))
            run.executions += 1
            run.accepted += error == ""
            if error:
                _count(kinds, number, error)
    run.seconds = round(time.monotonic() - start, 2)
    run.crashes = list(kinds.values())
    return run


def _count(kinds: dict[str, Crash], number: int, error: str) -> None:
    if (of := kind(error)) in kinds:
        kinds[of].times += 1
    else:
        kinds[of] = Crash(number, error)


def beside(name: str, limits: Limits) -> Run:
    """``fuzz`` in a process of its own: where a library takes that down, this is told."""
    seen = mmap.mmap(-1, 8)
    reader, writer = os.pipe()
    with workplace() as folder:  # Made here: a process that dies removes nothing.
        process = os.fork()
        if not process:
            os.close(reader)
            _child(partial(_told_of, name, folder, limits, seen), writer)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            told = pipe.read()
        _, status = os.waitpid(process, 0)
    if told:
        return _run_from(json.loads(told))
    (number,) = struct.unpack("<q", seen[:8])
    error = f"the process ended with {os.waitstatus_to_exitcode(status)}"
    return Run(name, limits.seed, number + 1, crashes=[Crash(number, error)])


def _told_of(name: str, folder: Path, limits: Limits, seen: mmap.mmap) -> bytes:
    return json.dumps(asdict(fuzz(targets(folder)[name], limits, seen))).encode()


def _run_from(data: dict[str, Any]) -> Run:
    crashes = [Crash(**each) for each in data.pop("crashes")]
    return Run(**data, crashes=crashes)


def _child(tell: Callable[[], bytes], writer: int) -> None:
    """Never returns."""
    code = 1
    try:
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(tell())
        code = 0
    except BaseException:  # noqa: BLE001 - a fork must not go on as its parent
        traceback.print_exc()
    finally:
        os._exit(code)


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A folder in memory, where there is such a place, that is removed afterwards."""
    memory = Path("/dev/shm")  # noqa: S108 - a name of its own below it
    place = memory if memory.is_dir() and os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="reliability-", dir=place) as folder:
        yield Path(folder)


def again(name: str, seed: int, number: int) -> str:
    """One execution once more: what was given, and what came of it with the whole trace."""
    with workplace() as folder:
        target = targets(folder)[name]
        _, draws = next(drawn(seed, number))
        given = target.make(draws)
        try:
            with pictures.quiet():
                result = repr(target.read(given))[:2000]
        except GuardError as error:
            result = f"refused with exit code {int(error.exit_code)}: {error}"
        except BaseException:  # noqa: BLE001 - it is what is asked for
            result = traceback.format_exc()
    return f"given: {given!r}\n{result}"
