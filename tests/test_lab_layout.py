# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The kit knows no experiment, no experiment another, and the results are as they should be."""

import ast
from pathlib import Path

import pytest
from modules import ROOT

from examples.lab.architectures.subjects import SUBJECTS as ARCHITECTURES
from examples.lab.kit.records import Store
from examples.lab.onnxfiles.routes import PIECES
from examples.lab.onnxfiles.subjects import SUBJECTS
from examples.lab.population.everyday import EVERYDAY
from examples.lab.population.plan import population
from examples.lab.reproduce import tables

LAB = ROOT / "examples" / "lab"
FOLDERS = sorted(folder.name for folder in LAB.iterdir() if (folder / "__init__.py").exists())
RESULTS = sorted(LAB.rglob("results/**/*.jsonl"))


def imported(file: Path) -> set[str]:
    """Folders of the lab that a file imports from."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[2] for name in names if name.startswith("examples.lab.")}


@pytest.mark.parametrize("folder", FOLDERS)
def test_experiments_import_the_kit_alone(folder: str) -> None:
    files = list((LAB / folder).rglob("*.py"))
    assert len(files) >= 2
    found = set().union(*map(imported, files))
    assert found <= {"kit", folder}
    assert "kit" in found


def test_every_committed_record_is_one_of_the_plan() -> None:
    assert len(RESULTS) == 30
    plan = tables.Plan(scale="small")
    members = {member.name for member in (*population(), *EVERYDAY)}
    for path in RESULTS:
        table = path.stem
        if "reproduce" in path.parts:
            wanted = {cell.name for cell in tables.cells(table, plan)}
        elif "architectures" in path.parts:
            wanted = {subject.name for subject in ARCHITECTURES}
        elif "onnxfiles" in path.parts:
            pieces = PIECES if table == "routes" else SUBJECTS
            wanted = {piece.name for piece in pieces}
        else:
            wanted = members
        store = Store(path)
        assert store.names() <= wanted
        assert not store.cut_off()
        for record in store.read():
            assert {"environment", "settings", "format"} <= set(record)
            assert record["settings"]["tiny"] is False


def test_committed_lines_are_compact_and_say_what_is_shared_once() -> None:
    for path in RESULTS:
        lines = path.read_text("ascii").splitlines()
        shared = [line for line in lines if '"environment":' in line]
        assert len(shared) <= 3
        assert len(set(shared)) == len(shared)
        assert not any('": ' in line for line in lines)
