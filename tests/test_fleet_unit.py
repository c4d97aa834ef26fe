# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""One unit in a process of its own: what it leaves, however it ends."""

import fcntl
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from factories import tree
from fleets import environment, fleet_files, written

from lmr_guard.errors import ExitCode, InputError, StageError
from lmr_guard.fleet.digests import Digests, code
from lmr_guard.fleet.unit import LOG, RECORD, RELEASE, Children, Done, Job, held, work

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])


@pytest.fixture
def place(tmp_path: Path) -> Path:
    fleet_files(tmp_path, ["a"])
    return tmp_path


def job(place: Path, change: tuple[str, str] = ("", "")) -> Job:
    text = (place / "plan.toml").read_text().replace(*change)
    plan = written(place, text)
    (unit,) = plan.units
    source = code(unit.arch, plan.folder)
    assert source is not None
    files = {**unit.files, "code": source}
    return Job(
        name=unit.name,
        digest=Digests().of(unit.words, files),
        words=unit.words,
        files={name: str(path) for name, path in files.items()},
        cwd=str(plan.folder),
        folder=str(place / "out" / "units" / unit.name),
        threads=1,
    )


def test_a_verdict_is_taken_over_as_long_as_all_is_whole_and_gives_way_to_another(
    place: Path,
) -> None:
    asked = job(place)
    done = work(asked)
    assert done.exit_code == ExitCode.PASSED, (asked.home / LOG).read_text()
    assert done.told.startswith("PASS: 1 of 1 variants published")
    assert done == Done.read(asked.home / RECORD) == held(asked.home, asked.digest)
    assert sorted(p.name for p in asked.home.iterdir()) == ["lock", LOG, RELEASE, RECORD]
    before = tree(asked.home)
    assert work(asked) == done, "nothing is repeated"
    assert tree(asked.home) == before
    assert held(asked.home, "other") is None
    shipped = asked.home / RELEASE / "float32.onnx"
    shipped.write_bytes(shipped.read_bytes() + b"x")
    assert held(asked.home, asked.digest) is None
    shipped.unlink()
    assert held(asked.home, asked.digest) is None
    report = asked.home / RELEASE / "report.json"
    report.write_bytes(report.read_bytes() + b"\n")
    assert held(asked.home, asked.digest) is None
    (place / "fast.toml").write_text('require = ["float32"]\nmin_trials = 1000\n')
    other = job(place)
    assert other.home == asked.home
    done = work(other)
    assert done.exit_code == ExitCode.INCOMPLETE, done
    assert not list((other.home / RELEASE).glob("*.onnx")), "of the stale pass nothing is left"
    assert held(other.home, other.digest) == done
    assert held(asked.home, asked.digest) is None


def test_a_unit_that_is_killed_is_incomplete_and_named(place: Path) -> None:
    asked = job(place, ("row_architecture", "killed_architecture"))
    done = work(asked)
    assert done.exit_code == ExitCode.INCOMPLETE
    assert done.told.startswith("its process was ended by SIGKILL; the system does that")
    assert Done.read(asked.home / RECORD) == done
    assert held(asked.home, asked.digest) is None
    assert not (asked.home / RELEASE).exists()


def test_what_changes_while_it_runs_is_no_verdict(place: Path) -> None:
    asked = replace(job(place), digest="0" * 64)
    done = work(asked)
    assert done.exit_code == ExitCode.INCOMPLETE
    assert done.told == "what it reads changed while it ran; start the fleet again"
    assert not (asked.home / RELEASE).exists()
    assert held(asked.home, asked.digest) is None


def test_an_error_is_the_last_line_of_the_log(place: Path) -> None:
    asked = job(place)
    (place / "fast.toml").write_text("")  # int8 is required then, and not built.
    done = work(asked)
    assert done.exit_code == ExitCode.USAGE
    assert done.told.startswith("expected the policy to require variants that are built")
    assert held(asked.home, asked.digest) is None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def test_two_fleets_do_not_work_on_one_unit(place: Path) -> None:
    asked = job(place)
    with locked(asked.home / "lock"):
        done = work(asked)
    assert done.exit_code == ExitCode.INCOMPLETE
    assert done.told == "another fleet is at work on it"
    assert not (asked.home / RECORD).exists()


def test_children_are_ended_and_none_is_started_any_more(place: Path) -> None:
    asked, children = job(place), Children()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(work, asked, children)
        while not (asked.home / LOG).exists():
            time.sleep(0.05)
        children.end()
        done = waiting.result()
    assert done.told in (
        "it was interrupted",
        "its process was ended by SIGTERM; start the fleet again",
    )
    assert not (asked.home / RELEASE).exists()
    assert work(asked, children).told == "it was not started any more"


def test_a_folder_that_cannot_be_written_is_told(place: Path) -> None:
    (place / "out").touch()
    with pytest.raises(StageError, match="expected to write"):
        work(job(place))


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"name": "a"}', "[" * 9999, None],
)
def test_another_file_is_no_record(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / RECORD
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError):
        Done.read(path)
    assert held(tmp_path, "digest") is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("exit_code", 77),
        ("exit_code", 130),
        ("exit_code", "0"),
        ("exit_code", []),
        ("told", 3),
        ("seconds", "long"),
        ("more", 1),
    ],
)
def test_a_record_of_other_types_is_none(key: str, value: object, tmp_path: Path) -> None:
    right = {"name": "a", "digest": "d", "exit_code": 0, "told": "t", "seconds": 1.0}
    (tmp_path / RECORD).write_text(json.dumps(right))
    assert Done.read(tmp_path / RECORD).told == "t"
    (tmp_path / RECORD).write_text(json.dumps({**right, key: value}))
    with pytest.raises(InputError, match="expected the record of a unit, got another file"):
        Done.read(tmp_path / RECORD)
