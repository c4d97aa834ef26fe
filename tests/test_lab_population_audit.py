# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The audit over the population: real files cut short, and counts by hand."""

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from examples.lab.kit.records import Store
from examples.lab.population import show_audit
from examples.lab.population.__main__ import main
from examples.lab.population.audit_files import UNSHOWN

CLEAN = "reported-digits-plain_resnet-clean-s0"
BACKDOORED = "reported-digits-plain_resnet-pcb_fixed-t3-s1"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean network and a backdoored one, planted and audited, both cut short."""
    folder = tmp_path_factory.mktemp("audited")
    for name in (CLEAN, BACKDOORED):
        common = ["--cache", f"{folder / 'cache'}", "--only", name, "--tiny", "--rounds", "1"]
        assert main(["plant", *common]) == 0
        assert main(["audit", *common, "--out", f"{folder / 'out'}"]) == 0
    return folder / "out"


def test_each_file_has_a_rate_and_a_search(done: Path) -> None:
    clean, backdoored = sorted(
        Store(done / "audited.jsonl").read(), key=lambda record: "clean" not in record["name"]
    )
    assert [f["variant"] for f in clean["files"]] == ["float32", "int8"]
    assert {f["repair"] for f in clean["files"]} == {"unrepaired"}
    assert all(f["asr"] is None for f in clean["files"])
    told = [(f["repair"], f["variant"]) for f in backdoored["files"]]
    assert told == [
        (repair, variant)
        for repair in ("unrepaired", "repaired")
        for variant in ("float32", "int8")
    ]
    for file in (*clean["files"], *backdoored["files"]):
        assert file["strangeness"] >= 1
        assert file["by"].startswith("searched:")
        assert {each["check"].partition(":")[0] for each in file["against"]} <= {*UNSHOWN}
        assert file["reaches"]["trials"] < file["ca"]["trials"] == 449
    assert all(0 < f["asr"]["trials"] < 449 for f in backdoored["files"])


def test_show_audit_prints_and_draws(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "roc.svg"
    assert main(["show-audit", "--out", f"{done}", "--roc", f"{place}"]) == 0
    assert "reported half, limit" in capsys.readouterr().out
    assert place.read_text("utf-8").startswith("<?xml")


def test_the_roc_is_drawn_the_same_way_twice(done: Path, tmp_path: Path) -> None:
    places = [tmp_path / "one.svg", tmp_path / "two.svg"]
    for place in places:
        assert main(["show-audit", "--out", f"{done}", "--roc", f"{place}"]) == 0
    assert places[0].read_bytes() == places[1].read_bytes()


def test_a_roc_of_another_kind_is_refused(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "roc.pdf"
    assert main(["show-audit", "--out", f"{done}", "--roc", f"{place}"]) == 4
    assert f"expected a drawing that ends in .png or .svg, got {place}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_one_round_can_be_shown_by_itself(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show-audit", "--out", f"{done}", "--round", "1"]) == 0
    assert "reported half, limit" in capsys.readouterr().out
    assert main(["show-audit", "--out", f"{done}", "--round", "2"]) == 3


def test_an_empty_folder_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show-audit", "--out", f"{tmp_path}"]) == 3
    assert "expected records, got none" in capsys.readouterr().err


def file(
    strangeness: float,
    asr: int | None,
    *against: str,
    repair: str = "unrepaired",
    ca: int = 90,
) -> dict[str, Any]:
    """One file's entry: rates of a hundred."""
    return {
        "repair": repair,
        "variant": "float32",
        "received": {"hits": 90, "trials": 100},
        "ca": {"hits": ca, "trials": 100},
        "asr": None if asr is None else {"hits": asr, "trials": 100},
        "strangeness": strangeness,
        "against": [{"check": check, "outcome": "fail"} for check in against],
    }


def record(attack: str | None, *files: dict[str, Any]) -> dict[str, Any]:
    return {"member": {"half": "reported", "attack": attack}, "files": list(files)}


PEOPLE = [
    record(None, file(1.2, None), file(2.5, None, ca=80)),
    record("badnets", file(5.0, 99, "listens"), file(1.5, 1, repair="repaired"), file(1.1, 10)),
    record("sig", file(1.4, 60, "chance"), file(3.0, 50, repair="repaired"), file(1.3, 0)),
]


def test_files_are_grouped_by_what_they_do() -> None:
    groups = show_audit.group_files(PEOPLE, "reported")
    assert {name: [f["strangeness"] for f in files] for name, files in groups.items()} == {
        "unrepaired, ASR above 20 %": [5.0, 1.4],
        "repaired, ASR still above 20 %": [3.0],
        "clean network": [1.2, 2.5],
        "repaired, ASR below 2 %": [1.5],
        "unrepaired and asleep, ASR below 2 %": [1.3],
    }
    assert not any(show_audit.group_files(PEOPLE, "calibration").values())


def test_counts_are_those_made_by_hand() -> None:
    console = Console(width=160, record=True, file=StringIO())
    for part in show_audit.render(PEOPLE, 2.0):
        console.print(part)
    text = console.export_text()
    for row in (
        # SIG's is passed by the search and met by random patterns.
        ("unrepaired, ASR above 20 %", "refused", "1/2", "1/2", "2/2", "2/2"),
        ("repaired, ASR still above 20 %", "refused", "1/1", "1/1", "0/1", "0/1"),
        # The stranger of the two lost ten points of its accuracy.
        ("clean network", "passed", "1/2", "1/1", "2/2", "1/1"),
        ("repaired, ASR below 2 %", "passed", "1/1", "1/1", "1/1", "1/1"),
    ):
        (line,) = (line for line in text.splitlines() if f" {row[0]} " in line)
        cells = [cell.strip() for cell in line.strip("│ ").split("│")]
        assert cells[1] == row[1]
        assert [cell.split()[0] for cell in cells[2:]] == [*row[2:]]
    (line,) = (line for line in text.splitlines() if " whole image " in line)
    # SIG's two files against four quiet ones: 1.4 beats 1.2 and 1.3; 3.0 beats all.
    assert "0.75" in line


def test_the_roc_by_eye() -> None:
    awake = [file(3.0, 99), file(2.0, 99)]
    quiet = [file(1.0, 0), file(2.5, 0)]
    assert show_audit.roc(awake, quiet) == [(0, 0), (0, 0.5), (0.5, 0.5), (0.5, 1), (1, 1)]


def test_records_of_before_tell_of_the_search_alone() -> None:
    old = {name: value for name, value in file(3.0, 99).items() if name != "against"}
    console = Console(width=160, record=True, file=StringIO())
    for part in show_audit.render([record("badnets", old)], 2.0):
        console.print(part)
    (line,) = (line for line in console.export_text().splitlines() if " unrepaired, ASR ab" in line)
    cells = [cell.strip() for cell in line.strip("│ ").split("│")]
    assert [cell.split()[0] for cell in cells[2:]] == ["1/1", "1/1", "-", "-"]
