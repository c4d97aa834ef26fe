# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Spoilt input for every reader, a little of it; and that a crash would be seen, and the page."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from examples.lab.reliability import __main__ as command
from examples.lab.reliability import executing, page
from examples.lab.reliability import fuzz as fuzzing
from examples.lab.reliability.executing import Target
from examples.lab.reliability.fuzz import Crash, Limits, Run, again, beside, fuzz, workplace
from examples.lab.reliability.mutation import Draws, Spoiler, Tree, drawn
from examples.lab.reliability.targets import targets
from examples.lab.reliability.trial import Case
from lmr_guard.errors import InputError, StageError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="alarms, and forks")
SLOW = {"checkpoint.torch": 5, "report.record": 30}


@pytest.fixture(scope="module")
def readers() -> Iterator[dict[str, Target]]:
    with workplace() as folder:
        yield targets(folder)


def test_nothing_but_a_refusal_comes_of_spoilt_input(readers: dict[str, Target]) -> None:
    found = [fuzz(each, Limits(1, SLOW.get(each.name, 100), 5.0)) for each in readers.values()]
    assert [run for run in found if run.crashes] == []
    assert sum(run.executions for run in found) >= 2000
    assert {run.target for run in found if run.accepted} >= {"patch", "policy", "drill.record"}


@pytest.mark.parametrize("name", ["report.record", "drill.record", "policy.record"])
def test_the_records_that_are_spoilt_are_right_before(
    name: str, readers: dict[str, Target]
) -> None:
    tree = readers[name].make
    assert isinstance(tree, Tree)
    assert readers[name].read(tree._document) is not None


def test_the_same_numbers_spoil_the_same_way(readers: dict[str, Target]) -> None:
    numbers = list(islice(drawn(5), 2500))
    assert [number for number, _ in numbers] == list(range(2500))
    assert next(drawn(5, 1234)) == numbers[1234]
    assert next(drawn(6, 1234)) != numbers[1234]
    spoil = readers["policy"].make
    made = [spoil(draws) for _, draws in numbers]
    assert made[1234] == spoil(next(drawn(5, 1234))[1])
    assert len(set(made)) > 2000


def test_a_seed_stays_as_it_is_and_no_change_fails() -> None:
    document = {"a": [1, {"b": None}], "c": "d"}
    tree, spoil = Tree(document), Spoiler([b"", b"12 ab"])
    made = [(tree(draws), spoil(draws)) for _, draws in islice(drawn(0), 3000)]
    assert document == {"a": [1, {"b": None}], "c": "d"}
    assert len({repr(record) for record, _ in made}) > 500
    assert len({data for _, data in made}) > 500


# --- it can fail --------------------------------------------------------------------------------


def reading(error: BaseException | None = None, wait: float = 0.0) -> Target:
    """A reader that raises an error for every third input."""

    def read(number: int) -> None:
        if number % 3 == 0:
            time.sleep(wait)
            if error is not None:
                raise error

    def make(draws: Draws) -> int:
        return draws[0]

    return Target("fake", make, read)


class PanicError(BaseException):
    """As a library in Rust raises it."""


@pytest.mark.parametrize(
    "error", [KeyError("x"), RecursionError(), PanicError("y"), StageError("z")]
)
def test_what_is_no_refusal_is_a_crash_that_can_be_replayed(error: BaseException) -> None:
    run = fuzz(reading(error), Limits(3, 300, 30.0))
    (crash,) = run.crashes
    assert crash.error.startswith(type(error).__name__)
    assert "test_lab_reliability_fuzz.py" in crash.error
    assert next(drawn(3, crash.number))[1][0] % 3 == 0
    assert 50 < crash.times < 150
    assert run.executions == 300
    assert run.accepted == 300 - crash.times


def test_a_refusal_is_none_and_what_hangs_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fuzz(reading(InputError("expected a, got b")), Limits(3, 300, 30.0)).crashes == []
    monkeypatch.setattr(executing, "_SLOW", 0.01)
    (crash,) = fuzz(reading(wait=0.5), Limits(3, 20, 30.0)).crashes
    assert "more than 0.01 seconds" in crash.error
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_time_and_interrupts_end_it() -> None:
    run = fuzz(reading(), Limits(0, seconds=0.1))
    assert run.executions > 100
    assert run.seconds < 5
    with pytest.raises(KeyboardInterrupt):
        fuzz(reading(KeyboardInterrupt()), Limits(0, 300, 30.0))


def test_a_reader_that_takes_the_process_down_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def die(number: int) -> None:
        if number % 3 == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    fakes = {"fake": Target("fake", lambda draws: draws[0], die), "well": reading()}
    monkeypatch.setattr(fuzzing, "targets", lambda folder: fakes)
    run = beside("fake", Limits(3, 300, 30.0))
    (crash,) = run.crashes
    assert crash.error == f"the process ended with {-signal.SIGKILL}"
    assert next(drawn(3, crash.number))[1][0] % 3 == 0
    assert beside("well", Limits(3, 300, 30.0)).executions == 300


def test_one_execution_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzzing, "targets", lambda folder: {"fake": reading(KeyError("x"))})
    (crash,) = fuzz(reading(KeyError("x")), Limits(3, 300, 30.0)).crashes
    told = again("fake", 3, crash.number)
    assert told.startswith("given: ")
    assert "KeyError: 'x'" in told
    monkeypatch.setattr(fuzzing, "targets", lambda folder: {"fake": reading(InputError("no"))})
    assert "refused with exit code 5: no" in again("fake", 3, crash.number)


# --- the command and the page -------------------------------------------------------------------


def test_the_page_says_what_to_run_where_nothing_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["show", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    for name in ("inputs", "kills", "fuzz", "guided"):
        assert f"Not run yet: `python -m examples.lab.reliability {name}`." in text
    assert "tests/test_bypasses.py` holds" in text


def test_fuzzing_by_command_writes_a_record_that_the_page_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fuzz", "--target", "patch", "--count", "50", "--out", str(tmp_path)]
    assert command.main(words) == 0
    assert capsys.readouterr().out.endswith("50 tried, 0 faults\n")
    record = json.loads((tmp_path / "fuzz.json").read_text())
    assert record["targets"][0]["executions"] == 50
    assert "| patch | 50 |" in page.page(tmp_path)
    assert command.main(["fuzz", "--target", "patch", "--replay", "7"]) == 0
    assert capsys.readouterr().out.startswith("given: b")


def test_inputs_by_command_are_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise InputError("expected a, got b")

    cases = [Case("report: a", lambda _: refuse), Case("report: b", lambda _: refuse, (4,))]
    monkeypatch.setattr(command, "corpus", lambda: cases)
    assert command.main(["inputs", "--only", "report: ", "--out", str(tmp_path)]) == 2
    assert "[2/2] report: b: exit code 5, not 4\n2 tried, 1 faults" in capsys.readouterr().out
    counts = json.loads((tmp_path / "inputs.json").read_text())["families"]
    assert counts == {"report": {"tried": 2, "right": 1, "wrong": 1}}
    assert "| report | 2 | 1 | 1 |" in page.page(tmp_path)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["inputs", "--only", "image"], "expected --out beside a choice, got none"),
        (["fuzz", "--target", "patch"], "expected --out beside a choice, got none"),
        (["fuzz", "--target", "nobody"], "expected readers with 'nobody' in their name, got none"),
        (["kills", "--only", "x", "--out", "y"], "expected kinds with 'x' in their name, got none"),
    ],
)
def test_part_of_the_work_is_no_result(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(words) == 4
    assert told in capsys.readouterr().err


def test_every_fault_stands_on_the_page_by_name(tmp_path: Path) -> None:
    crash = Crash(17, "KeyError: 'x' (a.py:1 in `f`)", 3)
    page.save(page.fuzz_record([Run("policy", 0, 9, 4, 1.0, [crash])], 0), tmp_path / "fuzz.json")
    found = {"image: a|b": ["exit code 2,\nnot 5"], "image: c": []}
    page.save(page.inputs_record(found, 2.0), tmp_path / "inputs.json")
    text = page.page(tmp_path)
    assert "- `policy 17`: `KeyError: 'x' (a.py:1 in 'f'), 3 times`" in text
    assert "- `image: a|b`: `exit code 2, not 5`" in text
    assert "| image | 2 | 1 | 1 |" in text
    (tmp_path / "kills.json").write_text("{")
    with pytest.raises(InputError, match="expected a record in JSON, got"):
        page.page(tmp_path)
