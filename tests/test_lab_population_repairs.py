# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Repairs, cuts and what ships over the population: real networks cut short, and counts by hand."""

from pathlib import Path
from typing import Any

import pytest

from examples.lab.kit.cuts import WAYS
from examples.lab.kit.records import Store
from examples.lab.population.__main__ import main
from examples.lab.population.shipments import withheld

HONEST = "calibration-digits-resnet10-clean-s22"
BACKDOORED = "calibration-digits-plain_cnn-lira-t3-s30"
FORMS = ("float32", "rounded-8", "l1-0.3")


def rate(hits: int, upper: float) -> dict[str, float]:
    return {"hits": hits, "trials": 100, "lower": 0.0, "upper": upper}


def record(attack: str, *, lost: int, upper: float, took: bool = True) -> dict[str, Any]:
    member = {"half": "reported", "dataset": "digits", "network": "tiny", "seed": 1}
    before = {"float32": {"ca": rate(90, 0.95), "asr": rate(99, 1.0)}}
    after = {form: {"ca": rate(90 - lost, 0.9), "asr": rate(1, upper)} for form in FORMS[:2]}
    return {
        "name": attack,
        "member": {**member, "attack": attack, "target": 0},
        "took": took,
        "received": before,
        "repaired": after,
        "processor_seconds": 3.0,
    }


def test_only_backdoored_networks_are_repaired(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    for name in (HONEST, BACKDOORED):
        common = ["--everyday", "--tiny", "--cache", f"{tmp_path / 'cache'}", "--only", name]
        assert main(["plant", *common]) == 0
        assert main(["repair", *common, "--out", f"{out}"]) == 0
    (found,) = Store(out / "everyday-repaired.jsonl").read()
    assert found["name"] == BACKDOORED
    assert tuple(found["repaired"]) == tuple(found["received"]) == FORMS
    for form in FORMS:
        assert set(found["repaired"][form]) == {"ca", "asr"}
    assert {"phase", "step"} <= set(found["history"][1])
    capsys.readouterr()
    assert main(["show-repair", "--everyday", "--out", f"{out}"]) == 0


def test_honest_networks_are_cut_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, cache = tmp_path / "out", tmp_path / "cache"
    common = ["--everyday", "--tiny", "--cache", f"{cache}", "--only", HONEST]
    assert main(["plant", *common]) == 0
    assert main(["cut", *common, "--out", f"{out}"]) == 0
    (found,) = Store(out / "everyday-cuts.jsonl").read()
    assert list(found["cuts"]) == ["0.6"]
    assert list(found["cuts"]["0.6"]) == list(WAYS)
    capsys.readouterr()
    assert main(["show-cuts", "--everyday", "--out", f"{out}"]) == 0
    assert HONEST in capsys.readouterr().out


def test_what_each_half_comes_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(tmp_path / "everyday-repaired.jsonl")
    store.add(record("badnets", lost=1, upper=0.015))
    store.add(record("blend", lost=2, upper=0.04))
    store.add(record("wanet", lost=6, upper=0.2))
    store.add(record("sig", lost=50, upper=0.9, took=False))
    assert main(["show-repair", "--everyday", "--out", f"{tmp_path}"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "float32 loses 2.0 points in the median and 6.0 at most" in told
    assert "the ASR's bound is at most 2 % in 1 and 5 % in 2 of 3" in told
    assert "l1-0.3: none" in told
    assert "sig" not in told


def test_without_records_it_says_what_to_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show-repair", "--everyday", "--out", f"{tmp_path}"]) == 3
    assert "run repair first" in capsys.readouterr().err


def test_what_ships_and_what_withholds_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    for name in (HONEST, BACKDOORED):
        common = ["--everyday", "--tiny", "--cache", f"{tmp_path / 'cache'}", "--only", name]
        assert main(["plant", *common]) == 0
        assert main(["ship", *common, "--out", f"{out}"]) == 0
    backdoored, honest = Store(out / "everyday-shipped.jsonl").read()
    assert honest["variants"]["float32"]["asr"] == []
    assert len(backdoored["variants"]["float32"]["asr"]) == 1
    assert "triggers" in honest["variants"]["float32"]["failed"]
    assert "triggers" not in withheld(honest)["float32"]
    assert withheld(backdoored)["float32"] == backdoored["variants"]["float32"]["failed"]
    store = Store(tmp_path / "everyday-shipped.jsonl")
    form = {"ca": rate(90, 0.95), "asr": [rate(1, 0.02)], "failed": []}
    member = {**backdoored["member"], "half": "reported"}
    weak = {**form, "failed": ["clean accuracy"]}
    variants = {"float32": form, "l1-0.3": form, "l1-0.6": weak}
    kept = {key: value for key, value in backdoored.items() if key != "format"}
    store.add({**kept, "member": member, "took": True, "variants": variants})
    capsys.readouterr()
    assert main(["show-ship", "--everyday", "--out", f"{tmp_path}"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "2 of 3" in told
    assert "of 1 networks 1 ship in some form (float32 of 1, l1-0.3 of 1)" in told
    assert "withheld for clean accuracy 1" in told
