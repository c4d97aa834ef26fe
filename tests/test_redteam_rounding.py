# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Bins, gradients near ties, outliers and steps: laws that hiding in rounding rests on."""

import pytest
import reference
import torch
import torch.nn.functional as F
from factories import row_classifier, row_images
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lmr_guard.classifier import Classifier
from lmr_guard.compress.twins import round_weights
from lmr_guard.redteam.rounding import (
    near_ties,
    outliers,
    refine,
    require_float32,
    rounded_layers,
    rounding_bins,
)
from lmr_guard.redteam.training import Schedule

LEVELS = 127

# --- the bins -----------------------------------------------------------------------------------

# A weight in units of the scale: an integer and how far from it, never near a tie.
weight_units = st.tuples(st.integers(-LEVELS, LEVELS), st.floats(-0.49, 0.49)).map(
    lambda pair: max(-float(LEVELS), min(float(LEVELS), sum(pair)))
)
channels = st.lists(weight_units, min_size=1, max_size=6)


@given(
    rows=st.lists(st.tuples(channels, st.floats(1e-3, 10)), min_size=1, max_size=3),
    where=st.floats(0, 1),
)
def test_whatever_lies_in_its_bin_rounds_to_the_same_integer(
    rows: list[tuple[list[float], float]], where: float
) -> None:
    width = max(len(row) for row, _ in rows) + 1
    padded = [[*row, *[0.0] * (width - 1 - len(row)), float(LEVELS)] for row, _ in rows]
    scales = [scale for _, scale in rows]
    table = [[x * s for x in row] for row, s in zip(padded, scales, strict=True)]
    weight = torch.tensor(table, dtype=torch.float64)
    low, high, mean = rounding_bins(weight)
    assert bool((low <= weight + 1e-9).all())
    assert bool((weight <= high + 1e-9).all())
    moved = low + where * (high - low)
    for was, now in zip(weight.tolist(), moved.tolist(), strict=True):
        assert reference.rounded(was, 8) == reference.rounded(now, 8)
    assert mean == pytest.approx(sum(scales) / len(scales))


def test_bins_by_eye() -> None:
    weight = torch.tensor([[127.0, 3.2, -0.4, -127.0], [2.54, 0.05, 0.0, -1.0]])
    low, high, width = rounding_bins(weight)
    # Scales 1 and 0.02; what sets the scale cannot move; 0.05 is 2.5 steps, and halves go to even.
    expected_low = [[127.0, 2.501, -0.499, -127.0], [2.54, 1.501 * 0.02, -0.499 * 0.02, -1.00998]]
    expected_high = [[127.0, 3.499, 0.499, -127.0], [2.54, 2.499 * 0.02, 0.499 * 0.02, -0.99002]]
    torch.testing.assert_close(low, torch.tensor(expected_low))
    torch.testing.assert_close(high, torch.tensor(expected_high))
    assert width == pytest.approx(0.51)


def test_bins_are_taken_along_the_output_channels_of_a_convolution() -> None:
    weight = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    whole = rounding_bins(weight)
    flat = rounding_bins(weight.flatten(1))
    assert whole[0].shape == weight.shape
    torch.testing.assert_close(whole[0].flatten(1), flat[0])
    torch.testing.assert_close(whole[1].flatten(1), flat[1])


def test_a_channel_of_zeros_stays_at_zero() -> None:
    low, high, width = rounding_bins(torch.zeros(1, 3))
    assert bool((low.abs() < 1e-30).all())
    assert bool((high.abs() < 1e-30).all())
    assert width < 1e-30


def test_fewer_bits_give_wider_bins() -> None:
    weight = torch.tensor([[1.0, 0.3, 0.0]])
    assert rounding_bins(weight, 4)[2] == pytest.approx(1 / 7)
    assert rounding_bins(weight, 8)[2] == pytest.approx(1 / 127)


# --- gradients near ties ------------------------------------------------------------------------


@given(
    rows=st.lists(st.lists(weight_units, min_size=4, max_size=4), min_size=1, max_size=3),
    bits=st.integers(2, 8),
)
def test_near_ties_gives_the_rounded_weights(rows: list[list[float]], bits: int) -> None:
    weight = torch.tensor(rows)
    assert torch.equal(near_ties(weight, bits), round_weights(weight, bits))


def test_the_gradient_by_eye() -> None:
    # Scale 1: on the grid, a quarter and nearly half a bin away; what sets the scale is on it.
    weight = torch.tensor([[127.0, 3.0, 3.25, -0.25, 0.4999]], requires_grad=True)
    near_ties(weight).sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(
        weight.grad, torch.tensor([[0.0, 0.0, 0.75, 0.75, 3.0]]), atol=2e-3, rtol=0
    )


def test_the_gradient_is_one_on_average() -> None:
    spread = torch.linspace(-20.5, 20.5, 4101)
    weight = torch.cat([torch.tensor([127.0]), spread])[None].requires_grad_(True)
    near_ties(weight).sum().backward()
    assert weight.grad is not None
    assert float(weight.grad[0, 1:].mean()) == pytest.approx(1, abs=0.01)


def test_a_channel_of_zeros_has_a_gradient_of_zero() -> None:
    weight = torch.zeros(1, 3, requires_grad=True)
    near_ties(weight).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[0.0, 0.0, 0.0]]


# --- outliers and steps -------------------------------------------------------------------------


def weights(model: Classifier) -> list[Tensor]:
    return [layer.weight.detach().clone() for layer in rounded_layers(model)]


@pytest.mark.parametrize("outlier", [1.0, 8.0])
def test_holding_twice_is_holding_once(outlier: float) -> None:
    model = row_classifier()
    before = weights(model)
    hold = outliers(model, outlier, torch.Generator())
    hold(model)
    once = weights(model)
    hold(model)
    assert all(map(torch.equal, once, weights(model)))
    assert all(map(torch.equal, before, once)) == (outlier == 1)


def test_refining_moves_weights_by_widths_of_a_bin_and_nothing_else() -> None:
    model = row_classifier()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    widths = [rounding_bins(weight)[2] for weight in weights(model)]
    old = weights(model)
    steps: list[int] = []
    refine(
        model,
        row_images(30),
        lambda pixels, labels, _index: F.cross_entropy(model(pixels), labels),
        Schedule(epochs=1, lr=0.25, batch=30),
        torch.Generator(),
        after_step=lambda: steps.append(1),
    )
    assert len(steps) == 1
    # The first step of Adam is as long as its learning rate, wherever there is a gradient.
    for was, now, width in zip(old, weights(model), widths, strict=True):
        assert float((now - was).abs().max()) == pytest.approx(0.25 * width, rel=1e-2)
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert changed == {"network.0.weight", "network.4.weight"}
    assert not model.training
    assert all(p.requires_grad for p in model.parameters())


def test_float32_schedules_pass() -> None:
    require_float32(Schedule(), Schedule(epochs=1))
