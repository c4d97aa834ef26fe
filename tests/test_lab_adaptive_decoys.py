# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The experiment with two backdoors runs, cut short, and its README tells what its results say."""

import json
from pathlib import Path
from typing import Any

import pytest
from modules import ROOT

from examples.lab.adaptive.decoys import main, triggers

FOLDER = ROOT / "examples" / "lab" / "adaptive"


@pytest.mark.slow
def test_both_triggers_are_measured_before_and_after(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "decoys.json"
    assert main(["--tiny", "--seeds", "1", "--out", f"{out}"]) == 0
    printed = capsys.readouterr().out
    (case,) = json.loads(out.read_text(encoding="utf-8"))["cases"]
    assert (case["targets"], len(case["scores"])) == ([7, 1], 10)
    for state in ("received", "repaired"):
        assert [each["trials"] for each in case[state]["asr"]] != [0, 0]
        assert case[state]["ca"]["trials"] > 300
    assert main(["--show", f"{out}"]) == 0
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize("seed", range(6))
def test_the_triggers_differ_in_place_and_class(seed: int) -> None:
    white, board = triggers(seed)
    assert white.target != board.target
    assert (white.x, white.y) != (board.x, board.y)


def test_the_readme_shows_the_committed_results(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--show", f"{FOLDER / 'decoys.json'}"]) == 0
    told = (FOLDER / "README.md").read_text(encoding="utf-8")
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 7
    assert all(line in told for line in lines)


def test_both_attacks_took_in_every_committed_network() -> None:
    cases: list[dict[str, Any]] = json.loads((FOLDER / "decoys.json").read_bytes())["cases"]
    for case in cases:
        assert all(asr["hits"] > 0.8 * asr["trials"] for asr in case["received"]["asr"])
