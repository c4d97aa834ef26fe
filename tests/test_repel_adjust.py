# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The suspect's logit at the end of a repair: by how much it is lowered, and what stays."""

from dataclasses import replace

import pytest
import torch
from factories import fingerprint, row_classifier, row_images
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lmr_guard.classifier import Classifier, weights_sha256
from lmr_guard.contracts import Clean
from lmr_guard.measure import accuracy, predict
from lmr_guard.repel import AFTER_PRUNING, PAPER, RepelSettings
from lmr_guard.repel.adjust import lowered

SUSPECT = 1
CLEAN = Clean(row_images(60), row_images(45, 1), row_images(30, 2))


@pytest.fixture(scope="module")
def model() -> Classifier:
    return row_classifier()


def right(model: Classifier) -> int:
    return sum(accuracy(model, part).hits for part in (CLEAN.repair, CLEAN.select))


@given(by=st.floats(0.01, 1.0))
@settings(max_examples=10, deadline=None)
def test_the_suspects_logit_alone_is_lower(by: float) -> None:
    model = row_classifier()
    made, told = lowered(model, SUSPECT, CLEAN, by)
    moved = predict(made, CLEAN.report) - predict(model, CLEAN.report)
    expected = torch.zeros_like(moved)
    expected[:, SUSPECT] = -told
    torch.testing.assert_close(moved, expected, atol=1e-4, rtol=0)
    assert told == by


def test_it_is_halved_until_few_images_are_lost(model: Classifier) -> None:
    state = fingerprint(model)
    margins = predict(model, CLEAN.repair)
    own = margins[CLEAN.repair.labels == SUSPECT]
    far = float((own[:, SUSPECT] - own.topk(2).values[:, 1]).amax()) + 1
    made, told = lowered(model, SUSPECT, CLEAN, far)
    assert told in {far / 2, far / 4, far / 8}
    assert right(made) >= right(model) - 0.005 * 105
    head = made.network[-1]
    assert isinstance(head, nn.Linear)
    with torch.no_grad():  # Twice as much would have cost too many.
        head.bias[SUSPECT] -= told
    assert right(made) < right(model) - 0.005 * 105
    assert fingerprint(model) == state


def test_what_costs_too_much_at_an_eighth_is_not_done(model: Classifier) -> None:
    made, told = lowered(model, SUSPECT, CLEAN, 1e6)
    assert told == 0
    assert weights_sha256(made) == weights_sha256(model)


def test_a_head_without_bias_stays_as_it_was(model: Classifier) -> None:
    bare = model.clone()
    head = bare.network[-1]
    assert isinstance(head, nn.Linear)
    head.bias = None
    made, told = lowered(bare, SUSPECT, CLEAN, 0.5)
    assert (told, weights_sha256(made)) == (0.0, weights_sha256(bare))


def test_fewer_images_fall_to_the_suspect(model: Classifier) -> None:
    worse = model.clone()
    head = worse.network[-1]
    assert isinstance(head, nn.Linear)
    with torch.no_grad():  # Its border lies beyond some images of the others.
        head.bias[SUSPECT] += 5.0
    made, told = lowered(worse, SUSPECT, CLEAN, 5.0)
    assert told == 5.0
    fallen = [
        int((predict(each, CLEAN.report).argmax(1) == SUSPECT).sum()) for each in (worse, made)
    ]
    assert fallen[1] < fallen[0]
    assert right(made) > right(worse)


def test_the_paper_does_not_and_nobody_does_twice() -> None:
    assert (PAPER.adjustment, AFTER_PRUNING.adjustment) == (0, 0)
    assert replace(AFTER_PRUNING, adjustment=RepelSettings().adjustment) == RepelSettings()
