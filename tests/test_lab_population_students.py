# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What a student would change is read off sizes as it would be by the rule."""

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from examples.lab.kit.records import Store
from examples.lab.population.__main__ import main
from examples.lab.population.students import READINGS, render, scores

FLAT = [0.2, 0.2, 0.2, 0.2]


def record(
    received: list[float],
    student: list[float] | None,
    *,
    target: int | None = None,
    half: str = "calibration",
) -> dict[str, Any]:
    member = {"half": half, "dataset": "digits", "network": "tiny", "seed": 1, "target": target}
    sizes = {"patch": received, "additive": FLAT}
    taught = student and {"ca": 0.9, "sizes": {"patch": student, "additive": FLAT}}
    return {
        "member": {**member, "attack": None if target is None else "blend"},
        "took": None if target is None else True,
        "classes": [0, 1, 2, 3],
        "nearness": [1.0, 1.0, 1.0, 1.0],
        "sizes": {"received": sizes},
        "students": {"labels": taught, "answers": None},
    }


@pytest.mark.parametrize(("reading", "most"), [(None, 4.0), ("taken off", 2.0), ("ratio", 2.0)])
def test_what_is_strange_in_both_is_taken_off(reading: str | None, most: float) -> None:
    found = scores(record([0.05, 0.2, 0.2, 0.2], [0.1, 0.2, 0.2, 0.2]), reading)
    assert found is not None
    assert found.tolist() == pytest.approx([most, 1.0, 1.0, 1.0])


def test_the_ratio_alone_raises_what_is_hard_by_nature() -> None:
    made = record([0.2, 0.2, 0.2, 0.2], [0.4, 0.2, 0.2, 0.2])
    by_reading = {reading: scores(made, reading) for reading in READINGS}
    assert {name: float(found[0]) for name, found in by_reading.items() if found is not None} == (
        pytest.approx({"taken off": 1.0, "ratio": 2.0})
    )


def test_no_student_takes_off_more_than_nearness_may() -> None:
    found = scores(record([0.02, 0.2, 0.2, 0.2], [0.02, 0.2, 0.2, 0.2]), "taken off")
    assert found is not None
    assert float(found[0]) == pytest.approx(5.0)


def test_where_nobody_was_taught_nothing_is_read() -> None:
    assert scores(record(FLAT, None), "ratio") is None
    assert scores(record(FLAT, FLAT), "ratio", by="answers") is None
    assert scores(record(FLAT, None)) is not None


def test_a_reading_is_worth_what_lies_above_every_honest_network() -> None:
    honest = record([0.05, 0.2, 0.2, 0.2], [0.05, 0.2, 0.2, 0.2])
    found = record([0.2, 0.2, 0.05, 0.2], FLAT, target=2)
    hidden = record([0.01, 0.2, 0.2, 0.2], FLAT, half="reported")
    console = Console(width=160, record=True, file=StringIO())
    for part in render([honest, found, hidden]):
        console.print(part)
    text = console.export_text()
    assert "today: of 1 backdoored networks 1 are led by the attacker's class, 0 above" in text
    better = (
        "labels, taken off: of 1 backdoored networks 1 are led by the attacker's class, 1 above"
    )
    assert better in text
    assert "of 1 honest ones, 2.00" in text
    assert "answers, ratio: of 0 backdoored networks" in text


@pytest.mark.slow
def test_a_network_is_asked_once_and_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only = "calibration-digits-slim_resnet18-clean-s0"
    options = ["--cache", str(tmp_path / "cache"), "--only", only, "--tiny", "--rounds", "1"]
    assert main(["plant", *options]) == 0
    out = ["--out", str(tmp_path / "out")]
    assert main(["students", *options, *out]) == 0
    assert main(["students", *options, *out]) == 0
    (made,) = Store(tmp_path / "out" / "students.jsonl").read()
    for student in made["students"].values():
        assert set(made["sizes"]["received"]) == set(student["sizes"])
    assert len(made["sizes"]["received"]["patch"]) == len(made["classes"]) == 10
    capsys.readouterr()
    assert main(["show-students", *out]) == 0
    assert "above the highest of 1 honest ones" in " ".join(capsys.readouterr().out.split())
