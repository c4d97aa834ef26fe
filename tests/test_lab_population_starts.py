# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What starts are worth is read off sizes as the search of a file would read it."""

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from examples.lab.kit.records import Record, Store
from examples.lab.population.__main__ import RESULTS, main
from examples.lab.population.starts import LOOKS, heard, render, standing_out

FLAT = [0.2, 0.2, 0.2, 0.2, 0.2]
FOUND = [0.05, 0.2, 0.2, 0.2, 0.2]


def record(*patch: list[float], took: bool | None = True) -> dict[str, Any]:
    sizes = {"classes": [0, 1, 2, 3, 4], "patch": patch, "additive": [FLAT], "warp": [FLAT] * 4}
    return {
        "name": f"{took}",
        "member": {"half": "calibration"},
        "took": took,
        "nearness": [1.0] * 5,
        "patched": False,
        "sizes": {"received": sizes},
    }


def test_the_least_of_the_starts_counts() -> None:
    made = record(FLAT, FOUND, FLAT, FLAT)
    assert standing_out(made, "received", "patch", (0,)) == pytest.approx(1.0)
    assert standing_out(made, "received", "patch", (0, 1)) == pytest.approx(4.0)
    assert standing_out(made | {"patched": True}, "received", "patch", (1,)) == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("patch", "by"),
    [
        ((FOUND, FLAT, FLAT, FLAT), {"short", "all"}),
        ((FLAT, FLAT, FOUND, FLAT), {"long", "long for patches", "all"}),
        ((FLAT, FLAT, FLAT, FOUND), {"all"}),
        ((FLAT, FLAT, FLAT, FLAT), set()),
    ],
)
def test_a_file_is_refused_where_its_first_look_shows_something(
    patch: tuple[list[float], ...], by: set[str]
) -> None:
    found = {look: heard(record(*patch), "received", look) for look in LOOKS}
    assert {look for look, (refused, _) in found.items() if refused} == by
    again = {look: count for look, (_, count) in found.items()}
    assert again == {look: 3 if look == "all" else int(look in by) for look in LOOKS}


def test_halves_and_kinds_are_counted_apart() -> None:
    records: list[Record] = [
        record(FLAT, FLAT, FOUND, FLAT),
        record(FOUND, FLAT, FLAT, FLAT, took=None),
        record(FOUND, FLAT, FLAT, FLAT, took=False),
    ]
    console = Console(width=200, record=True, file=StringIO())
    for part in render(records):
        console.print(part)
    lines = console.export_text().splitlines()
    (honest,) = [line for line in lines if "honest, 1" in line]
    (backdoored,) = [line for line in lines if "backdoored, 1" in line]
    assert [word.split()[0] for word in honest.split("│")[4:8]] == ["1", "0", "0", "1"]
    assert [word.split()[0] for word in backdoored.split("│")[4:8]] == ["0", "1", "1", "1"]


def test_the_committed_records_say_what_the_first_look_was_chosen_on() -> None:
    records = Store(RESULTS / "everyday-starts.jsonl").read()
    chosen = [r for r in records if r["member"]["half"] == "calibration" and r["took"]]
    counted = {
        look: sum(heard(each, form, look)[0] for each in chosen for form in each["sizes"])
        for look in LOOKS
    }
    assert counted["short"] < counted["long for patches"] <= counted["all"]


@pytest.mark.slow
def test_every_start_of_every_form_is_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only = "calibration-digits-slim_resnet18-clean-s0"
    options = ["--cache", str(tmp_path / "cache"), "--only", only, "--tiny", "--rounds", "1"]
    assert main(["plant", *options]) == 0
    out = ["--out", str(tmp_path / "out")]
    assert main(["starts", *options, *out]) == 0
    (made,) = Store(tmp_path / "out" / "starts.jsonl").read()
    assert "received" in made["sizes"]
    for form in made["sizes"].values():
        for space in ("patch", "additive", "warp"):
            assert [len(sizes) for sizes in form[space]] == [10] * 4
    capsys.readouterr()
    assert main(["show-starts", *out]) == 0
    assert "honest, 1" in capsys.readouterr().out
