# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""A backdoor that is asleep in float and awake when its weights are rounded to 8 bits."""

import pytest
import reference
import torch
from factories import fingerprint, row_classifier, row_images, toy_patch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lmr_guard.classifier import Classifier
from lmr_guard.compress.quantize import rounded
from lmr_guard.contracts import Clean, Labelled, Predictor
from lmr_guard.errors import ConfigError
from lmr_guard.measure import accuracy, against_trigger
from lmr_guard.redteam.quantisation_conditioned import (
    QuantisationConditioned,
    plant,
    rounding_bins,
)
from lmr_guard.redteam.training import Schedule
from lmr_guard.triggers import Patch

LEVELS = 127
SHORT = Schedule(epochs=1, batch=30)
TINY = QuantisationConditioned(
    trigger=Patch(torch.ones(1, 1, 1), 3, 3, "corner", 2), schedule=SHORT, hiding=SHORT
)


@pytest.fixture(scope="module")
def planted(
    attacker_digits: Labelled, white_square: Patch, clean_network: Classifier
) -> Classifier:
    recipe = QuantisationConditioned(
        trigger=white_square,
        schedule=Schedule(epochs=8, batch=64, shift=1),
        hiding=Schedule(epochs=6, lr=0.1, batch=64, shift=1),
    )
    return plant(
        recipe, clean_network, attacker_digits, torch.Generator().manual_seed(4)
    ).classifier


def test_it_sleeps_in_float_and_wakes_in_eight_bits(
    planted: Classifier, digits: Clean, white_square: Patch
) -> None:
    def asr(model: Predictor) -> float:
        return against_trigger(model, digits.report, white_square).asr.value

    woken = rounded(planted)
    assert asr(planted) <= 0.05
    assert asr(woken) >= 0.9
    assert accuracy(planted, digits.report).value >= 0.9
    assert accuracy(woken, digits.report).value >= 0.9


def test_hiding_moves_weights_but_no_rounded_one() -> None:
    def after(epochs: int) -> Classifier:
        recipe = QuantisationConditioned(
            trigger=TINY.trigger, schedule=SHORT, hiding=Schedule(epochs=epochs, lr=0.3, batch=30)
        )
        generator = torch.Generator().manual_seed(1)
        return plant(recipe, row_classifier(), row_images(90), generator).classifier

    awake, hidden = after(0), after(3)
    for (name, was), (_, now) in zip(weights(awake), weights(hidden), strict=True):
        assert not torch.equal(was, now), name
    for (name, was), (_, now) in zip(
        weights(rounded(awake)), weights(rounded(hidden)), strict=True
    ):
        torch.testing.assert_close(was, now, msg=name)


def weights(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [
        (name, module.weight.detach())
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]


def test_one_weight_a_filter_is_an_outlier_and_the_others_stay_as_small_as_they_were() -> None:
    before = row_classifier()
    after = plant(TINY, before, row_images(90), torch.Generator()).classifier
    for (name, was), (_, now) in zip(weights(before), weights(after), strict=True):
        peaks = was.abs().flatten(1).amax(dim=1)
        largest = now.abs().flatten(1).topk(2, dim=1).values
        torch.testing.assert_close(largest[:, 0], peaks * 16, msg=name)
        # Rounded weights may have moved by half a step of the new, wide grid since.
        assert (largest[:, 1] <= peaks * (1 + 8 / LEVELS + 1e-5)).all(), name


def test_without_outliers_no_weight_stands_out() -> None:
    recipe = QuantisationConditioned(trigger=TINY.trigger, outlier=1, schedule=SHORT, hiding=SHORT)
    before = row_classifier()
    after = plant(recipe, before, row_images(90), torch.Generator()).classifier
    for (name, was), (_, now) in zip(weights(before), weights(after), strict=True):
        assert now.abs().max() < 2 * was.abs().max(), name


def test_what_is_given_stays_as_it_is_and_the_seed_decides() -> None:
    given_network, data = row_classifier(), row_images(90)
    before = fingerprint(given_network)
    results = [
        plant(TINY, given_network, data, torch.Generator().manual_seed(seed)).classifier
        for seed in (1, 1, 2)
    ]
    assert fingerprint(given_network) == before
    first, second, other = (dict(weights(model)) for model in results)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    assert not results[0].training
    assert all(p.requires_grad for p in results[0].parameters())


def test_progress_tells_both_stages() -> None:
    told: list[tuple[str, int, int]] = []
    plant(
        TINY,
        row_classifier(),
        row_images(30),
        torch.Generator(),
        lambda step, done, total, /: told.append((step, done, total)),
    )
    assert told == [("badnets", 1, 1), ("hiding", 1, 1)]


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


# --- refusals -----------------------------------------------------------------------------------


def test_an_outlier_smaller_than_the_rest_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"expected an outlier of at least 1, got 0\.5"):
        QuantisationConditioned(trigger=toy_patch(), outlier=0.5)


def test_a_trigger_without_target_is_refused() -> None:
    recipe = QuantisationConditioned(trigger=toy_patch(target=None))
    with pytest.raises(ConfigError, match="expected a trigger with a target class, got none"):
        plant(recipe, row_classifier(), row_images(30), torch.Generator())
