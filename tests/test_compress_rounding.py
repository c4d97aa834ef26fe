# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Weights rounded so that layers put out what they did, and what ONNX Runtime makes of them."""

from pathlib import Path

import pytest
import torch
from factories import row_classifier, row_images
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.compress import rounding
from lmr_guard.compress.quantize import quantize, rounded
from lmr_guard.compress.recipes import Int8
from lmr_guard.compress.rounding import crowding, rounded_alike, settled
from lmr_guard.contracts import Labelled
from lmr_guard.errors import ConfigError, StageError
from lmr_guard.onnxfile.export import export_onnx
from lmr_guard.onnxfile.predictor import OnnxPredictor


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def wrap(body: nn.Module) -> Classifier:
    shape = Preprocessing(channels=1, height=6, width=6, mean=(0.0,), std=(1.0,))
    return Classifier(body, shape, 3).eval()


def small() -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return wrap(
            nn.Sequential(
                nn.Conv2d(1, 6, 3, padding=1, bias=False),
                nn.BatchNorm2d(6),
                nn.ReLU(),
                nn.Conv2d(6, 6, 3, groups=3),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(96, 3),
            )
        )


def pictures(count: int = 40) -> Labelled:
    """Smooth ones: neighbours are alike, so that inputs of a layer tell of one another."""
    coarse = torch.rand(count, 1, 3, 3, generator=drawn())
    fine = nn.functional.interpolate(coarse, (6, 6), mode="bilinear")
    return Labelled((fine * 255).byte(), torch.arange(count) % 3, ("a", "b", "c"))


def weighted(model: Classifier) -> list[Tensor]:
    return [m.weight for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


# --- who crowds at the edges of steps ---------------------------------------------------------


def test_weights_at_edges_are_counted_by_eye() -> None:
    head = nn.Linear(6, 1, bias=False)
    with torch.no_grad():
        head.weight[0] = torch.tensor([127.0, 3.0, 3.45, -3.55, 3.39, 0.0]) / 127
    assert crowding(wrap(nn.Sequential(nn.Flatten(), head))) == (2 / 5, 5)


def test_a_network_without_weights_to_round_has_none() -> None:
    assert crowding(wrap(nn.Sequential(nn.BatchNorm2d(1), nn.Flatten()))) == (0.0, 0)
    empty = nn.Linear(6, 1)
    nn.init.zeros_(empty.weight)
    assert crowding(wrap(nn.Sequential(nn.Flatten(), empty))) == (0.0, 0)


@pytest.mark.parametrize("spread", [0.1, 1.0, 30.0])
def test_what_knows_nothing_of_the_grid_does_not_crowd(spread: float) -> None:
    """However many steps the weights are spread over."""
    head = nn.Linear(5000, 4, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.randn(4, 5000, generator=drawn()) * spread).clamp_(-127, 127)
        head.weight[:, 0] = 127.0
    share, count = crowding(wrap(nn.Sequential(nn.Flatten(), head)))
    assert count > 19_000
    assert share <= 0.21


# --- the formula --------------------------------------------------------------------------------


def test_two_inputs_by_eye() -> None:
    """Alike inputs: the second makes up for what the first was rounded by."""
    sums = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 2.0, 2.0], [0.0, 2.0, 2.0]]]).double()
    weights = torch.tensor([[[127.0], [3.4], [5.4]]]).double()
    found = rounding._on_grid(weights, sums.clone(), 127, biased=False)
    # 3.4 -> 3 leaves 0.4, which the third takes on but for the ridge: 5.8 -> 6, not 5.
    assert found is not None
    assert found.flatten().tolist() == [127, 3, 6]


def test_a_bias_takes_what_is_left_and_is_not_rounded() -> None:
    sums = torch.full((1, 2, 2), 100.0).double()
    weights = torch.tensor([[[12.7], [1.0]]]).double()
    weights = torch.cat([weights[:, :1], weights[:, :1] * 0 + 3.44, weights[:, 1:]], dim=1)
    sums = torch.full((1, 3, 3), 100.0).double()
    found = rounding._on_grid(weights, sums, 127, biased=True)
    assert found is not None
    assert found.flatten().tolist()[:2] == pytest.approx([12.7, 3.4])
    assert float(found[0, 2, 0]) == pytest.approx(1.04, abs=2e-3)


@given(
    weights=st.lists(st.floats(-1, 1, width=32), min_size=6, max_size=6),
    seed=st.integers(0, 99),
)
def test_every_weight_is_on_the_grid_that_it_had(weights: list[float], seed: int) -> None:
    before = torch.tensor(weights).double().reshape(1, 3, 2)
    x = torch.rand(20, 3, generator=drawn(seed)).double()
    found = rounding._on_grid(before, (x.T @ x)[None], 127, biased=False)
    assert found is not None
    size = before.abs().amax(dim=1)
    assert torch.allclose(found.abs().amax(dim=1), size)
    steps = found * 127 / size[:, None].clamp_min(1e-300)
    assert torch.allclose(steps, steps.round(), atol=1e-6)


def test_inputs_that_tell_nothing_of_one_another_go_to_the_nearest() -> None:
    before = torch.randn(1, 5, 4, generator=drawn()).double()
    found = rounding._on_grid(before, torch.eye(5).double()[None], 127, biased=False)
    step = before.abs().amax(dim=1, keepdim=True) / 127
    assert found is not None
    assert torch.allclose(found, (before / step).round() * step)


def test_sums_that_cannot_be_solved_say_so() -> None:
    hopeless = torch.full((1, 2, 2), float("nan")).double()
    assert rounding._on_grid(torch.ones(1, 2, 1).double(), hopeless, 127, biased=False) is None


# --- networks -----------------------------------------------------------------------------------


@torch.no_grad()
def test_layers_put_out_more_nearly_what_they_did() -> None:
    model, shown = small(), pictures()
    for bits in (4, 8):
        wanted = model(shown.pixels)
        alike = rounded_alike(model, shown, drawn(), bits=bits)(shown.pixels)
        nearest = rounded(model, bits)(shown.pixels)
        assert (alike - wanted).square().mean() < 0.5 * (nearest - wanted).square().mean()


def test_it_is_left_where_it_is_by_who_rounds_to_the_nearest() -> None:
    alike = rounded_alike(small(), pictures(), drawn())
    for a, b in zip(alike.parameters(), rounded(alike).parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-7)


def test_the_model_is_left_alone_and_the_draw_decides() -> None:
    model = row_classifier()
    before = [value.clone() for value in model.state_dict().values()]
    first, again = (rounded_alike(model, row_images(30), drawn(3)) for _ in range(2))
    for own, old in zip(model.state_dict().values(), before, strict=True):
        assert torch.equal(own, old)
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_wide_layers_go_to_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    monkeypatch.setattr(rounding, "_WIDEST", 50)
    alike, nearest = rounded_alike(model, pictures(), drawn()), rounded(model)
    same = [torch.equal(a, b) for a, b in zip(weighted(alike), weighted(nearest), strict=True)]
    assert same == [False, False, True]


def test_what_cannot_be_settled_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    monkeypatch.setattr(rounding, "_WIDEST", 20)
    found = weighted(settled(model, pictures(), drawn()))
    same = [torch.equal(was, now) for was, now in zip(weighted(model), found, strict=True)]
    assert same == [False, False, True]


def test_no_images_and_odd_bits_are_refused() -> None:
    model, shown = small(), pictures()
    with pytest.raises(StageError, match="expected clean images to round weights on, got none"):
        rounded_alike(model, shown.subset(torch.arange(0)), drawn())
    with pytest.raises(ConfigError, match="expected 2 to 16 bits, got 1"):
        rounded_alike(model, shown, drawn(), bits=1)


@torch.no_grad()
def test_what_sleeps_until_all_weights_round_up_stays_asleep() -> None:
    """Each weight is almost half a step below the next: to the nearest all go one way, and add up.

    The head counts ink. Rounded to the nearest it counts too much of it for class 2, whose
    weights hide just above the middle between two steps, so that it wins on every image.
    """
    head = nn.Linear(36, 3, bias=False)
    step = 1.0 / 127
    head.weight.zero_()
    head.weight[:, 0] = 1.0
    head.weight[0, 1:] = 10 * step
    head.weight[2, 1:] = 9.51 * step
    model = wrap(nn.Sequential(nn.Flatten(), head))
    shown = pictures()
    alike = rounded_alike(model, shown, drawn())
    far = shown.pixels.flatten(1)[:, 1:].sum(dim=1) * step
    apart = lambda m: (m(shown.pixels)[:, 0] - m(shown.pixels)[:, 2]) / far  # noqa: E731
    assert torch.allclose(apart(model), torch.full((40,), 0.49), atol=1e-3)
    assert torch.allclose(apart(rounded(model)), torch.zeros(40), atol=1e-3)
    assert bool((apart(alike) > 0.3).all())


def test_the_file_has_the_integers_that_were_chosen(tmp_path: Path) -> None:
    model, shown = small(), pictures()
    alike = rounded_alike(model, shown, drawn())
    export_onnx(alike, tmp_path / "float.onnx")
    quantize(tmp_path / "float.onnx", tmp_path / "int8.onnx", shown, Int8())
    export_onnx(rounded(alike), tmp_path / "again.onnx")
    quantize(tmp_path / "again.onnx", tmp_path / "twice.onnx", shown, Int8())
    first, second = (OnnxPredictor(tmp_path / f"{n}.onnx") for n in ("int8", "twice"))
    assert torch.allclose(first(shown.pixels), second(shown.pixels), atol=1e-6)
    assert not torch.allclose(rounded(model)(shown.pixels), alike(shown.pixels), atol=1e-6)
