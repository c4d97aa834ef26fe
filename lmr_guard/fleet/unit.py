# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""One unit: ``lmr-guard run`` in a process of its own, and the record of what it came to.

``work`` starts the process, ``main`` is what it runs. A record is written when all is over, and
stands for the inputs of the digest that is in it.
"""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any, Self

from lmr_guard.errors import ExitCode, GuardError, InputError, StageError, printable
from lmr_guard.files import sha256_of
from lmr_guard.fleet.digests import Digests
from lmr_guard.release.formats.shared import file_name, is_plain
from lmr_guard.release.report import Report, write_json
from lmr_guard.release.tables import summary_line
from lmr_guard.untrusted import LARGEST_RECORD, end_with_parent, read_bytes

__all__ = ["LOG", "RECORD", "RELEASE", "Children", "Done", "Job", "held", "main", "work"]

RELEASE = "release"
"""The folder of a unit that ``run`` publishes into."""
RECORD = "unit.json"
"""The record of a unit."""
LOG = "log.txt"
"""What ``run`` printed."""

_LOCK = "lock"
_REPORT = "report.json"
_BUSY = 75  # As sysexits.h has it: try again later.
_CODES = frozenset(ExitCode) - {ExitCode.INTERRUPTED}  # that a unit can come to
_VERDICTS = (ExitCode.PASSED, ExitCode.REFUSED, ExitCode.INCOMPLETE)
_READABLE = 300  # characters of a reason that one line can hold
_LAST = 4096  # bytes at the end of a log that its last line is looked for in
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a worker is handed: plain data, the same on every machine that sees the folders.

    Args:
        name: Of the unit.
        digest: Over all that decides it.
        words: Arguments of ``lmr-guard run`` without ``--out`` and ``--threads``.
        files: What the digest covers, by name.
        cwd: The folder of the plan.
        folder: Of the unit.
        threads: That it may compute with.
        parent: Process that it must not outlive; 0 before it is started.
    """

    name: str
    digest: str
    words: tuple[str, ...]
    files: Mapping[str, str]
    cwd: str
    folder: str
    threads: int
    parent: int = 0

    @property
    def home(self) -> Path:
        """The folder of the unit."""
        return Path(self.folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What a unit came to; the content of ``unit.json``.

    Args:
        name: Of the unit.
        digest: Over all that decided it.
        exit_code: Of the run; 3 where its process died.
        told: The verdict in one line, or why there is none.
        seconds: That it took; None where it did not run to its end.
        report_sha256: Of its report; None where there is no verdict, and it is tried again.
    """

    name: str
    digest: str
    exit_code: int
    told: str
    seconds: float | None = None
    report_sha256: str | None = None

    @classmethod
    def read(cls, path: Path) -> Self:
        """A record. Raises InputError where there is none, or another file."""
        content = read_bytes(path, "the record of a unit", LARGEST_RECORD)
        try:
            done = cls(**json.loads(content))
            if done.exit_code not in _CODES or not isinstance(done.seconds, int | float | None):
                raise ValueError(path)
            for name in ("name", "digest", "told"):
                str.encode(getattr(done, name))
            return done
        except (RecursionError, TypeError, ValueError) as error:
            raise InputError(f"expected the record of a unit, got another file: {path}") from error


def held(folder: Path, digest: str) -> Done | None:
    """The verdict that a unit came to with these inputs; None where it must run.

    None as well where its report, or a file that was published, is no longer what it was.
    """
    try:
        done = Done.read(folder / RECORD)
        report = folder / RELEASE / _REPORT
        if done.digest != digest or done.report_sha256 != sha256_of(report):
            return None
        whole = all(
            is_plain(file_name(v)) and sha256_of(report.parent / file_name(v)) == v.sha256
            for v in Report.read(report).published
        )
    except GuardError:
        return None
    return done if whole else None


# --- the side that waits ------------------------------------------------------------------------


class Children:
    """Processes that can be told to end from another thread, all at once."""

    def __init__(self) -> None:
        self._lock, self._ended = Lock(), False
        self._alive: set[subprocess.Popen[bytes]] = set()

    def start(self, command: list[str], **options: Any) -> "subprocess.Popen[bytes] | None":  # noqa: ANN401
        """Starts one; None after ``end``. The options are those of ``subprocess.Popen``."""
        with self._lock:
            if self._ended:
                return None
            process = subprocess.Popen(command, **options)  # noqa: S603 - this package's own
            self._alive.add(process)
        return process

    def forget(self, process: "subprocess.Popen[bytes]") -> None:
        """It has ended."""
        with self._lock:
            self._alive.discard(process)

    def end(self) -> None:
        """Lets all of them tidy up and end; none is started any more."""
        with self._lock:
            self._ended = True
            for process in self._alive:
                with suppress(ProcessLookupError):
                    process.terminate()


def work(job: Job, children: Children | None = None) -> Done:
    """Runs a unit in a process of its own and waits for it; raises nothing that the unit causes.

    Args:
        job: Its folder is made where it does not exist.
        children: Where the process is told to end from.

    Raises:
        StageError: The folder of the unit cannot be written.
    """
    try:
        job.home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StageError(f"expected to write {job.folder}, got {error.strerror}") from error
    children = children or Children()
    threads = dict.fromkeys(_THREADS, str(job.threads))
    # -P: a file of the plan's folder must not stand for a module of Python.
    process = children.start(
        [sys.executable, "-P", "-m", "lmr_guard.fleet.unit"],
        cwd=job.cwd,
        env={**os.environ, **threads},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    if process is None:
        return _died(job, "it was not started any more")
    handed = json.dumps(asdict(replace(job, parent=os.getpid()))).encode()
    said, _ = process.communicate(handed)
    children.forget(process)
    return _ended(job, process.returncode, said)


def _ended(job: Job, code: int, said: bytes) -> Done:
    if code == _BUSY:
        return _died(job, "another fleet is at work on it")
    if code == ExitCode.INTERRUPTED:
        return _died(job, "it was interrupted")
    with suppress(GuardError):
        done = Done.read(job.home / RECORD)
        if code == done.exit_code and done.digest == job.digest:
            return done
    if code < 0:
        name = signal.Signals(-code).name
        hint = "; the system does that where memory runs out" if name == "SIGKILL" else ""
        done = _died(job, f"its process was ended by {name}{hint}; start the fleet again")
    else:
        done = replace(_died(job, _last_line(said)), exit_code=int(ExitCode.FAILED))
    write_json(asdict(done), job.home / RECORD)
    return done


def _died(job: Job, why: str) -> Done:
    return Done(name=job.name, digest=job.digest, exit_code=int(ExitCode.INCOMPLETE), told=why)


def _last_line(said: bytes) -> str:
    lines = said[-_LAST:].decode("utf-8", "backslashreplace").split("\n")
    kept = [line.strip() for line in lines if line.strip()]
    line = kept[-1].removeprefix("lmr-guard: ") if kept else "it said nothing"
    return printable(line[:_READABLE])


# --- the process --------------------------------------------------------------------------------


def main() -> int:
    """Runs the job on standard input; see ``Job``. Returns what ``lmr-guard run`` does, or 75."""
    content = json.load(sys.stdin)
    job = Job(**{**content, "words": tuple(content["words"])})
    end_with_parent(job.parent)
    with _alone(job.home) as free:
        if not free:
            return _BUSY
        # Somebody else's fleet may have ended it since this one looked.
        if (done := held(job.home, job.digest)) is not None:
            return done.exit_code
        return _run(job)


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Holds the lock of a unit; whether it could be had. Without locks everybody has it.

    A file and not the folder, as ``files.locked`` has it: NFS locks what is open for writing.
    """
    with (folder / _LOCK).open("ab") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except (ImportError, OSError):
            pass
        yield True


def _run(job: Job) -> int:
    """Clears what is stale, runs, and records; an interrupted run leaves no record."""
    home = job.home
    (home / RECORD).unlink(missing_ok=True)
    shutil.rmtree(home / RELEASE, ignore_errors=True)
    with (home / LOG).open("wb") as log:
        for descriptor in (1, 2):
            os.dup2(log.fileno(), descriptor)
    start = time.monotonic()
    out = str(home / RELEASE)
    code = _guarded([f"--out={out}", f"--threads={job.threads}", *job.words])
    if code == ExitCode.INTERRUPTED:
        return code
    seconds = round(time.monotonic() - start, 1)
    done = _judged(job, code, seconds)
    if done.report_sha256 is None:
        shutil.rmtree(home / RELEASE, ignore_errors=True)
    write_json(asdict(done), home / RECORD)
    return done.exit_code


def _guarded(words: list[str]) -> int:
    """The command line's own entry, so that a unit is a run like any other."""
    before, sys.argv = sys.argv, ["lmr-guard", "run", *words]
    try:
        runpy.run_module("lmr_guard", run_name="__main__")
    except SystemExit as stopped:
        return stopped.code if isinstance(stopped.code, int) else int(ExitCode.FAILED)
    finally:
        sys.argv = before
    return int(ExitCode.FAILED)


def _judged(job: Job, code: int, seconds: float) -> Done:
    """The record; a verdict counts where its inputs are still those of the digest."""
    done = Done(name=job.name, digest=job.digest, exit_code=code, told="", seconds=seconds)
    place = job.home / RELEASE / _REPORT
    if code not in _VERDICTS or not place.is_file():
        return replace(done, told=_last_line((job.home / LOG).read_bytes()))
    files = {name: Path(path) for name, path in job.files.items()}
    try:
        now = Digests().of(job.words, files)
    except InputError:
        now = ""
    if now != job.digest:
        told = "what it reads changed while it ran; start the fleet again"
        return replace(done, exit_code=int(ExitCode.INCOMPLETE), told=told)
    told = summary_line(Report.read(place))
    return replace(done, told=told, report_sha256=sha256_of(place))


if __name__ == "__main__":
    sys.exit(main())
