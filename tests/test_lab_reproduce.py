# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The paper's tables: a cell from end to end, what is shown of it, and what is refused."""

import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from modules import ROOT

from examples.lab.kit.measuring import counts
from examples.lab.reproduce import cells, draw, refit, tables
from examples.lab.reproduce.__main__ import main
from examples.lab.reproduce.rows import summary
from examples.lab.reproduce.work import Worker
from lmr_guard.contracts import Rate

CELL = "digits-resnet18-badnets-t1-s0-d0.02"


def run(folder: Path, *arguments: str) -> int:
    options = ("--out", str(folder / "out"), "--cache", str(folder / "cache"), "--tiny")
    return main(["run", "--seeds", "0", *arguments, *options])


# --- a cell from end to end ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cell of figure 2, cut short."""
    folder = tmp_path_factory.mktemp("reproduce")
    assert run(folder, "fig2", "--only", CELL) == 0
    return folder


@pytest.fixture(scope="module")
def record(done: Path) -> dict[str, Any]:
    (found,) = cells.store(done / "out", "small", "fig2").read()
    return dict(found)


def test_a_record_says_what_was_done_and_on_what(record: dict[str, Any]) -> None:
    assert record["name"] == CELL
    assert (record["cell"]["dataset"], record["cell"]["stands_for"]) == ("digits", "cifar10")
    assert record["images"] == {
        "train": 900,
        "repair": 18,
        "select": 18,
        "select_is_repair": True,
        "report": 449,
    }
    environment = record["environment"]
    assert environment["device"] == "cpu"
    assert {"torch", "torchvision", "lmr-guard"} <= set(environment["packages"])
    assert "commit" in environment
    assert record["settings"]["tiny"] is True
    assert record["planted"]["schedule"]["epochs"] == 2
    assert set(record["seconds"]) == {"data_and_plant", "repair_and_measure"}


def test_numbers_are_counts_with_wilson_bounds(record: dict[str, Any]) -> None:
    assert list(record["measured"]) == ["none", "lmr", "lmr-paper"]
    for told in record["measured"].values():
        found = told["forms"]["float32"]
        others = 449 - found["ca_target"]["trials"]
        assert [found[m]["trials"] for m in ("ca", "asr", "ta")] == [449, others, 449]
        rate = Rate(found["asr"]["hits"], found["asr"]["trials"])
        assert found["asr"]["upper"] == pytest.approx(rate.upper(), abs=1e-5)
        assert found["asr"]["lower"] == pytest.approx(rate.lower(), abs=1e-5)


def test_what_is_there_is_not_done_again(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.stat().st_mtime_ns for p in done.rglob("*.*")}
    assert {p.suffix for p in before} == {".jsonl", ".safetensors"}
    assert run(done, "fig2", "--only", CELL) == 0
    assert "0 of 1 cells to do" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in done.rglob("*.*")} == before


def test_a_cell_that_another_process_has_done_meanwhile_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = tables.cells("fig3", tables.Plan(scale="small", seeds=(0, 1)))
    results = cells.store(tmp_path / "out", "small", "fig3")
    asked = []

    def work(self: Worker, cell: cells.Cell) -> dict[str, Any]:
        del self
        asked.append(cell.seed)
        write(tmp_path / "out", wanted[1], 90)  # The other process.
        return {"name": cell.name}

    monkeypatch.setattr(Worker, "__call__", work)
    assert run(tmp_path, "fig3", "--seeds", "0,1") == 0
    assert asked == [0]
    assert results.names() == {cell.name for cell in wanted}


def test_a_lost_record_comes_back_the_same_from_the_kept_network(
    done: Path, record: dict[str, Any]
) -> None:
    kept = {p: p.stat().st_mtime_ns for p in (done / "cache").iterdir()}
    assert len(kept) == 1
    results = cells.store(done / "out", "small", "fig2")
    results.path.unlink()
    assert run(done, "fig2", "--only", CELL) == 0
    (again,) = results.read()
    assert timeless(again) == timeless(record)
    assert {p: p.stat().st_mtime_ns for p in (done / "cache").iterdir()} == kept


def timeless(found: Any) -> Any:  # noqa: ANN401 - what JSON holds
    """Without what another run cannot repeat."""
    if not isinstance(found, dict):
        return found
    passing = ("processor_seconds", "seconds", "commit")
    return {key: timeless(value) for key, value in found.items() if key not in passing}


def test_a_time_limit_stops_before_the_next_cell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "fig2", "--limit-seconds", "-1") == 0
    assert "stopped after -1 s, before digits-resnet18-badnets-t1-s0" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.jsonl"))


def test_a_cell_that_fails_leaves_nothing_and_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "table3", "--scale", "full", "--only", "resnet18") == 2
    told = capsys.readouterr().out
    assert "failed: expected the folders cifar10/train and cifar10/test for cifar10" in told
    assert not list(tmp_path.rglob("*.jsonl"))


@pytest.mark.long
def test_a_recovered_form_is_repaired_after_the_cut_and_the_others_are_not(tmp_path: Path) -> None:
    assert run(tmp_path, "table3", "--only", "mobilenet_v2") == 0
    (record,) = cells.store(tmp_path / "out", "small", "table3").read()
    measured = record["measured"]
    assert list(measured) == ["none", "lmr", "lmr-recovered", "lmr-paper"]
    plain, recovered = measured["lmr"]["forms"], measured["lmr-recovered"]["forms"]
    assert plain["float32"] == recovered["float32"]
    assert all(plain[form] != recovered[form] for form in ("l1-0.2", "l1-0.4", "l1-0.6"))


# --- what is shown ------------------------------------------------------------------------------


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["show", *arguments]) == 0
    return capsys.readouterr().out


def test_ours_and_what_is_missing_are_shown(
    done: Path, record: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    told = shown(capsys, "fig2", "--out", str(done / "out"), "--seeds", "0")
    assert "fig2, small scale: digits in place of cifar10" in told
    clean = record["measured"]["none"]["forms"]["float32"]["ca"]
    assert f"{100 * clean['hits'] / clean['trials']:.1f}" in told
    assert "18 (2.00%)" in told
    assert "missing: 9 of 10 cells: digits-resnet18-badnets-t1-s0-d0.05, " in told


@pytest.mark.parametrize("name", [*tables.TABLES, *tables.FIGURES])
def test_every_table_is_shown_before_any_cell_is_done(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = shown(capsys, name, "--out", str(tmp_path), "--seeds", "0")
    plan = tables.Plan(scale="small", seeds=(0,))
    count = len(tables.cells(name, plan))
    assert f"missing: {count} of {count} cells" in " ".join(told.split())
    paper = ROOT / "examples" / "lab" / "reproduce" / "paper" / f"{name}.csv"
    if paper.exists():
        with paper.open(encoding="utf-8", newline="") as file:
            values = {value for row in csv.DictReader(file) for value in row.values()}
        assert [value for value in values if "." in value and value not in told] == []


def write(folder: Path, cell: cells.Cell, hits: int) -> None:
    """A record of that cell with the same count everywhere, of a hundred."""
    rate = counts(Rate(hits, 100))
    rates = dict.fromkeys(("ca", "asr", "ta", "ca_target"), rate)
    record = {
        "name": cell.name,
        "cell": asdict(cell),
        "images": {"repair": 8, "select": 2, "select_is_repair": False},
        "localized": {"hit": True},
        "unlearning": [{"class": cell.target}, {"class": cell.target + 1}],
        "measured": {
            method: {"forms": dict.fromkeys(cell.forms, rates), "seconds": 1.5}
            for method in cell.methods
        },
        "geometry": {"lmr": {"states": {"before": {"lands": rate, "certified": rate}}}},
        "seconds": {"localize": 2.0},
    }
    assert cells.store(folder, cell.scale, cell.table).add(record)


@pytest.mark.parametrize("name", tables.TABLES)
def test_seeds_are_averaged_and_their_range_is_shown(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tables.Plan(scale="small", seeds=(0, 1))
    for cell in tables.cells(name, plan):
        write(tmp_path, cell, 91 if cell.seed else 96)
    told = shown(capsys, name, "--out", str(tmp_path), "--seeds", "0,1")
    assert "missing: none of" in told
    if name == "table2":
        assert "2/2" in told  # a target for each seed: the guard's hits, and attacks that took
        assert "2/4" in told  # half of the restarts name the target
    else:
        assert "93.5 (91.0-96.0)" in told


def test_a_range_needs_several_values() -> None:
    assert [summary(v) for v in ([], [1.26], [1.0, 2.0])] == ["-", "1.3", "1.5 (1.0-2.0)"]


def test_figures_are_drawn_the_same_way_twice(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("fig2", "fig3"):
        wanted = tables.cells(name, tables.Plan(scale="small", seeds=(0, 1)))
        for cell in wanted:
            write(tmp_path, cell, 90 + cell.seed)
        records = cells.store(tmp_path, "small", name).read()
        for file in ("one.svg", "two.svg", "one.png"):
            draw.draw(name, records, tmp_path / f"{name}-{file}")
        first, second = (tmp_path / f"{name}-{n}.svg" for n in ("one", "two"))
        assert first.read_bytes() == second.read_bytes()


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["run", "table9"], "expected a table among table1, table2"),
        (["show", "table9"], "expected a table among table1, table2"),
        (["run", "table1", "--seeds", "0,0"], "expected seeds such as 0,1,2, got '0,0'"),
        (["run", "table1", "--seeds", "x"], "expected seeds such as 0,1,2, got 'x'"),
        (["run", "table1", "--threads", "0"], "expected 1 or more, got '0'"),
        (["run", "table1", "--only", "nowhere"], "expected cells with 'nowhere' in their name"),
        (["run", "table1", "--tiny"], "expected --out beside --tiny"),
        (["run", "table1", "--scale", "huge"], "invalid choice: 'huge'"),
        (["show", "fig2", "--draw", "fig2.png"], "expected records of fig2 to draw, got none"),
        (["walk"], "invalid choice: 'walk'"),
        ([], "required: command"),
    ],
)
def test_bad_arguments_are_told_in_one_line(
    arguments: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["--out", str(tmp_path)] if arguments[:1] == ["show"] else []
    assert main([*arguments, *own]) == 4
    told = capsys.readouterr().err
    assert complaint in told
    assert told.count("\n") == 1


def test_what_a_killed_run_left_is_told_and_done_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tables.Plan(scale="small", seeds=(0, 1))
    for cell in tables.cells("fig3", plan):
        write(tmp_path / "out", cell, 90)
    results = cells.store(tmp_path / "out", "small", "fig3")
    results.path.write_bytes(results.path.read_bytes()[:-9])
    assert run(tmp_path, "fig3", "--seeds", "0,1", "--limit-seconds", "-1") == 0
    told = capsys.readouterr().out
    assert f"{results.path}: the last line is cut off; what it held is done again" in told
    assert "1 of 2 cells to do" in told


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "table1", "--device", "cuda"]) == 4
    assert "expected a CUDA device, got none" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["no JSON", '{"format": 0}', "[]"])
def test_a_damaged_record_is_named(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = cells.store(tmp_path, "small", "fig3").path
    file.parent.mkdir(parents=True)
    file.write_text(f"{text}\n")
    assert main(["show", "fig3", "--out", str(tmp_path)]) == 5
    assert f"in line 1: {file}; delete that line" in capsys.readouterr().err


@pytest.mark.long
def test_the_refit_of_table_3_prints_every_form_as_received_and_repaired(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--network", "resnet18", "--seeds", "0", "--cache", str(tmp_path), "--tiny"]
    assert refit.main(arguments) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    told = [(line["state"], line["form"], line["after"]) for line in lines]
    ratios = ("l1-0.2", "l1-0.3", "l1-0.4", "l1-0.5", "l1-0.6")
    done = ("batch norm", "refit", "refit, batch norm", "default")
    forms = [("float32", "nothing"), *((ratio, after) for ratio in ratios for after in done)]
    assert told == [(state, *form) for state in ("received", "repaired") for form in forms]
    assert all(line["ca"]["trials"] > line["asr"]["trials"] > 0 for line in lines)
