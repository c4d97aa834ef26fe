# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The corpus of bad inputs against the command line, and the harness that watches it."""

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from _pytest.mark.structures import ParameterSet

from examples.lab.reliability.corpus import corpus
from examples.lab.reliability.place import fill
from examples.lab.reliability.trial import Case, Outcome, attempt, faults

CASES = {case.name: case for case in corpus()}
EVERY = 8


def tried() -> Iterator[ParameterSet]:
    """All cases but those that run into a limit of time, most of them as long runs.

    Those that are none: of each family and each exit code that is right there the first, and every
    eighth after it, in the order of the corpus.
    """
    seen: Counter[tuple[str, tuple[int, ...]]] = Counter()
    for name, case in CASES.items():
        if case.slow:
            continue
        kind = case.family, case.codes
        yield pytest.param(name, marks=pytest.mark.long if seen[kind] % EVERY else (), id=name)
        seen[kind] += 1


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return fill(tmp_path / "place")


def test_the_corpus_is_as_large_as_promised() -> None:
    assert len(CASES) >= 150
    assert Counter(case.family for case in CASES.values()).keys() >= {
        "checkpoint",
        "onnx",
        "image",
        "images",
        "patch",
        "triggered",
        "policy",
        "drill",
        "report",
        "option",
        "output",
        "list",
        "archive",
        "table",
        "classes",
        "folder",
        "onnx model",
        "plan",
    }
    assert len({case.name for case in corpus()}) == len(list(corpus()))


@pytest.mark.parametrize("name", list(tried()))
def test_bad_input_is_told_in_one_line_and_does_nothing(name: str, place: Path) -> None:
    outcome = attempt(CASES[name], place)
    assert faults(CASES[name], outcome) == []


# --- the harness can fail -----------------------------------------------------------------------


def outcome(**changed: object) -> Outcome:
    usual = {
        "code": 5,
        "said": "lmr-guard: expected a, got b\n",
        "seconds": 1.0,
        "bytes": 0,
        "written": (),
    }
    return Outcome(**{**usual, **changed})  # type: ignore[arg-type]


CASE = Case("a: b", lambda folder: [])


def test_what_is_right_has_no_faults() -> None:
    assert faults(CASE, outcome()) == []


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"code": 2}, "exit code 2, not 5"),
        ({"code": -9}, "exit code -9, not 5"),
        ({"said": "lmr-guard: internal error: x"}, "1 lines on standard error"),
        ({"said": "a\nb\n"}, "2 lines on standard error"),
        ({"said": ""}, "0 lines on standard error"),
        ({"said": "lmr-guard: expected a\n"}, "what was got is not told"),
        ({"written": ("x",)}, "written: x"),
        ({"bytes": 3 << 30}, "3.0 GB"),
        ({"seconds": 500.0}, "500 seconds"),
    ],
)
def test_what_is_wrong_is_told(changed: dict[str, object], told: str) -> None:
    assert any(told in fault for fault in faults(CASE, outcome(**changed)))


def test_what_a_job_writes_takes_and_answers_is_seen(place: Path) -> None:
    def job() -> None:
        (place / "new").write_bytes(bytearray(300 << 20)[:3])
        (place / "model.onnx").write_bytes(b"changed")
        time.sleep(0.2)

    seen = attempt(Case("a: b", lambda folder: job), place)
    assert {Path(name).name for name in seen.written} >= {"new", "model.onnx"}
    assert seen.code == 0
    assert seen.bytes > 250 << 20
    assert seen.seconds >= 0.2


def test_a_job_that_dies_is_seen(place: Path) -> None:
    def job() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    assert attempt(Case("a: b", lambda folder: job), place).code == -signal.SIGKILL
