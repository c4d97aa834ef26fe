# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Files are opened under limits, and what parses them runs apart, under limits too."""

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lmr_guard.errors import ConfigError, ExportRefused, GuardError, InputError
from lmr_guard.untrusted import (
    Allowance,
    apart,
    entries,
    exhausted,
    in_words,
    json_object,
    parsed_json,
    read_bytes,
    require_path,
    require_regular,
    shown,
)

LIMITS: dict[str, Any] = {"what": "a file", "memory": 64 << 20, "seconds": 60.0}


def test_a_regular_file_is_read_also_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").symlink_to("a")
    assert read_bytes(tmp_path / "b", "a text", 3) == b"abc"
    assert require_regular(tmp_path / "b", "a text") == 3


def test_a_larger_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InputError, match=r"a text of at most 1 MB, got 1.02e\+03 GB: '.*a'"):
        read_bytes(tmp_path / "a", "a text", 1 << 20)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: path.mkdir(), "got a folder"),
        (os.mkfifo, "got a pipe, a socket or a device"),
        (lambda path: path.symlink_to("/dev/zero"), "got a pipe, a socket or a device"),
        (lambda path: path.symlink_to(path.name), "got Too many levels of symbolic links"),
        (lambda path: path.symlink_to("nowhere"), "got no such file"),
        (lambda path: None, "got no such file"),
    ],
)
def test_what_is_no_regular_file_is_told_and_never_waited_for(
    make: Callable[[Path], object], told: str, tmp_path: Path
) -> None:
    make(tmp_path / "a")
    for check in (
        lambda: read_bytes(tmp_path / "a", "a text", 9),
        lambda: require_regular(tmp_path / "a", "a text"),
    ):
        with pytest.raises(InputError, match=f"^expected a text, {told}: '.*a'$"):
            check()
    with pytest.raises(ConfigError, match=told):
        read_bytes(tmp_path / "a", "a text", 9, error=ConfigError)


@pytest.mark.parametrize(
    ("path", "told"),
    [("x" * 5000, "File name too long"), ("a\0b", "a path that no file can have")],
)
def test_a_path_that_cannot_be_is_told(path: str, told: str) -> None:
    for check in (require_path, require_regular):
        with pytest.raises(InputError, match=f"expected a text, got {told}: ") as caught:
            check(Path(path), "a text")
        assert len(str(caught.value)) < 300
        assert str(caught.value).isprintable()


def test_a_path_where_nothing_is_can_be(tmp_path: Path) -> None:
    require_path(tmp_path / "a" / "b", "a text")
    (tmp_path / "a").write_bytes(b"")
    require_path(tmp_path / "a" / "b", "a text")


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KB"), (1 << 30, "1 GB")]
)
def test_sizes_in_words(count: int, words: str) -> None:
    assert in_words(count) == words


def test_a_path_is_shown_in_one_line() -> None:
    assert shown(Path("a\nb")) == r"'a\nb'"
    assert shown(Path("x" * 300)) == f"'...{'x' * 200}'"


def test_json_is_told_by_what_it_is_for() -> None:
    assert parsed_json(b"[1]", "numbers", ": f") == [1]
    assert json_object('{"a": 1}', "an object", ": f", got="none") == {"a": 1}
    for text in (b"{", b"\xff\xfe", b"[" * 100_000):
        with pytest.raises(InputError, match=r"^expected an object, got none in line 3: f$"):
            json_object(text, "an object", " in line 3: f", got="none")
    with pytest.raises(InputError, match=r"^expected numbers, got Expecting value: .*: f$"):
        parsed_json("?", "numbers", ": f")
    with pytest.raises(InputError, match=r"^expected an object, got list: f$"):
        json_object("[1]", "an object", ": f", got="none")


def test_what_lies_in_a_folder_or_why_nobody_can_tell(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert entries(tmp_path) == [tmp_path / "a"]
    with pytest.raises(InputError, match=r"a folder that can be read, got Not a directory: '.*a'"):
        entries(tmp_path / "a")


# --- apart --------------------------------------------------------------------------------------


def doubled(value: int) -> Mapping[str, int]:
    return {"value": 2 * value}


def elsewhere() -> Mapping[str, int]:
    return {"process": os.getpid()}


def greedy() -> Mapping[str, int]:
    return {"bytes": len(bytearray(1 << 30))}


def wrapped() -> Mapping[str, int]:
    try:
        return greedy()
    except MemoryError as error:
        raise InputError("expected less, got more") from error


def slow() -> Mapping[str, int]:
    time.sleep(60)
    return {}


def dying() -> Mapping[str, int]:
    os._exit(9)


def refusing() -> Mapping[str, int]:
    raise InputError("expected this, got that")


def misused() -> Mapping[str, int]:
    raise ConfigError("expected this, got that; give this")


def refused() -> Mapping[str, int]:
    raise ExportRefused("expected this, got that")


def undecided() -> Mapping[str, int]:
    raise ExportRefused("expected this, got that", incomplete=True)


def failing() -> Mapping[str, int]:
    raise RuntimeError("odd\nbytes")


def odd() -> Mapping[str, str]:
    return {"name": "\udcff"}


def test_a_job_answers_from_a_process_of_its_own() -> None:
    assert apart(doubled, 21, **LIMITS) == {"value": 42}
    assert apart(elsewhere, **LIMITS)["process"] != os.getpid()
    assert apart(odd, **LIMITS) == {"name": "\udcff"}


@pytest.mark.parametrize(
    ("job", "told"),
    [
        (greedy, "^expected a file, got one that takes more than 64 MB to read$"),
        (wrapped, "^expected a file, got one that takes more than 64 MB to read$"),
        (dying, "^expected a file, got one on which its reader broke off$"),
        (refusing, "^expected this, got that$"),
        (failing, "^expected a file, got one that raises RuntimeError: odd$"),
    ],
)
def test_what_goes_wrong_apart_is_one_line_here(
    job: Callable[[], Mapping[str, Any]], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        apart(job, **LIMITS)


@pytest.mark.parametrize("job", [misused, refused, undecided, refusing])
def test_what_is_refused_apart_is_refused_here(job: Callable[[], Mapping[str, Any]]) -> None:
    with pytest.raises(GuardError, match="expected this, got that") as there:
        job()
    with pytest.raises(type(there.value), match=f"^{there.value}$") as here:
        apart(job, **LIMITS)
    assert here.value.exit_code == there.value.exit_code


def test_what_a_file_may_take_grows_with_its_size() -> None:
    allowed = Allowance(copies=2, spare=64 << 20, speed=1e6, seconds=60.0)
    assert allowed.apart(10, doubled, 21, what="a file") == {"value": 42}
    with pytest.raises(InputError, match="got one that takes more than 66 MB to read"):
        allowed.apart(1 << 20, greedy, what="a file")
    with pytest.raises(InputError, match="still being read after 2 seconds"):
        replace(allowed, seconds=1.0).apart(1_000_000, slow, what="a file")


def test_a_job_that_takes_too_long_is_ended() -> None:
    start = time.monotonic()
    with pytest.raises(InputError, match="got one that was still being read after 1 seconds"):
        apart(slow, **{**LIMITS, "seconds": 1.0})
    assert time.monotonic() - start < 30


def test_elsewhere_than_on_linux_the_job_is_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    assert apart(elsewhere, **LIMITS) == {"process": os.getpid()}
    with pytest.raises(InputError, match="expected this, got that"):
        apart(refusing, **LIMITS)


def test_an_interrupt_ends_the_job_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr("multiprocessing.connection.Connection.poll", interrupted)
    with pytest.raises(KeyboardInterrupt):
        apart(slow, **LIMITS)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def noisy() -> Mapping[str, int]:
    os.write(2, b"a stack trace")
    os.write(1, b"and more")
    return {"value": 1}


def test_what_a_job_prints_is_nobody_s(capfd: pytest.CaptureFixture[str]) -> None:
    assert apart(noisy, **LIMITS) == {"value": 1}
    assert capfd.readouterr() == ("", "")


def test_memory_that_ran_out_is_told_by_types_and_by_words() -> None:
    wrapped = RuntimeError("odd")
    wrapped.__cause__ = MemoryError()
    assert exhausted(MemoryError())
    assert exhausted(wrapped)
    assert exhausted(RuntimeError("unable to mmap 9 bytes: Cannot allocate memory (12)"))
    assert not exhausted(RuntimeError("odd"))
    assert not exhausted(None)


LEFT_BEHIND = """
import os, signal, sys, time
from pathlib import Path
from lmr_guard.untrusted import apart

def slow():
    Path(sys.argv[1]).write_text(str(os.getpid()))
    time.sleep(60)

apart(slow, what="a file", memory=1 << 26, seconds=60.0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing runs apart")
def test_a_job_ends_where_its_parent_is_killed_and_so_holds_no_lock_of_it(tmp_path: Path) -> None:
    told = tmp_path / "process"
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = [sys.executable, "-c", LEFT_BEHIND, str(told)]
        parent = subprocess.Popen(command, pass_fds=[lock.fileno()])
        while not told.exists() or not told.read_text():
            time.sleep(0.01)
    parent.kill()
    parent.wait()
    with (tmp_path / "lock").open("w") as lock:
        for _ in range(500):
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            time.sleep(0.01)
    pytest.fail("the job still holds the lock")


LIMITED = """
import resource
from lmr_guard.untrusted import apart
resource.setrlimit(resource.RLIMIT_DATA, (1 << 33, 1 << 33))
print(apart(lambda: {"value": 1}, what="a file", memory=1 << 34, seconds=60.0))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing runs apart")
def test_a_limit_that_the_user_set_already_stays() -> None:
    command = [sys.executable, "-c", LIMITED]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("{'value': 1}\n", "")
