# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""``lmr-guard doctor``: a line for each look, and 1 where one is bad."""

import json
from pathlib import Path

import pytest

from lmr_guard.cli import main
from lmr_guard.errors import ExitCode


def test_a_line_for_each_look(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--out", str(tmp_path)]) == ExitCode.PASSED
    lines = capsys.readouterr().out.splitlines()
    assert all(line[:6] in ("ok    ", "note  ") and ": " in line for line in lines)
    assert len(lines) >= 8


def test_something_bad_answers_1(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--out", str(tmp_path / "none"), "--json"]) == ExitCode.REFUSED
    found = json.loads(capfd.readouterr().out)
    assert [each["about"] for each in found if each["state"] == "bad"] == ["disk for results"]


def test_wrong_usage_answers_4(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--nonsense"]) == ExitCode.USAGE
    assert capsys.readouterr().err.count("\n") == 1
