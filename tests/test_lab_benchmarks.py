# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The benchmarks run through, and their ratios are what they are called."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import fingerprint

from examples.lab.benchmarks.__main__ import main
from examples.lab.benchmarks.plain import plain_lmr
from examples.lab.benchmarks.stages import BASES
from examples.lab.benchmarks.subjects import network, pictures

TINY = ["--tiny", "--width", "4", "--rounds", "1"]


def made(command: str, tmp_path: Path, *more: str) -> dict[str, Any]:
    """What a command wrote."""
    place = tmp_path / "found.json"
    assert main([command, *TINY, *more, "--out", f"{place}"]) == 0
    found: dict[str, Any] = json.loads(place.read_text("utf-8"))
    return found


def test_every_stage_is_timed_and_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch.get_rng_state()
    found = made("stages", tmp_path, "--forms", "2")
    assert json.loads(capsys.readouterr().out) == found
    (times,) = found["seconds"]
    stages = ("localize", "repel", "audit")
    ours = {f"{stage}, {p}" for stage in stages for p in ("float32", "auto")}
    assert set(times) == {*BASES, "fine-tuning", *ours}
    assert found["forms audited"] == 2
    for base in BASES:
        for job, (least, median, most) in found[f"times {base}"].items():
            assert least == median == most
            assert median == pytest.approx(times[job] / times[base], rel=0.02, abs=0.02)
    assert found["search by classes"]["10"] == 1
    assert list(found["search by classes"]) == ["10", "100", "1000"]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.long
def test_stages_are_held_against_the_bare_network(tmp_path: Path) -> None:
    found = made("floor", tmp_path)
    machine = found.pop("machine")
    assert min(machine.values()) > 0
    del found["environment"]
    assert {name.rpartition(", ")[2] for name in found} == {"float32", "auto"}
    assert len(found) == 8
    assert all(0 < least <= median <= most for least, median, most in found.values())


def test_layouts_are_compared_network_by_network(tmp_path: Path) -> None:
    found = made("layouts", tmp_path)
    ratios = found["ResNet-18 shape, width 16"]
    assert ratios.pop("convolved") > 0.99
    assert ratios["float32"] == 1
    assert min(ratios.values()) > 0
    assert len(ratios) == 4


def test_a_filled_graph_is_held_against_a_traced_one(tmp_path: Path) -> None:
    found = made("exports", tmp_path)["ResNet-18 shape, width 16"]
    median, least, most = found["filled over traced"]
    assert 0 < least <= median <= most
    assert found["seconds, traced"] > 0
    assert found["same bytes"] is True


@pytest.mark.long
def test_growth_is_measured_in_processes_of_their_own(tmp_path: Path) -> None:
    found = made("growth", tmp_path, "--steps", "1")
    point = found["slim_resnet18 32 10 50"]
    assert point["steps"] == 1
    assert 0 < point["peak GB before"] <= point["peak GB"]
    assert found["1 variants"]["peak GB"] > 0


def test_the_plain_loop_repels_and_leaves_the_original() -> None:
    model, data = network(10, 4, "cpu"), pictures(10, 60, 1)
    before = fingerprint(model)
    repaired = plain_lmr(model, data, 3, passes=1)
    assert fingerprint(model) == before
    head = repaired.network.get_submodule("fc").get_parameter("weight")
    cut = (head == 0).all(dim=0).sum()
    assert int(cut) == int(0.1 * head.shape[1])


def test_pictures_of_a_class_look_alike() -> None:
    data = pictures(5, 50, 1)
    pixels = data.pixels.flatten(1)
    centres = torch.stack([pixels[data.labels == k].mean(dim=0) for k in range(5)])
    nearest = torch.cdist(pixels, centres).argmin(dim=1)
    assert torch.equal(nearest, data.labels)


def test_the_whole_guard_is_held_against_rnp(tmp_path: Path) -> None:
    found = made("whole", tmp_path, "--budget", "quick")
    (times,) = found["seconds"]
    assert set(times) == {"rnp", "3 forms, quick", "12 forms, quick"}
    for job, (least, median, most) in found["times rnp"].items():
        assert least == median == most
        assert median == pytest.approx(times[job] / times["rnp"], rel=0.02, abs=0.02)
    assert found["times rnp"]["rnp"] == [1, 1, 1]
