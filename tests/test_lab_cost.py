# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The cost's command runs through, and its ratios are what they are called."""

import json
from pathlib import Path

import pytest
import torch

from examples.lab.cost import __main__ as cost


def test_everything_is_timed_and_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch.get_rng_state()
    place = tmp_path / "cost.json"
    assert cost.main(["--tiny", "--width", "4", "--rounds", "1", "--out", f"{place}"]) == 0
    found = json.loads(place.read_text("utf-8"))
    assert json.loads(capsys.readouterr().out) == found
    (times,) = found["seconds"]
    assert set(times) == {"rnp", "localize", "audit"}
    assert found["variants"] == 2
    for job in ("localize", "audit"):
        ratio = times[job] / times["rnp"]
        assert found[f"{job} / rnp"]["median"] == pytest.approx(ratio, abs=0.3)
    assert list(found["search by classes"]) == ["10", "100", "1000"]
    assert found["search by classes"]["10"] == 1
    assert torch.equal(torch.get_rng_state(), state)


def test_pictures_of_a_class_look_alike() -> None:
    data = cost.pictures(5, 50, 1)
    pixels = data.pixels.flatten(1)
    centres = torch.stack([pixels[data.labels == k].mean(dim=0) for k in range(5)])
    nearest = torch.cdist(pixels, centres).argmin(dim=1)
    assert torch.equal(nearest, data.labels)
