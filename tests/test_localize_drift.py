# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Drift: its formulas by eye, and what it says of real networks."""

import pytest
import torch
from factories import fingerprint, row_classifier, row_images
from hypothesis import given
from hypothesis import strategies as st

from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Clean
from lmr_guard.localize.drift import drift, lead, levelled


def moved(model: Classifier, target: int, by: float) -> Classifier:
    """The same network with a bias towards one class."""
    copy = model.clone()
    with torch.no_grad():
        copy.network[-1].bias[target] += by
    return copy


def test_drift_by_eye() -> None:
    received, data = row_classifier(), row_images(31)
    form = moved(received, 1, 1.5)
    with torch.no_grad():
        before, after = (m(data.pixels).softmax(dim=1) for m in (received, form))
    found = drift(received, form, data)
    for c in range(3):
        terms = [float(after[i, c] - before[i, c]) for i in range(31) if int(data.labels[i]) != c]
        assert float(found[c]) == pytest.approx(sum(terms) / len(terms), abs=1e-6)


def test_lead_by_eye() -> None:
    values = [0.30, 0.02, -0.04, 0.08]
    found = lead(torch.tensor(values))
    for c, value in enumerate(values):
        largest = max(v for k, v in enumerate(values) if k != c)
        assert float(found[c]) == pytest.approx(value / max(largest, 0.02), rel=1e-4)


@given(st.integers(0, 9), st.floats(0.0, 0.02))
def test_rounding_noise_does_not_lead(leading: int, noise: float) -> None:
    drifts = torch.zeros(10)
    drifts[leading] = noise
    assert float(lead(drifts).max()) <= 1.001


def test_the_class_that_takes_images_in_leads() -> None:
    received = row_classifier()
    found = lead(drift(received, moved(received, 2, 3.0), row_images(60)))
    assert int(found.argmax()) == 2
    assert float(found[2]) > 2.5


def test_a_model_does_not_drift_from_itself() -> None:
    model = row_classifier()
    before = fingerprint(model)
    assert drift(model, model, row_images(60)).abs().max() == 0
    assert fingerprint(model) == before


def test_an_honest_network_that_is_rounded_does_not_drift(
    clean_network: Classifier, digits: Clean
) -> None:
    from lmr_guard.compress.quantize import rounded

    found = lead(drift(clean_network, rounded(clean_network), digits.repair))
    assert float(found.max()) < 1


def test_images_of_one_class_say_nothing_of_it() -> None:
    model, data = row_classifier(), row_images(60)
    only = data.subset(data.labels == 1)
    found = drift(model, moved(model, 1, 3.0), only)
    assert float(found[1]) == 0


@given(st.floats(-3, 3), st.integers(0, 2))
def test_what_is_levelled_drifts_no_more(by: float, target: int) -> None:
    received, data = row_classifier(), row_images(31)
    form = moved(received, target, by)
    before = fingerprint(form), fingerprint(received)
    twin = levelled(received, form, data)
    assert torch.allclose(drift(received, twin, data), torch.zeros(3), atol=1e-4)
    assert (fingerprint(form), fingerprint(received)) == before


def test_a_head_without_bias_is_levelled_too() -> None:
    received, data = row_classifier(), row_images(31)
    form = received.clone()
    form.network[-1].bias = None
    twin = levelled(received, form, data)
    assert torch.allclose(drift(received, twin, data), torch.zeros(3), atol=1e-4)
    assert form.network[-1].bias is None
