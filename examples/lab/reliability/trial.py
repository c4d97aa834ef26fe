# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""One hostile input handed to the command line, in a process of its own that is watched."""

import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmr_guard.errors import GuardError

__all__ = ["Case", "Outcome", "attempt", "faults"]

_SECONDS = 240
_MEMORY = 2 << 30
# The second is of the library that reads options.
_BEGINNINGS = ("lmr-guard: expected ", "lmr-guard: Invalid value for ")


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of bad input.

    Args:
        name: Unique; what comes before the first colon is its family.
        make: Puts it into a folder that ``place.fill`` made; returns the words of a command, or
            something to call.
        codes: Exit codes that are right.
        slow: Whether it runs into a limit of time, and so takes minutes.
    """

    name: str
    make: Callable[[Path], Sequence[str] | Callable[[], object]]
    codes: tuple[int, ...] = (5,)
    slow: bool = False

    @property
    def family(self) -> str:
        """The kind of file."""
        return self.name.partition(":")[0]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it.

    Args:
        code: The exit code; negative where a signal ended the process.
        said: Standard error.
        seconds: On the clock.
        bytes: That the process took at most, beyond what it started with.
        written: Files that are there afterwards and were not, or have changed.
    """

    code: int
    said: str
    seconds: float
    bytes: int
    written: tuple[str, ...]


def attempt(case: Case, folder: Path) -> Outcome:
    """Makes the input in a filled folder and hands it over; ``folder`` holds it afterwards."""
    job = case.make(folder)
    before, start = _tree(folder), time.monotonic()
    said = folder.parent / f"{folder.name}.said"
    process = os.fork()
    if not process:
        _child(job, said)
    code = _waited(process, start)
    after = _tree(folder)
    changed = tuple(sorted(name for name in after if after[name] != before.get(name)))
    gone = tuple(sorted(before.keys() - after.keys()))
    text, used = _taken(said), _taken(Path(f"{said}.bytes"))
    return Outcome(code, text, time.monotonic() - start, int(used or 0), (*changed, *gone))


def _taken(path: Path) -> str:
    text = path.read_text("utf-8", "replace") if path.exists() else ""
    path.unlink(missing_ok=True)
    return text


def _child(job: Sequence[str] | Callable[[], object], said: Path) -> None:
    """Never returns. Memory is counted from here: a fork starts with what its parent had."""
    base = _resident()
    log = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.stdout, sys.stderr = (os.fdopen(number, "w") for number in (1, 2))
    code = 70
    try:
        code = _done(job)
    finally:
        whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        peak = max(resource.getrusage(who).ru_maxrss << 10 for who in whose)
        sys.stdout.flush()
        sys.stderr.flush()
        Path(f"{said}.bytes").write_text(str(max(0, peak - base)))
        os._exit(code)


def _done(job: Sequence[str] | Callable[[], object]) -> int:
    import torch

    from lmr_guard.cli import main

    torch.set_num_threads(1)
    if not callable(job):
        return main(job)
    try:
        job()
    except GuardError as error:
        sys.stderr.write(f"lmr-guard: {error}\n")
        return error.exit_code
    return 0


def _waited(process: int, start: float) -> int:
    while time.monotonic() - start < _SECONDS:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return -signal.SIGKILL


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _tree(folder: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            held = (Path(root) / name).lstat()
            found[str(Path(root) / name)] = (held.st_size, held.st_mtime_ns)
    return found


def faults(case: Case, outcome: Outcome) -> list[str]:
    """What is wrong with an outcome, in words; empty where nothing is."""
    found = []
    if outcome.code not in case.codes:
        right = " or ".join(map(str, case.codes))
        found.append(f"exit code {outcome.code}, not {right}")
    lines = outcome.said.splitlines()
    refused = outcome.code not in {0, 1, 3}
    if refused and (len(lines) != 1 or not lines[0].startswith(_BEGINNINGS)):
        found.append(f"{len(lines)} lines on standard error: {outcome.said[:300]!r}")
    elif refused and lines[0].startswith(_BEGINNINGS[0]) and ", got " not in lines[0]:
        found.append(f"what was got is not told: {lines[0]!r}")
    if outcome.written:
        found.append(f"written: {', '.join(outcome.written[:3])}")
    if outcome.bytes > _MEMORY:
        found.append(f"{outcome.bytes / (1 << 30):.1f} GB")
    if outcome.seconds > _SECONDS / 2:
        found.append(f"{outcome.seconds:.0f} seconds")
    return found
