# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Cuts runs short in every way that a machine has, and looks at what they leave.

After each attempt the output holds nothing or one whole published state, or a state that is told
to the next run, which takes it back; the same command once more ends as if nothing had been; and
nothing is left behind.
"""

import contextlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

from examples.lab.reliability import blows
from examples.lab.reliability.running import Bench, Ended, Job, nothing
from examples.lab.reliability.states import Held, held, leftovers, untold
from lmr_guard.errors import GuardError
from lmr_guard.release.report import Report

__all__ = ["KINDS", "Extent", "Struck", "audit", "run", "steps"]

_ROOT = Path(__file__).parents[3]
_KILLED = -int(signal.SIGKILL)
_TRIES = 4  # where a run ends before it is killed


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is done.

    Args:
        seed: Of the moments.
        moments: Runs that die at random moments, for each kind of output.
        cold: Of processes that were started as a user starts them.
    """

    seed: int = 0
    moments: int = 40
    cold: int = 8


@dataclass(frozen=True, slots=True)
class Struck:
    """What came of one attempt.

    Args:
        name: What was done.
        code: How the command ended; negative where a signal ended it.
        held: What the output held then.
        faults: What is wrong, in words.
    """

    name: str
    code: int
    held: Held
    faults: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Blow:
    """One attempt on one output.

    Args:
        name: What is done.
        prepare: What the process does to itself before it begins.
        after: It is killed from outside after so many seconds; None leaves it.
        codes: How it may end where no signal ends it.
        existing: Whether the output is there before, empty.
        model: A checkpoint of the place.
    """

    name: str
    prepare: Callable[[], object] = nothing
    after: float | None = None
    codes: tuple[int, ...] = (0,)
    existing: bool = False
    model: str = "model.safetensors"


def run(bench: Bench, blow: Blow) -> Struck:
    """``lmr-guard run``, struck."""
    home = bench.home()
    out = home / "out"
    if blow.existing:
        out.mkdir()
    started = bench.fork(Job(bench.run(out, blow.model), blow.prepare))
    if blow.after is not None:
        time.sleep(blow.after)
        started.kill()
    return judged(bench, blow, out, started.wait())


def judged(bench: Bench, blow: Blow, out: Path, ended: Ended) -> Struck:
    """What is there after a blow, and after the same command once more."""
    state, faults = held(out)
    if ended.code >= 0:
        faults += untold(ended, blow.codes)
        if (ended.code == 0) != (state is Held.WHOLE):
            faults.append(f"exit code {ended.code}, and the output holds {state}")
    start = time.monotonic()
    again = bench.fork(Job(bench.run(out, blow.model))).wait()
    if again.code == 0:
        bench.seconds = time.monotonic() - start
    right = 4 if state is Held.WHOLE else 0
    faults += [f"once more: {fault}" for fault in untold(again, (right,))]
    after, wrong = held(out)
    faults += [f"after once more: {fault}" for fault in wrong]
    if after is not Held.WHOLE and not wrong:
        faults.append(f"after once more the output holds {after}")
    faults += leftovers(out, out.parent)
    if not faults:
        shutil.rmtree(out.parent)
    where = "an empty folder" if blow.existing else "a new folder"
    return Struck(f"{blow.name}, into {where}", ended.code, state, tuple(faults))


def audit(bench: Bench, name: str, prepare: Callable[[], object]) -> Struck:
    """``lmr-guard verify --report`` over an earlier report, struck."""
    home = bench.home()
    report = home / "report.json"
    bench.fork(Job(bench.verify(report))).wait()
    before = report.read_bytes().replace(b'"notes": [', b'"notes": ["Earlier.", ', 1)
    report.write_bytes(before)
    ended = bench.fork(Job(bench.verify(report), prepare)).wait()
    faults = [] if ended.code < 0 else untold(ended, (0,))
    try:
        Report.read(report)
        state = Held.NOTHING if report.read_bytes() == before else Held.WHOLE
    except GuardError as error:
        state = Held.WRONG
        faults.append(f"a report that does not read: {error}")
    again = bench.fork(Job(bench.verify(report))).wait()
    faults += [f"once more: {fault}" for fault in untold(again, (0,))] + leftovers(home)
    if not faults:
        shutil.rmtree(home)
    return Struck(f"{name}, over an earlier report", ended.code, state, tuple(faults))


# --- kinds --------------------------------------------------------------------------------------


def steps(bench: Bench, existing: bool, first: int = 1, last: int = 1000) -> Iterator[Struck]:
    """Killed before and after every step that changes the file system, until there is none."""
    for when in blows.WHEN:
        for number in range(first, last + 1):
            prepare = partial(blows.kill_at, number, when)
            done = run(bench, Blow(f"{when} step {number}", prepare, existing=existing))
            if done.code != _KILLED:
                break
            yield done


def _steps(bench: Bench, _: Extent) -> Iterator[Struck]:
    yield from steps(bench, existing=False)
    yield from steps(bench, existing=True)


def _audits(bench: Bench, _: Extent) -> Iterator[Struck]:
    for when in blows.WHEN:
        for number in range(1, 1000):
            done = audit(bench, f"{when} step {number}", partial(blows.kill_at, number, when))
            if done.code != _KILLED:
                break
            yield done


def _moments(bench: Bench, extent: Extent) -> Iterator[Struck]:
    random = Random(extent.seed)  # noqa: S311 - no secret
    for existing in (False, True):
        died = 0
        for number in range(_TRIES * extent.moments):
            after = random.uniform(0, bench.seconds)  # Of the last run: machines have other work.
            yield (done := run(bench, Blow(f"moment {number}", after=after, existing=existing)))
            died += done.code == _KILLED
            if died == extent.moments:
                break


def _cold(bench: Bench, extent: Extent) -> Iterator[Struck]:
    """A process that a user would start, imports and all."""
    random = Random(extent.seed)  # noqa: S311 - no secret
    seconds, died = 0.0, 0
    for number in range(1 + _TRIES * extent.cold):
        out = bench.home() / "out"
        after = random.uniform(0.2, 1.0) * seconds if number else None
        start = time.monotonic()
        ended = _started_cold(bench.run(out), out.parent / "log", after)
        if ended.code != _KILLED:
            seconds = time.monotonic() - start
        yield (done := judged(bench, Blow(f"cold start {number}"), out, ended))
        died += done.code == _KILLED
        if died == extent.cold:
            break


def _started_cold(words: list[str], log: Path, after: float | None) -> Ended:
    """The first that is started is let be, and says how long one takes."""
    with log.open("w") as stream:
        process = subprocess.Popen(  # noqa: S603 - this package's own command
            [sys.executable, "-m", "lmr_guard", *words],
            cwd=_ROOT,
            stdout=subprocess.DEVNULL,
            stderr=stream,
        )
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(after)
    if process.poll() is None:
        process.kill()
    ended = Ended(process.wait(), "\n".join(_complaints(log)))
    log.unlink()
    return ended


def _complaints(log: Path) -> list[str]:
    """Lines on standard error without those that tell how far a long run is."""
    lines = log.read_text("utf-8", "replace").splitlines()
    return [line for line in lines if not re.match(r"lmr-guard: \d+:\d\d:\d\d ", line)]


def _failures(bench: Bench, _: Extent) -> Iterator[Struck]:
    """The system refuses one step with an error; what then ends is told."""
    counted = bench.folder / "steps"
    for existing in (False, True):
        run(bench, Blow("counted", partial(blows.count_steps, counted), existing=existing))
        for number in range(1, int(counted.read_text()) + 1):
            prepare = partial(blows.fail_at, number)
            blow = Blow(f"a full disk at step {number}", prepare, None, (0, 2, 4), existing)
            yield run(bench, blow)


def _full(bench: Bench, _: Extent) -> Iterator[Struck]:
    """Files may have so many bytes, and then the disk itself."""
    for size in range(500, 11_000, 700):
        limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size))
        for existing in (False, True):
            yield run(bench, Blow(f"files of {size} bytes", limit, None, (0, 2, 4), existing))
    for pages in range(1, 12):
        for existing in (False, True):
            found = _mounted(bench, pages, existing)
            if found is None:
                return
            yield found


def _mounted(bench: Bench, pages: int, existing: bool) -> Struck | None:
    """A disk of so many pages; the output is the mount point itself where that is to exist."""
    disk = bench.home() / "disk"
    disk.mkdir()
    size = f"size={pages * os.sysconf('SC_PAGE_SIZE')}"
    words = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(words, capture_output=True).returncode:  # noqa: S603, PLW1510
        return None
    out = disk if existing else disk / "out"
    try:
        ended = bench.fork(Job(bench.run(out))).wait()
        state, faults = held(out)
        faults += untold(ended, (0, 2, 4))
        if (ended.code == 0) != (state is Held.WHOLE):
            faults.append(f"exit code {ended.code}, and the output holds {state}")
        faults += leftovers(out, disk)
    finally:
        subprocess.run(["umount", str(disk)], check=True)  # noqa: S603, S607
    where = "its root" if existing else "a new folder"
    return Struck(f"a disk of {pages} pages, into {where}", ended.code, state, tuple(faults))


def _read_only(bench: Bench, _: Extent) -> Iterator[Struck]:
    """Somebody who may not write there."""
    for existing in (False, True):
        yield run(bench, Blow("not allowed to write", blows.as_nobody, None, (4,), existing))


def _memory(bench: Bench, _: Extent) -> Iterator[Struck]:
    for model in ("model.safetensors", "model.pt"):
        for left in (*range(0, 1000, 100), *range(1000, 16_000, 1000)):
            prepare = partial(blows.limit_memory, left << 10)
            name = f"{left} KB left, {model}"
            yield run(bench, Blow(name, prepare, None, (0, 2, 5), False, model))


def _workers(bench: Bench, _: Extent) -> Iterator[Struck]:
    """The process that reads a checkpoint is killed, or the run while that one is at work."""
    for wait in (0.0, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1):
        for existing in (False, True):
            prepare = partial(blows.kill_worker, wait)
            name = f"the reader dies after {wait:g} s"
            yield run(bench, Blow(name, prepare, None, (0, 5), existing, "model.pt"))
    for number in range(4):
        for existing in (False, True):
            name, beside = f"killed while its reader works {number}", blows.kill_beside_worker
            yield run(bench, Blow(name, beside, None, (), existing, "model.pt"))


def _two(bench: Bench, extent: Extent) -> Iterator[Struck]:
    """Two runs on one output; one of the two waits at some step meanwhile."""
    random = Random(extent.seed)  # noqa: S311 - no secret
    for number in range(24):
        for existing in (False, True):
            for order in ("the first waits", "the second waits"):
                yield _pair(bench, number, existing, order, random.uniform(0, bench.seconds))


def _pair(bench: Bench, number: int, existing: bool, order: str, later: float) -> Struck:
    out = bench.home() / "out"
    if existing:
        out.mkdir()
    slow: Callable[[], object] = partial(blows.wait_at, number, 1.5 * bench.seconds)
    both = [slow, nothing] if order == "the first waits" else [nothing, slow]
    first = bench.fork(Job(bench.run(out), both[0]))
    time.sleep(later)
    second = bench.fork(Job(bench.run(out), both[1]))
    ended = [first.wait(), second.wait()]
    codes = sorted(each.code for each in ended)
    faults = [fault for each in ended for fault in untold(each, (0, 2, 4))]
    if codes.count(0) != 1:
        faults.append(f"{codes.count(0)} runs published: {[each.said for each in ended]}")
    blow = Blow(f"two at once, {order} at step {number}", codes=(0, 2, 4), existing=existing)
    found = judged(bench, blow, out, ended[0] if ended[0].code == codes[0] else ended[1])
    return Struck(found.name, codes[1], found.held, (*faults, *found.faults))


def _clocks(bench: Bench, extent: Extent) -> Iterator[Struck]:
    for number in range(8):
        prepare = partial(blows.jump_clocks, extent.seed + number)
        yield run(bench, Blow(f"clocks that jump {number}", prepare, existing=bool(number % 2)))


KINDS: dict[str, Callable[[Bench, Extent], Iterator[Struck]]] = {
    "killed at every step of the file system": _steps,
    "killed at random moments": _moments,
    "killed at random moments of a cold start": _cold,
    "verify --report killed at every step": _audits,
    "a full disk at every step": _failures,
    "a full disk": _full,
    "nobody may write": _read_only,
    "out of memory": _memory,
    "a reader dies, or is left behind": _workers,
    "two runs on one output": _two,
    "clocks that jump": _clocks,
}
"""What is done, by its name in the table."""
