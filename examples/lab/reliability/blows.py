# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What a forked run does to itself, so that it is cut short at an exact place."""

import contextlib
import errno
import multiprocessing.context
import os
import resource
import signal
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from random import Random
from typing import Any

__all__ = [
    "WHEN",
    "as_nobody",
    "count_steps",
    "fail_at",
    "jump_clocks",
    "kill_at",
    "kill_beside_worker",
    "kill_worker",
    "limit_memory",
    "wait_at",
]

WHEN = ("before", "after")
"""On which side of a step."""

# All by which this package changes a file system, beside the bytes themselves.
_STEPS = (
    *("chmod", "fsync", "link", "mkdir", "remove", "rename", "replace", "rmdir", "symlink"),
    *("truncate", "unlink"),
)
_DAY = 86_400.0
_NOBODY = 65_534
_PIECE = 1 << 12
_hoard: list[bytearray] = []


def _at(number: int, before: Callable[[], object], after: Callable[[], object]) -> None:
    """Something is done on both sides of the ``number``-th step of this process, from 1."""

    def do(count: int, side: str) -> None:
        if count == number:
            (before if side == "before" else after)()

    _watch(do)


def _watch(do: Callable[[int, str], object]) -> None:
    """Calls ``do`` with the number of each step of this process, before and after it."""
    own, count = os.getpid(), 0

    def watched(step: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(step)
        def stepped(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - as the step has it
            nonlocal count
            if os.getpid() != own:
                return step(*arguments, **named)
            count = mine = count + 1
            do(mine, "before")
            try:
                return step(*arguments, **named)
            finally:
                do(mine, "after")

        return stepped

    for name in _STEPS:
        setattr(os, name, watched(getattr(os, name)))


def _nothing() -> None:
    pass


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(number: int, when: str) -> None:
    """Dies before or after a step."""
    _at(number, *((_die, _nothing) if when == "before" else (_nothing, _die)))


def count_steps(into: Path) -> None:
    """Tells how many steps there are."""
    _watch(lambda count, _: into.write_text(f"{count}"))


def fail_at(number: int) -> None:
    """A step is refused as by a full disk, once."""

    def refuse() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    _at(number, refuse, _nothing)


def wait_at(number: int, seconds: float) -> None:
    """Pauses after a step; number 0 is the start."""
    if not number:
        time.sleep(seconds)
    _at(number, _nothing, lambda: time.sleep(seconds))


def as_nobody() -> None:
    """Gives up root's rights, where this process has them."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)


def limit_memory(left: int) -> None:
    """So many bytes are left, in pieces; what the allocator had in store is used up."""
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    most = pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    for piece in (1 << 20, 1 << 16, _PIECE):
        with contextlib.suppress(MemoryError):
            while True:
                _hoard.append(bytearray(piece))
    while _hoard and left > 0:
        left -= len(_hoard.pop())


def kill_worker(wait: float) -> None:
    """The first process that this one starts dies after some seconds."""

    def kill(worker: int) -> None:
        time.sleep(wait)
        os.kill(worker, signal.SIGKILL)

    _after_start(kill)


def kill_beside_worker() -> None:
    """Dies itself while the first process that it starts goes on for long."""
    from lmr_guard.received import checkpoint

    def convert(path: Path, into: Path) -> dict[str, list[str]]:
        del path, into
        time.sleep(3.0)
        return {"names": []}

    def die(_: int) -> None:
        time.sleep(0.05)
        _die()

    checkpoint._convert = convert
    _after_start(die)


def _after_start(do: Callable[[int], object]) -> None:
    process = multiprocessing.context.ForkProcess
    start = process.start

    def started(self: Any) -> None:  # noqa: ANN401 - a ForkProcess
        start(self)
        do(self.pid)

    process.start = started  # type: ignore[method-assign]


def jump_clocks(seed: int) -> None:
    """The time of day goes back and forth by a day at each look."""
    random = Random(seed)  # noqa: S311 - no secret
    now, now_ns = time.time, time.time_ns

    def jumped() -> float:
        return now() + random.choice((-_DAY, 0.0, _DAY))

    time.time = jumped
    time.time_ns = lambda: now_ns() + random.choice((-1, 0, 1)) * int(_DAY) * 10**9
