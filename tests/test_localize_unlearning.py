# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Unlearning goes down to chance, leaves the model alone, and reads logits as they are stored."""

from functools import partial
from typing import Any

import pytest
import torch
from factories import fingerprint, row_classifier, row_images, row_network

from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Clean
from lmr_guard.errors import ConfigError
from lmr_guard.localize.unlearning import UnlearningSettings, fallback, named_by, unlearn
from lmr_guard.measure import predict

SMALL = UnlearningSettings(learning_rates=(0.03,), seeds=2, batch=20, max_steps=200, stop=1.2)
STILL = UnlearningSettings(learning_rates=(0.03,), batch=20, max_steps=1, stop=0.0)


@pytest.fixture(scope="module")
def model() -> Classifier:
    return row_classifier()


def test_the_right_class_of_a_backdoored_network(
    badnets_network: Classifier, digits: Clean
) -> None:
    logits, _, reached = unlearn(
        badnets_network, digits.repair, UnlearningSettings(), lr=0.01, frozen_bn=False, seed=0
    )
    assert reached
    assert named_by(logits) == 3


def test_fallen_by_eye() -> None:
    logits = torch.tensor([[9.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 2.0, 0.0]])
    labels = torch.tensor([0, 0, 2])
    found = fallback(logits, labels)
    for c in range(3):
        terms = [float(logits[i].softmax(0)[c]) for i in range(3) if int(labels[i]) != c]
        assert float(found[c]) == pytest.approx(sum(terms) / len(terms))


def test_the_class_is_that_of_the_highest_mean_log_probability() -> None:
    logits = torch.tensor([[9.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 2.0, 0.0]])
    by_eye = [sum(float(row.softmax(0)[c].log()) for row in logits) for c in range(3)]
    assert named_by(logits) == max(range(3), key=by_eye.__getitem__) == 0
    assert int(logits.argmax(1).mode().values) == 1  # which is not the class most predicted


def test_the_model_is_left_alone_and_the_seed_decides() -> None:
    model = row_classifier(partial(row_network, dropout=0.5))
    before = fingerprint(model)
    runs = [
        unlearn(model, row_images(60), SMALL, lr=0.03, frozen_bn=False, seed=s) for s in (1, 1, 2)
    ]
    assert fingerprint(model) == before
    assert torch.equal(runs[0][0], runs[1][0])
    assert not torch.equal(runs[0][0], runs[2][0])


def test_unlearning_goes_down_to_chance(model: Classifier) -> None:
    data = row_images(60)
    assert float((predict(model, data).argmax(1) == data.labels).float().mean()) > 0.95
    logits, steps, reached = unlearn(model, data, SMALL, lr=0.03, frozen_bn=True, seed=0)
    assert reached
    assert 0 < steps < 200
    assert float((logits.argmax(1) == data.labels).float().mean()) < 0.6


@pytest.mark.parametrize("count", [60, 61, 7])
def test_logits_come_in_the_stored_order(model: Classifier, count: int) -> None:
    data = row_images(count)
    logits, steps, reached = unlearn(model, data, STILL, lr=1e-12, frozen_bn=True, seed=0)
    torch.testing.assert_close(logits, predict(model, data))
    assert (steps, reached) == (1, False)


@pytest.mark.parametrize("count", [60, 61])
def test_images_sorted_by_class_and_one_too_many_do_not_upset_batch_norm(
    model: Classifier, count: int
) -> None:
    data = row_images(count)
    data = data.subset(data.labels.argsort(stable=True))
    logits, _, _ = unlearn(model, data, STILL, lr=1e-12, frozen_bn=False, seed=0)
    assert float((logits.argmax(1) == data.labels).float().mean()) > 0.95


@pytest.mark.parametrize(
    "values",
    [
        {"learning_rates": ()},
        {"learning_rates": (0.1, 0.0)},
        {"seeds": 0},
        {"max_steps": 0},
        {"batch": 0},
    ],
)
def test_a_config_that_cannot_work_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="above 0, got"):
        UnlearningSettings(**values)
