# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Other scores: each finds what it is made for, and the table counts as one does by hand."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from examples.lab.kit.records import Store
from examples.lab.population import compare
from examples.lab.population.__main__ import main
from examples.lab.population.candidates import CANDIDATES
from examples.lab.population.patterns import KINDS, Question, low_waves, straight_waves
from lmr_guard.classifier import Classifier, Preprocessing, weights_sha256
from lmr_guard.contracts import Labelled, Rate
from lmr_guard.localize.drift import lead
from lmr_guard.localize.inversion import InversionSettings

NAME = "reported-digits-plain_resnet-clean-s0"
SIDE = 8


def question(weight: Tensor, bias: Tensor | None = None, *, steps: int = 30) -> Question:
    """A linear network on 8x8 grey images, and 60 grey images of all classes."""
    count = len(weight)
    head = nn.Linear(SIDE * SIDE, count)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(torch.zeros(count) if bias is None else bias)
    shape = Preprocessing(channels=1, height=SIDE, width=SIDE, mean=(0.0,), std=(1.0,))
    model = Classifier(nn.Sequential(nn.Flatten(), head), shape, count).eval()
    drawn = torch.Generator().manual_seed(0)
    images = torch.randint(100, 156, (60, 1, SIDE, SIDE), dtype=torch.uint8, generator=drawn)
    names = tuple("abcdefghij")[:count]
    labelled = Labelled(images, torch.arange(60) % count, names)
    return Question(
        model, labelled, InversionSettings(steps=steps), torch.Generator().manual_seed(1)
    )


def rows(*, strong: int, times: float = 4.0, count: int = 4) -> Tensor:
    """Random rows without a mean, one of them longer than the others."""
    weight = torch.randn(count, SIDE * SIDE, generator=torch.Generator().manual_seed(2))
    weight = F.normalize(weight - weight.mean(dim=1, keepdim=True), dim=1)
    weight[strong] *= times
    return weight


# --- single candidates --------------------------------------------------------------------------


def test_the_margin_of_a_linear_network_is_known() -> None:
    weight = torch.randn(2, SIDE * SIDE, generator=torch.Generator().manual_seed(3))
    bias = torch.tensor([0.5, -0.25])
    found = CANDIDATES["margin"](question(weight, bias))
    expected = [
        float((weight[c] - weight[1 - c]).clamp_min(0).sum() + bias[c] - bias[1 - c])
        for c in range(2)
    ]
    assert found["margin"].tolist() == pytest.approx(expected, abs=1e-3)
    assert found["margin_mean"].tolist() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("strong", [0, 3])
@pytest.mark.parametrize("name", ["latent", "active"])
def test_a_long_row_is_reached_by_a_short_shift(name: str, strong: int) -> None:
    sizes = CANDIDATES[name](question(rows(strong=strong)))[name]
    others = torch.cat([sizes[:strong], sizes[strong + 1 :]])
    assert float(sizes[strong]) < 0.6 * float(others.min())


def test_shifts_are_in_units_of_the_spread_of_the_inputs() -> None:
    plain, scaled = question(rows(strong=1)), question(rows(strong=1) / 10)
    assert isinstance(scaled.model.network, nn.Sequential)
    scaled.model.network.insert(1, Tenfold())
    pixels = plain.images.pixels
    assert torch.allclose(plain.model(pixels), scaled.model(pixels), atol=1e-2)
    first, second = (CANDIDATES["latent"](each)["latent"] for each in (plain, scaled))
    assert first.tolist() == pytest.approx(second.tolist(), rel=0.05)


class Tenfold(nn.Module):
    """Ten times its input."""

    def forward(self, inputs: Tensor) -> Tensor:
        return 10 * inputs


def test_the_head_is_described_row_by_row() -> None:
    weight = rows(strong=2)
    bias = torch.tensor([0.0, 1.0, 2.0, 3.0])
    found = CANDIDATES["head"](question(weight, bias))
    for c in range(4):
        others = [F.cosine_similarity(weight[c], weight[k], dim=0) for k in range(4) if k != c]
        assert float(found["head_norm"][c]) == pytest.approx(float(weight[c].norm()))
        assert float(found["head_mean"][c]) == pytest.approx(float(weight[c].mean()), abs=1e-6)
        assert float(found["head_cosine"][c]) == pytest.approx(
            sum(map(float, others)) / 3, abs=1e-6
        )
    assert found["head_bias"].equal(bias)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 12)])
def test_waves_are_of_one_size(height: int, width: int) -> None:
    for waves in (low_waves(height, width), straight_waves(height, width)):
        assert waves.shape[1:] == (height, width)
        assert waves.square().mean(dim=(1, 2)).tolist() == pytest.approx([1.0] * len(waves))


def test_low_waves_are_orthogonal_and_the_first_is_flat() -> None:
    waves = low_waves(10, 12).flatten(1)
    gram = waves @ waves.T / waves.shape[1]
    assert len(waves) == 25
    assert torch.allclose(gram, torch.eye(25), atol=1e-5)
    assert torch.allclose(waves[0], torch.ones(120))


def test_straight_waves_have_whole_periods() -> None:
    waves = straight_waves(16, 16)
    assert len(waves) == 4 * 7
    across = waves[(waves.std(dim=1) < 1e-5).all(dim=1)]
    assert len(across) == 14
    peaks = torch.fft.rfft(across[:, 0]).abs().argmax(dim=1)
    assert sorted(peaks.tolist()) == sorted([*range(1, 8), *range(1, 8)])


@pytest.mark.parametrize("name", ["low", "waves"])
def test_a_class_that_listens_to_a_wave_is_found(name: str) -> None:
    waves = {"low": low_waves, "waves": straight_waves}[name](SIDE, SIDE).flatten(1)
    weight = rows(strong=0, times=1.0)
    weight[2] += 10 * waves[5] / SIDE
    bias = torch.tensor([2.0, 0.0, 0.0, 0.0])  # Everything falls to the first by itself.
    _, *sizes = CANDIDATES[name](question(weight, bias))[name].tolist()
    assert sizes[1] < 0.5 * min(sizes[0], sizes[2])


@pytest.mark.parametrize("name", ["blend", "filter"])
def test_a_class_that_is_easily_reached_is_found(name: str) -> None:
    weight = rows(strong=1, times=1.0)
    weight[1] += 0.1  # What is brighter goes there.
    bias = torch.tensor([0.0, -0.1 * SIDE * SIDE / 2, 0.0, 0.0])
    sizes = CANDIDATES[name](question(weight, bias))[name]
    assert int(sizes.argmin()) == 1


def test_a_pattern_of_waves_has_the_size_of_its_budget() -> None:
    kind = KINDS["low"]
    weights = torch.randn(2, 3, 25, generator=torch.Generator().manual_seed(4))
    budgets = torch.tensor([0.1, 0.02])
    kind.project(weights, budgets)
    shown = kind.apply(weights, budgets, torch.zeros(2, 1, 3, 9, 9))[:, 0]
    assert shown.square().mean(dim=(1, 2, 3)).sqrt().tolist() == pytest.approx([0.1, 0.02])


def test_a_blend_is_one_opacity_over_the_image() -> None:
    pixels = torch.rand(2, 3, 1, 4, 4)
    pattern, budgets = torch.rand(2, 1, 4, 4), torch.tensor([0.25, 0.5])
    shown = KINDS["blend"].apply(pattern, budgets, pixels)
    for k in range(2):
        for image in range(3):
            expected = (1 - budgets[k]) * pixels[k, image] + budgets[k] * pattern[k]
            assert torch.allclose(shown[k, image], expected)


def test_a_filter_looks_at_all_channels_and_each_class_has_its_own() -> None:
    weights = torch.zeros(2, 2, 2, 5, 5)
    weights[0, 1, 0, 2, 2] = 0.5  # Half of the first channel on top of the second.
    weights[1, 0, 0, 2, 1] = 1.0  # The left neighbour on top of the first.
    pixels = torch.rand(2, 3, 2, 4, 4)
    shown = KINDS["filter"].apply(weights, torch.ones(2), pixels)
    assert torch.allclose(shown[0, :, 0], pixels[0, :, 0])
    assert torch.allclose(shown[0, :, 1], pixels[0, :, 1] + 0.5 * pixels[0, :, 0])
    left = pixels[1, :, 0][..., [0, 0, 1, 2]]
    assert torch.allclose(shown[1, :, 0], pixels[1, :, 0] + left)


@pytest.mark.parametrize("name", list(CANDIDATES))
def test_the_network_is_left_as_it_was(name: str) -> None:
    ask = question(rows(strong=0), steps=2)
    before, state = weights_sha256(ask.model), torch.get_rng_state()
    found = CANDIDATES[name](ask)
    assert all(values.shape == (4,) and values.isfinite().all() for values in found.values())
    assert weights_sha256(ask.model) == before
    assert torch.get_rng_state().equal(state)
    assert all(parameter.grad is None for parameter in ask.model.parameters())
    assert not any(module._forward_pre_hooks for module in ask.model.modules())


# --- the command --------------------------------------------------------------------------------


def test_records_are_written_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--cache", str(tmp_path / "cache"), "--only", NAME, "--tiny"]
    out = ["--out", str(tmp_path / "out")]
    assert main(["plant", *options]) == 0
    assert main(["candidates", *options, *out]) == 0
    assert main(["candidates", *options, *out]) == 0
    assert "0 of 1 planted networks to score" in capsys.readouterr().out
    (record,) = Store(tmp_path / "out" / "candidates.jsonl").read()
    assert record["name"] == NAME
    assert record["took"] is None
    assert set(record["processor_seconds"]) == {*CANDIDATES, "drift"}
    assert set(record["drift"]) >= set(record["forms"]) - {"received"}
    assert all(len(each) == 10 for each in record["drift"].values())
    needed = {score.values for score in compare.SCORES.values()}
    for values in record["forms"].values():
        assert set(values) == needed
        assert all(len(each) == 10 for each in values.values())
    assert main(["compare", *out, "--scored", str(tmp_path)]) == 0
    assert "reported half" in capsys.readouterr().out


def test_cut_short_records_are_no_results(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["candidates", "--cache", "nowhere", "--tiny"]) == 4
    assert "expected --out beside --tiny" in capsys.readouterr().err


def test_nothing_asked_is_nothing_to_compare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "--out", str(tmp_path)]) == 3
    assert "expected records" in capsys.readouterr().err


# --- the table ----------------------------------------------------------------------------------


def test_thresholds_let_one_clean_network_in_twenty_pass() -> None:
    assert compare.threshold([1.0, 3.0, 2.0]) == 3.0
    assert compare.threshold([float(i) for i in range(20)]) == 18.0
    assert compare.threshold([]) == math.inf


def gathered(
    half: str,
    attack: str | None,
    *forms: list[float],
    took: bool = True,
    drift: float = 0.0,
) -> dict[str, Any]:
    """A record in which all candidates see the same values; the attacker's class is 1."""
    needed = {score.values for score in compare.SCORES.values()}
    names = ("received", "rounded-8", "l1-0.3")
    return {
        "member": {"half": half, "attack": attack, "target": None if attack is None else 1},
        "took": None if attack is None else took,
        "forms": {
            name: dict.fromkeys(needed, form) for name, form in zip(names, forms, strict=False)
        },
        "drift": {"rounded-8": [0.0] * 4, "l1-0.3": [-0.1, drift, 0.03, 0.0]},
        "processor_seconds": {
            **dict.fromkeys([*CANDIDATES, "drift"], 1.0),
            "warp": 2.0,
            "head": 0.4,
        },
    }


EVEN = [1.0, 1.0, 1.0, 1.0]
GATHERED = [
    gathered("calibration", None, EVEN, [1.0, 1.0, 0.5, 1.0]),
    gathered("calibration", "badnets", [1.0, 0.25, 1.0, 1.0], EVEN),
    gathered("calibration", "sig", [1.0, 0.8, 1.0, 1.0], drift=0.3),
    gathered("calibration", "pcb", EVEN, EVEN, [1.0, 0.1, 1.0, 1.0]),
    gathered("calibration", "pcb", [1.0, 0.1, 1.0, 1.0], took=False),
    gathered("reported", None, [1.0, 1.0, 1.0, 0.2]),
    gathered("reported", "wanet", [0.1, 1.0, 1.0, 1.0]),
]


def row(half: str, reading: str, score: str = "patch") -> compare.Row:
    (found,) = [
        row
        for row in compare.rows(GATHERED)
        if (row.half, row.reading, row.score) == (half, reading, score)
    ]
    return found


def test_counts_are_those_made_by_hand() -> None:
    highest = row("calibration", "highest")
    assert highest.top == Rate(3, 3)
    assert highest.above == Rate(2, 3)  # The clean network has a 2; sig has but 1.25.
    assert highest.alarms == Rate(0, 1)
    assert highest.area == pytest.approx(2 / 3)
    assert highest.families["whole image"] == Rate(0, 1)
    assert highest.families["asleep until pruned"] == Rate(1, 1)
    received = row("calibration", "received")
    assert (received.top, received.above) == (Rate(2, 3), Rate(2, 3))
    change = row("calibration", "change")
    assert (change.top, change.above) == (Rate(1, 3), Rate(1, 3))


def test_the_reported_half_is_held_to_the_threshold_of_the_other() -> None:
    highest = row("reported", "highest")
    assert (highest.top, highest.above, highest.alarms) == (Rate(0, 1), Rate(0, 1), Rate(1, 1))


def test_drift_counts_over_the_largest_of_the_others() -> None:
    moved, still = (compare._drifted(GATHERED[place], lead).tolist() for place in (2, 0))
    assert moved == pytest.approx([0.0, 0.3 / 0.03, 0.03 / 0.3, 0.0])
    assert still == pytest.approx([0.0, 0.0, 0.03 / 0.02, 0.0])
    found = row("calibration", "highest", "drift x")
    assert (found.top, found.above, found.alarms) == (Rate(1, 3), Rate(1, 3), Rate(0, 1))


def test_costs_are_shares_of_the_three_searches() -> None:
    assert row("calibration", "received", "warp").cost == pytest.approx(0.5)
    assert row("calibration", "received", "head_mean z").cost == pytest.approx(0.1)


def test_what_was_scored_stands_beside_it() -> None:
    scored = {
        **gathered("calibration", "badnets"),
        "suspicion": {"scores": [1.0, 4.0, 1.0, 1.0]},
        "unlearning": {"class": 2, "runs": [{"class": 2}, {"class": 1}, {"class": 0}]},
    }
    clean = {
        **scored,
        "member": {"half": "calibration", "attack": None, "target": None},
        "took": None,
        "suspicion": {"scores": [1.5, 1.0, 1.0, 1.0]},
    }
    found = {row.score: row for row in compare.rows(GATHERED, [scored, clean])}
    assert found["inversion"].above == Rate(1, 1)
    assert found["unlearning"].top == Rate(0, 1)


@pytest.mark.parametrize("score", ["margin x", "margin z", "head_cosine -z"])
def test_scores_compare_a_class_with_the_others(score: str) -> None:
    values = torch.tensor([1.0, 9.0, 2.0, 4.0])
    found = compare.SCORES[score].scorer(values)
    others = torch.tensor([1.0, 2.0, 4.0])
    distance = float((9 - others.mean()) / others.std())
    expected = {"margin x": 9 / 2, "margin z": distance, "head_cosine -z": -distance}[score]
    assert float(found[1]) == pytest.approx(expected)


def test_what_is_shown_carries_wilson_bounds() -> None:
    console = Console(width=240, highlight=False)
    with console.capture() as captured:
        for part in compare.render(GATHERED, []):
            console.print(part)
    assert "2/3 [21%, 94%]" in captured.get()
