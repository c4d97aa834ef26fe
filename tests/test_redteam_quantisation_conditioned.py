# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""A backdoor that is asleep in float and awake when its weights are rounded to 8 bits."""

import torch
from factories import row_classifier, row_images
from torch import Tensor, nn

from lmr_guard.classifier import Classifier
from lmr_guard.compress.quantize import rounded
from lmr_guard.contracts import Clean, Predictor
from lmr_guard.evidence import Patch
from lmr_guard.measure import accuracy, against_trigger
from lmr_guard.redteam.quantisation_conditioned import QuantisationConditioned, plant
from lmr_guard.redteam.training import Schedule

LEVELS = 127
SHORT = Schedule(epochs=1, batch=30)
TINY = QuantisationConditioned(
    trigger=Patch(torch.ones(1, 1, 1), 3, 3, "corner", 2), schedule=SHORT, hiding=SHORT
)


def test_it_sleeps_in_float_and_wakes_in_eight_bits(
    sleeping_network: Classifier, digits: Clean, white_square: Patch
) -> None:
    def asr(model: Predictor) -> float:
        return against_trigger(model, digits.report, white_square).asr.value

    woken = rounded(sleeping_network)
    assert asr(sleeping_network) <= 0.05
    assert asr(woken) >= 0.9
    assert accuracy(sleeping_network, digits.report).value >= 0.9
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
