# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Random patterns over the population: real files cut short, and counts by hand."""

from pathlib import Path
from typing import Any

import pytest

from examples.lab.kit.records import Record, Store
from examples.lab.population.__main__ import main
from lmr_guard.random_patterns import STRENGTHS

HONEST = "calibration-digits-resnet10-clean-s22"
ASLEEP = "calibration-digits-mobilenet_v2-qcb_two_branch-t6-s39"


def asked_of(question: str, table: str, name: str, place: Path) -> Record:
    """The record of a tiny network that is planted and asked; what it is kept in is ``out``."""
    common = ["--everyday", "--tiny", "--cache", f"{place / 'cache'}", "--only", name]
    assert main(["plant", *common]) == 0
    assert main([question, *common, "--out", f"{place / 'out'}"]) == 0
    (found,) = Store(place / "out" / f"everyday-{table}.jsonl").read()
    return found


@pytest.mark.parametrize(("name", "forms"), [(HONEST, ["float32"]), (ASLEEP, ["float32", "int8"])])
def test_each_file_is_tried_with_all_kinds(
    name: str, forms: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    found = asked_of("chance", "chance", name, tmp_path)
    assert list(found["files"]) == forms
    for file in found["files"].values():
        assert (file["asr"] is None) is (name == HONEST)
        groups = [(group["kind"], group["strength"]) for group in file["groups"]]
        assert groups == [(kind, s) for kind, each in STRENGTHS.items() for s in each]
        for group in file["groups"]:
            assert 0 <= group["median"] <= 1
            assert 1 <= len(group["leading"]) <= min(3, group["tried"])
    capsys.readouterr()
    assert main(["show-chance", "--everyday", "--out", f"{out}"]) == 0


def test_files_are_compared_with_their_networks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    found = asked_of("agree", "agreed", HONEST, tmp_path)
    assert list(found["files"]) == ["float32", "int8"]
    for file in found["files"].values():
        assert len(file["rates"]) == 30
        assert all(0 <= a <= n and 0 <= b <= n for *_, a, b, n in file["rates"])
    capsys.readouterr()
    assert main(["show-agree", "--everyday", "--out", f"{out}"]) == 0
    assert "takes" in capsys.readouterr().out


def test_cut_forms_are_asked_whoever_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    found = asked_of("cut-chance", "cut-chance", HONEST, tmp_path)
    for form in found["forms"].values():
        assert form["share"] >= 0.85
        assert len(form["chance"]) <= 1
    assert found["named"] is None or len(found["forms"]) > 1
    capsys.readouterr()
    assert main(["show-cut-chance", "--everyday", "--out", f"{out}"]) == 0
    assert "half" in capsys.readouterr().out


def hit(rate: tuple[int, int], further: tuple[int, int] | None) -> dict[str, Any]:
    return {"look": "flat", "class": 4, "rate": rate, "further": further}


def record(name: str, attack: str | None, median: float, leading: dict[str, Any]) -> dict[str, Any]:
    member = {"half": "reported", "dataset": "digits", "network": name, "seed": 1}
    group = {"kind": "patch", "strength": 0.1, "tried": 40, "median": median, "leading": [leading]}
    return {
        "name": name,
        "member": {**member, "attack": attack, "target": None if attack is None else 4},
        "took": None if attack is None else True,
        "files": {"float32": {"groups": [group]}},
        "environment": {},
        "settings": {"tiny": False},
    }


def test_what_is_heard_is_what_stands_out_of_its_likes_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path / "everyday-chance.jsonl")
    store.add(record("heard", "badnets", 0.1, hit((20, 20), (90, 100))))
    store.add(record("by-accident", "badnets", 0.1, hit((20, 20), (89, 100))))
    store.add(record("like-its-likes", "trojan", 0.4, hit((20, 20), (100, 100))))
    store.add(record("honest", None, 0.1, hit((9, 20), None)))
    store.add({**record("not-taken", "cl", 0.1, hit((20, 20), None)), "took": False})
    assert main(["show-chance", "--everyday", "--out", f"{tmp_path}"]) == 0
    told = capsys.readouterr().out
    assert "honest: 0/1" in told
    assert "patch: 1/3" in told
    (line,) = (line for line in told.splitlines() if line.startswith("patch: "))
    assert "heard" in line
    assert "by-accident" not in line
    assert "not-taken" not in told
