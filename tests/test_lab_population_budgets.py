# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Budgets are compared on the networks that all of them were asked about."""

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from examples.lab.population.__main__ import main
from examples.lab.population.budgets import common, render


def record(name: str, named: int | None, *, target: int | None = None) -> dict[str, Any]:
    member = {"half": "reported", "dataset": "digits", "network": name, "seed": 1}
    attack = None if target is None else "badnets"
    return {
        "name": name,
        "member": {**member, "attack": attack, "target": target},
        "took": None if target is None else True,
        "suspicion": {"target": named},
        "unlearning": {"class": 0},
    }


def test_what_one_budget_was_not_asked_is_left_out() -> None:
    found = common(
        {"quick": [record("a", None), record("b", 1)], "standard": [record("b", 2)], "thorough": []}
    )
    assert {budget: [r["name"] for r in each] for budget, each in found.items()} == {
        "quick": ["b"],
        "standard": ["b"],
    }


def test_counts_stand_side_by_side_and_what_differs_below() -> None:
    quick = [record("left", None), record("found", 3, target=3), record("asleep", None, target=4)]
    usual = [record("left", 2), record("found", 3, target=3), record("asleep", 4, target=4)]
    console = Console(width=150, record=True, file=StringIO())
    for part in render({"quick": quick, "standard": usual}):
        console.print(part)
    lines = console.export_text().splitlines()
    (honest,) = [line for line in lines if " clean " in line]
    (backdoored,) = [line for line in lines if " backdoored " in line]
    assert [cell.split()[0] for cell in honest.split("│")[3:5]] == ["1", "0"]
    assert [cell.split()[0] for cell in backdoored.split("│")[3:5]] == ["1", "2"]
    differ = [line for line in lines if "digits" in line]
    assert [line.split("│")[1].split()[1] for line in differ] == ["asleep", "left"]


def test_the_committed_records_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show-budgets", "--everyday"]) == 0
    assert "quick" in capsys.readouterr().out
