# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""``lmr-guard diff``: lines and an exit code, before torch could be loaded."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from factories import REPORT, variant
from modules import ROOT

from lmr_guard.cli import main
from lmr_guard.errors import ExitCode
from lmr_guard.release.policy import Policy
from lmr_guard.release.records import Outcome

HEAVY = ("numpy", "onnx", "onnxruntime", "torch", "torchvision", "lmr_guard.cli.commands")
REFUSED = replace(
    REPORT, verdict=Outcome.FAIL, variants=(variant("float32", Outcome.FAIL),), created=None
)
STRICTER = replace(REPORT, policy=Policy(require=("float32",), max_asr=0.03))


@pytest.fixture
def pair(tmp_path: Path) -> list[str]:
    """A report, one of another decision, and one of the same by other limits."""
    places = []
    for name, report in (("a", REPORT), ("b", REFUSED), ("c", STRICTER)):
        report.write(tmp_path / f"{name}.json")
        places.append(str(tmp_path / f"{name}.json"))
    return places


def test_another_decision_answers_1_and_says_what_changed(
    pair: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diff", pair[0], pair[1]]) == ExitCode.REFUSED
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first == "decision: verdict: pass -> fail"
    assert last.startswith("another decision: pass (1 published), then fail (0 published); ")


def test_the_same_decision_answers_0_though_limits_changed(
    pair: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diff", pair[0], pair[2]]) == ExitCode.PASSED
    assert "policy: max_asr: 0.05 -> 0.03\n" in capsys.readouterr().out
    assert main(["diff", pair[0], pair[0]]) == ExitCode.PASSED
    told = "the same decision: pass (1 published), then pass (1 published); 0 changes\n"
    assert capsys.readouterr().out == told


def test_json_is_one_object_and_quiet_is_nothing(
    pair: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["diff", pair[0], pair[1], "--json"]) == ExitCode.REFUSED
    document = json.loads(capfd.readouterr().out)
    assert document["same_decision"] is False
    expected = {"about": "decision", "what": "verdict", "before": "pass", "after": "fail"}
    assert document["changes"][0] == expected
    assert main(["diff", pair[0], pair[1], "--quiet"]) == ExitCode.REFUSED
    assert capfd.readouterr() == ("", "")


def test_names_write_nothing_but_text_to_a_terminal(
    pair: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    replace(REPORT, model="a\x1b[2J\nb").write(Path(pair[1]))
    assert main(["diff", pair[0], pair[1]]) == ExitCode.PASSED
    assert all(line.isprintable() for line in capsys.readouterr().out.splitlines())


@pytest.mark.parametrize(
    ("words", "code"),
    [(["A"], ExitCode.USAGE), (["A", "none.json"], ExitCode.UNSAFE_INPUT)],
)
def test_what_is_wrong_is_one_line(
    pair: list[str], words: list[str], code: ExitCode, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diff", *(pair[0] if word == "A" else word for word in words)]) == code
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)


def test_nothing_heavy_is_loaded(pair: list[str]) -> None:
    probe = f"""
import sys
from lmr_guard.cli import main
assert main(["diff", *{pair[:2]!r}]) == 1
print(*sorted(set({HEAVY!r}) & set(sys.modules)))"""
    done = subprocess.run(
        [sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == ""
