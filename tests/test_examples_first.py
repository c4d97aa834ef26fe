# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The first examples and the notebook run as their reader would run them, only shorter."""

import re
from pathlib import Path

import nbformat
import pytest
from modules import ROOT
from nbclient import NotebookClient

from examples.first import gate_a_checkpoint, own_trigger
from lmr_guard.release.records import Outcome

FOLDER = ROOT / "examples"
SHORT = 120

pytestmark = pytest.mark.slow


def code_lines(name: str) -> int:
    text = (FOLDER / "first" / f"{name}.py").read_text(encoding="utf-8")
    return len([line for line in text.splitlines() if line.strip()])


def test_a_backdoored_checkpoint_is_gated(tmp_path: Path) -> None:
    report = gate_a_checkpoint.main(["--tiny", "--out", str(tmp_path)])
    (before,) = report.received
    assert before.triggers[0].asr.lower() > 0.8
    assert all(variant.triggers[0].asr.upper() < 0.2 for variant in report.variants)
    there = {path.name for path in (tmp_path / "release").glob("*.onnx")}
    assert there == {variant.published for variant in report.published}
    assert (tmp_path / "release" / "report.json").is_file()


def test_an_own_trigger_is_told_from_the_planted_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = own_trigger.main(["--tiny", "--out", str(tmp_path)])
    frame, patch = measured.triggers
    assert (frame.name, patch.name) == ("frame", "white patch")
    assert patch.asr.lower() > 0.8 > frame.asr.upper()
    assert measured.verdict.outcome is not Outcome.PASS
    assert "white patch into 3" in capsys.readouterr().out


@pytest.mark.notebook
@pytest.mark.long
def test_the_notebook_runs_and_draws(tmp_path: Path) -> None:
    notebook = nbformat.read(FOLDER / "first" / "margins.ipynb", as_version=4)
    nbformat.validate(notebook)
    # The kernel starts where the examples can be imported, and writes nothing into the checkout.
    first = f"import os, sys\nsys.path.insert(0, {str(ROOT)!r})\nos.chdir({str(tmp_path)!r})\n"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(first))
    client = NotebookClient(notebook, timeout=180, kernel_name="python3")
    client.execute(cwd=str(tmp_path))
    outputs = [each for cell in notebook.cells for each in cell.get("outputs", ())]
    pictures = [each for each in outputs if "image/png" in each.get("data", {})]
    assert len(pictures) == 2
    printed = "".join(each.get("text", "") for each in outputs)
    before, after = re.findall(r": (\d+)/(\d+) land in 3", printed)
    assert int(after[0]) < int(before[0]) / 4
    assert int(before[0]) > 0.8 * int(before[1])


def test_the_notebook_is_stored_without_outputs() -> None:
    notebook = nbformat.read(FOLDER / "first" / "margins.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)


@pytest.mark.parametrize("name", ["gate_a_checkpoint", "own_trigger"])
def test_they_are_short(name: str) -> None:
    assert code_lines(name) <= SHORT // 2


def test_the_index_names_what_is_there() -> None:
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    for module in re.findall(r"python -m (examples\.[\w.]+)", index):
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file()
    for path in re.findall(r"`(examples/[\w./]+)`", index):
        assert (ROOT / path).exists()
