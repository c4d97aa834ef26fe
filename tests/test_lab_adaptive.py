# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The example runs, cut short, and its README tells what its results say."""

import json
from pathlib import Path
from typing import Any

import pytest
from modules import ROOT

from examples.lab.adaptive.__main__ import ATTACKS, main

FOLDER = ROOT / "examples" / "lab" / "adaptive"


@pytest.mark.long
def test_every_form_is_measured_before_and_after(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results.json"
    assert main(["--tiny", "--seeds", "1", "--attacks", "adaptive", "--out", f"{out}"]) == 0
    printed = capsys.readouterr().out
    cases = json.loads(out.read_text(encoding="utf-8"))["cases"]
    (case,) = cases
    assert (case["attack"], case["seed"], case["target"]) == ("adaptive", 1, 7)
    assert len(case["scores"]) == 10
    for step in ("received", "named", "given"):
        assert list(case[step]) == ["float32", "int8", "l1-0.4"]
        for form in case[step].values():
            assert form["ca"]["trials"] > form["asr"]["trials"] > 250
    assert main(["--show", f"{out}"]) == 0
    assert capsys.readouterr().out == printed
    assert printed.count("l1-0.4") == 1


def test_the_readme_shows_the_committed_results(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--show", f"{FOLDER / 'results.json'}"]) == 0
    told = (FOLDER / "README.md").read_text(encoding="utf-8")
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 1 + 3 * len(ATTACKS) * 3
    assert all(line in told for line in lines)


def test_the_committed_attacks_took() -> None:
    cases: list[dict[str, Any]] = json.loads((FOLDER / "results.json").read_bytes())["cases"]
    assert [case["seed"] for case in cases] == [0, 0, 1, 1, 2, 2]
    for case in cases:
        asr = case["received"]["float32"]["asr"]
        assert asr["hits"] > 0.9 * asr["trials"]


@pytest.mark.parametrize("content", [None, "no JSON"])
def test_results_that_cannot_be_read_are_told_in_one_line(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "results.json"
    if content is not None:
        place.write_text(content, encoding="utf-8")
    assert main(["--show", f"{place}"]) == 5
    told = capsys.readouterr().err
    assert told.startswith("error: expected results as --out writes them, got ")
    assert told.endswith(f": {place}\n")
