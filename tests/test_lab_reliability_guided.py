# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Coverage-guided fuzzing: that it counts, finds what is wrong, and goes on where a reader dies."""

import base64
import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from modules import ROOT

from examples.lab.reliability import __main__ as command
from examples.lab.reliability import guided, page
from examples.lab.reliability.fuzz import workplace
from examples.lab.reliability.guided import Extent, GuidedRun, Nursery
from examples.lab.reliability.instrumented import LARGEST, State, wrong
from examples.lab.reliability.mutation import Spoiler
from examples.lab.reliability.targets import targets
from lmr_guard.errors import StageError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="alarms, and forks")

APART = ROOT / ".make" / "atheris"
PLANTED = """\
import os

from examples.lab.reliability.executing import Target
from examples.lab.reliability.mutation import Spoiler
from lmr_guard.errors import InputError


def targets(folder):
    died = folder / "died"

    def read(data):
        if data[:1] == b"\\xc3":
            if not died.exists():
                died.touch()
                os._exit(3)
            if data[1:2] == b"\\x9f":
                raise ValueError("planted")
        if data[:1] == b"a":
            raise InputError("expected b, got a")

    return {"planted": Target("planted", Spoiler([b"abc"], [b"\\xc3", b"\\x9f"]), read, file=True)}
"""


def test_the_command_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(guided, "find_spec", lambda name: None)
    assert command.main(["guided", "--out", str(tmp_path)]) == 4
    told = capsys.readouterr().err
    assert told == "error: expected atheris 3 on the path of Python, got none; run make guided\n"
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def _atheris(monkeypatch: pytest.MonkeyPatch) -> None:
    if APART.is_dir():
        monkeypatch.syspath_prepend(APART)
    if find_spec("atheris") is None:
        pytest.skip("atheris lives apart and is not there: make guided gets it")


@pytest.mark.usefixtures("_atheris")
def test_faults_are_found_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "planted.py").write_text(PLANTED)
    monkeypatch.syspath_prepend(tmp_path)
    with workplace() as folder, Nursery(folder, "planted") as nursery:
        run = guided.guided("planted", Extent(seconds=3), nursery)
    assert run.executions > 1000
    assert 0 < run.accepted < run.executions
    assert run.covered > 2
    assert run.corpus > 1
    raised, ended = run.wrong
    assert raised.error == "ValueError: 'planted' (planted.py:17 in read)"
    assert raised.base64 is not None
    assert base64.b64decode(raised.base64).startswith(b"\xc3\x9f")
    assert ended.error == "the process ended with 3"
    assert ended.number < raised.number
    assert base64.b64decode(ended.base64 or "").startswith(b"\xc3")


@pytest.mark.usefixtures("_atheris")
def test_a_process_that_never_reads_is_no_result() -> None:
    told = "expected x to be read, got .*No module named 'nobody'"
    with (
        workplace() as folder,
        Nursery(folder, "nobody") as nursery,
        pytest.raises(StageError, match=told),
    ):
        guided.guided("x", Extent(seconds=1), nursery)


def test_only_readers_of_files_are_fuzzed_and_have_seeds(tmp_path: Path) -> None:
    files = [target for target in targets(tmp_path).values() if target.file]
    assert {"policy", "plan", "report.file", "onnx", "archive", "image.png"} <= {
        target.name for target in files
    }
    assert not {"patch", "report.record"} & {target.name for target in files}
    for target in files:
        assert isinstance(target.make, Spoiler)
        assert all(0 < len(seed) <= LARGEST for seed in target.make.seeds)


def test_another_process_would_see_where_one_was(tmp_path: Path) -> None:
    one, other = State(tmp_path / "state"), State(tmp_path / "state")
    one.begin(b"first, and long")
    one.accept()
    one.begin(b"second")
    assert (other.begun, other.accepted, other.given) == (2, 1, b"second")
    one.begin(b"x" * LARGEST)
    assert other.given == b"x" * LARGEST


def test_the_page_names_what_was_wrong(tmp_path: Path) -> None:
    small, large = wrong(7, "KeyError: 'x' (a.py:1 in b)", b"abc"), wrong(9, "e", b"a" * 5000)
    assert (small.base64, large.base64) == ("YWJj", None)
    run = GuidedRun("plan", 20, 5, 1.0, 30, 4, [small, large])
    record = page.guided_record([run], Extent(3, 1.0), "3.0.0")
    page.save(record, tmp_path / "guided.json")
    assert json.loads((tmp_path / "guided.json").read_text())["targets"][0]["covered"] == 30
    text = page.page(tmp_path)
    assert "| plan | 20 | 5 | 30 | 4 | 2 |" in text
    assert "- `plan 7`: `KeyError: 'x' (a.py:1 in b), 3 bytes`" in text
    assert "atheris 3.0.0, 1 seconds for each reader." in text
    assert "seed 3." in text
