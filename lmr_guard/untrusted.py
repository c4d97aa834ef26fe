# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Files that somebody else wrote, opened under limits: the one place for that.

What is read here is a regular file of at most so many bytes: no pipe that never ends, no device.
What is parsed by somebody else's C++ or unpickled is first tried ``apart``, in a process of its
own with little memory and time, so that a hostile file cannot take more than these.
"""

import difflib
import json
import multiprocessing
import os
import signal
import stat
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmr_guard.errors import (
    ConfigError,
    ExitCode,
    ExportRefused,
    GuardError,
    InputError,
    described,
    first_line,
)

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

__all__ = [
    "LARGEST_PICTURE",
    "LARGEST_RECORD",
    "LARGEST_SETTINGS",
    "Allowance",
    "apart",
    "end_with_parent",
    "entries",
    "exhausted",
    "in_words",
    "json_object",
    "parsed_json",
    "read_bytes",
    "read_toml",
    "require_known",
    "require_path",
    "require_regular",
    "shown",
]

LARGEST_SETTINGS = 1 << 20
"""Bytes that a policy or a plan may have."""
LARGEST_RECORD = 1 << 28
"""Bytes that a report or the record of a drill may have."""
LARGEST_PICTURE = 1 << 28
"""Bytes that the file of one picture may have."""


_PR_SET_PDEATHSIG = 1  # of Linux's <sys/prctl.h>
_READABLE = 200  # characters of a path that one line can hold
_MOST_DOTS = 1000  # in a line: for the parts of one key tomllib takes time in their square


def read_bytes(
    path: Path, what: str, largest: int, *, error: type[GuardError] = InputError
) -> bytes:
    """The content of a regular file of at most ``largest`` bytes.

    Args:
        path: Links are followed.
        what: What it should be, in words.
        largest: Bytes.
        error: What is raised.

    Raises:
        InputError: There is no such file, it is larger, or it cannot be read; or ``error``.
    """
    # A pipe that nobody writes to would hang here otherwise.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    require_regular(path, what, error=error)
    try:
        descriptor = os.open(path, flags)
        with os.fdopen(descriptor, "rb") as file:
            held = os.fstat(descriptor)  # Of what was opened: the name may be another file's now.
            _require_regular(held, path, what, error)
            content = b"" if held.st_size > largest else file.read(held.st_size + 1)
    except (OSError, ValueError) as found:
        raise error(f"expected {what}, got {_told(found)}: {shown(path)}") from found
    if held.st_size > largest:
        most, got = in_words(largest), in_words(held.st_size)
        raise error(f"expected {what} of at most {most}, got {got}: {shown(path)}")
    if len(content) != held.st_size:
        raise error(f"expected {what}, got a file that changed while it was read: {shown(path)}")
    return content


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The table in a TOML file of at most ``LARGEST_SETTINGS`` bytes.

    Args:
        path: Links are followed.
        what: What it should be, in words.

    Raises:
        ConfigError: No such file, not UTF-8, no TOML, or a line with thousands of dots.
    """
    text = read_bytes(path, what, LARGEST_SETTINGS, error=ConfigError)
    if any(line.count(b".") > _MOST_DOTS for line in text.splitlines()):
        raise ConfigError(f"expected at most {_MOST_DOTS} dots in a line, got more: {path}")
    try:
        # Editors on Windows put a byte order mark before the text.
        return tomllib.loads(text.decode("utf-8-sig"))
    except (RecursionError, ValueError) as error:
        raise ConfigError(f"expected TOML, got {first_line(error)}: {path}") from error


def parsed_json(text: bytes | str, expected: str, where: str, *, got: str | None = None) -> Any:  # noqa: ANN401 - whatever it holds
    """What JSON holds.

    Args:
        text: Of a size that was looked at.
        expected: What it should be, in words.
        where: The file, and where in it: the end of the message.
        got: What is told where it does not read; None tells the parser's own words.

    Raises:
        InputError: It is no JSON, or is nested too deep.
    """
    try:
        return json.loads(text)
    except (RecursionError, ValueError) as error:
        raise InputError(f"expected {expected}, got {got or error}{where}") from error


def json_object(text: bytes | str, expected: str, where: str, *, got: str) -> dict[str, Any]:
    """The object that JSON holds; the arguments are those of ``parsed_json``.

    Raises:
        InputError: It does not read, or holds something else.
    """
    held = parsed_json(text, expected, where, got=got)
    if not isinstance(held, dict):
        raise InputError(f"expected {expected}, got {described(held)}{where}")
    return held


def entries(folder: Path) -> list[Path]:
    """What lies in a folder, in no order. Raises InputError where it cannot be listed."""
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise InputError(
            f"expected a folder that can be read, got {error.strerror}: {shown(folder)}"
        ) from error


def require_known(keys: Iterable[str], known: Sequence[str], what: str, where: str) -> None:
    """Raises ConfigError for a key that nothing knows: a slip must not pass for a setting.

    Args:
        keys: Of a table that somebody wrote.
        known: All there are.
        what: What a key should be, in words.
        where: What holds the table.
    """
    for key in keys:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"use {', '.join(known)}"
            raise ConfigError(f"expected {what}, got {key!r} in {where}; {hint}")


def require_regular(path: Path, what: str, *, error: type[GuardError] = InputError) -> int:
    """The size of a regular file, which a library is to open next.

    Raises:
        InputError: There is no such file, or it is a folder, a pipe or a device; or ``error``.
    """
    try:
        found = path.stat()
    except (OSError, ValueError) as failed:
        raise error(f"expected {what}, got {_told(failed)}: {shown(path)}") from failed
    _require_regular(found, path, what, error)
    return found.st_size


def _require_regular(found: os.stat_result, path: Path, what: str, error: type[GuardError]) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe, a socket or a device"
        raise error(f"expected {what}, got {kind}: {shown(path)}")


def require_path(path: Path, what: str, *, error: type[GuardError] = InputError) -> None:
    """Refuses a path that no file system could hold: too long, with NUL, a loop of links.

    Raises:
        InputError: Such a path; or ``error``.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    except (OSError, ValueError) as found:
        raise error(f"expected {what}, got {_told(found)}: {shown(path)}") from found


def _told(error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return "a path that no file can have"


def shown(path: Path) -> str:
    """A path in one line of a message; of a long one, its end."""
    text = str(path)
    return repr(text if len(text) <= _READABLE else f"...{text[-_READABLE:]}")


def in_words(count: int) -> str:
    """Bytes, in words."""
    for unit, name in ((1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "KB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count} bytes"


# --- a process of its own -----------------------------------------------------------------------

_Job = Callable[..., Mapping[str, Any]]
# What a job may raise to be raised here just so, by the exit codes that tell one from another.
_ERRORS: Mapping[int, Callable[[str], GuardError]] = {
    ExitCode.REFUSED: ExportRefused,
    ExitCode.INCOMPLETE: partial(ExportRefused, incomplete=True),
    ExitCode.USAGE: ConfigError,
    ExitCode.UNSAFE_INPUT: InputError,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What reading a file may take, by its size.

    Args:
        copies: Of the file, in memory.
        spare: Bytes of memory beside.
        speed: Bytes a second, at the least.
        seconds: Beside the time that its size takes.
    """

    copies: int
    spare: int
    speed: float
    seconds: float

    def apart(self, size: int, job: _Job, *arguments: object, what: str) -> Mapping[str, Any]:
        """``apart``, with what a file of ``size`` bytes may take."""
        return apart(
            job,
            *arguments,
            what=what,
            memory=self.copies * size + self.spare,
            seconds=self.seconds + size / self.speed,
        )


def apart(
    job: _Job, *arguments: object, what: str, memory: int, seconds: float
) -> Mapping[str, Any]:
    """Runs a function in a process of its own, with limits; without either where not on Linux.

    The process is a fork, as those that torch's own ``DataLoader`` reads with: it starts at once.

    Args:
        job: Answers a mapping of plain data; what it raises of ``ConfigError``, ``InputError`` and
            ``ExportRefused`` is raised here, without what it was raised from.
        arguments: Of ``job``.
        what: What the file should be, in words.
        memory: Bytes that it may take beyond what this process has.
        seconds: That it may take.

    Raises:
        InputError: It took more than that, broke off, or raised an error of somebody else's.
    """
    if sys.platform != "linux":
        return job(*arguments)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, memory, job, arguments), daemon=True)
    with warnings.catch_warnings():
        # Of threads that the fork leaves behind: the child computes with one.
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    theirs.close()
    try:
        if not ours.poll(seconds):
            raise InputError(
                f"expected {what}, got one that was still being read after {seconds:.0f} seconds"
            )
        said: dict[str, Any] = json.loads(ours.recv_bytes())
    except EOFError as error:
        raise InputError(f"expected {what}, got one on which its reader broke off") from error
    finally:
        process.kill()
        process.join()
        ours.close()
    if "raised" in said:
        raise _ERRORS[said["code"]](said["raised"])
    if "answer" not in said:
        told = said["failed"]
        got = f"takes more than {in_words(memory)} to read" if told is None else f"raises {told}"
        raise InputError(f"expected {what}, got one that {got}")
    answered: Mapping[str, Any] = said["answer"]
    return answered


def _child(pipe: "Connection", memory: int, job: _Job, arguments: tuple[object, ...]) -> None:
    """The other side: limits itself, does the job, answers."""
    import torch

    _let_go(pipe.fileno())
    torch.set_num_threads(1)  # What threads the parent had are gone, and would be waited for.
    _limit(memory)
    try:
        said: dict[str, Any] = {"answer": job(*arguments)}
    except Exception as error:  # noqa: BLE001  # Hostile bytes may raise anything.
        said = _failure(error)
    pipe.send_bytes(json.dumps(said).encode())


def _failure(error: Exception) -> dict[str, Any]:
    """How an error crosses; None in place of words where memory ran out."""
    if exhausted(error) and not isinstance(error, ConfigError | ExportRefused):
        return {"failed": None}
    if isinstance(error, ConfigError | ExportRefused | InputError):
        return {"raised": str(error), "code": int(error.exit_code)}
    return {"failed": first_line(error)}


def _let_go(kept: int) -> None:
    """Holds none of the parent's locks and ends with it; what libraries print is lost."""
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        end_with_parent(parent.pid)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in {1, 2} - {kept}:
        os.dup2(nowhere, descriptor)
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - the listing's own is gone by then
        if int(name) not in {0, 1, 2, kept}:
            with suppress(OSError):
                os.close(int(name))


def end_with_parent(parent: int) -> None:
    """On Linux: this process ends, at once, when the thread that started it does.

    Args:
        parent: The process that started it; where that was killed before, this one ends now.
    """
    if sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _limit(memory: int) -> None:
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[5])
    most = pages * resource.getpagesize() + memory
    _, allowed = resource.getrlimit(resource.RLIMIT_DATA)
    if allowed != resource.RLIM_INFINITY:
        most = min(most, allowed)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def exhausted(error: BaseException | None) -> bool:
    """Whether memory ran out at the bottom of it; libraries tell it in words of their own."""
    while error is not None:
        words = str(error).lower()
        if isinstance(error, MemoryError) or "bad_alloc" in words or "allocate memory" in words:
            return True
        error = error.__cause__ or error.__context__
    return False
