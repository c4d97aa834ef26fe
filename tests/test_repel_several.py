# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Several suspects are repelled one after the other, each from what the one before left."""

import pytest
import torch
from factories import row_classifier, row_images

from lmr_guard.classifier import Classifier, weights_sha256
from lmr_guard.contracts import Clean, Twin
from lmr_guard.errors import ConfigError
from lmr_guard.repel import RepelSettings, repel, repel_each

SHORT = RepelSettings(phase1_epochs=1, phase2_epochs=1, phase1_minimum=1, learning_rates=(0.01,))
CLEAN = Clean(row_images(61, 1), row_images(30, 2), row_images(30, 3))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def none(_start: Classifier) -> tuple[Twin, ...]:
    return ()


@pytest.fixture(scope="module")
def model() -> Classifier:
    return row_classifier()


def test_each_begins_where_the_one_before_ended(model: Classifier) -> None:
    starts: list[str] = []

    def twins_of(start: Classifier) -> tuple[Twin, ...]:
        starts.append(weights_sha256(start))
        return ()

    before = weights_sha256(model)
    last, record = repel_each(
        model, (1, 2), CLEAN, settings=SHORT, generator=seeded(), twins_of=twins_of
    )
    generator = seeded()
    first, one = repel(model, 1, CLEAN, settings=SHORT, generator=generator)
    second, two = repel(first, 2, CLEAN, settings=SHORT, generator=generator)
    assert starts == [before, weights_sha256(first)]
    assert weights_sha256(last) == weights_sha256(second)
    assert weights_sha256(model) == before
    assert (record.suspects, record.clean_before) == ((1, 2), one.clean_before)
    assert record.further == (two,)
    assert record.clean_at_last == two.clean_after


def test_one_suspect_is_repelled_as_ever(model: Classifier) -> None:
    last, record = repel_each(model, (1,), CLEAN, settings=SHORT, generator=seeded(), twins_of=none)
    alone, one = repel(model, 1, CLEAN, settings=SHORT, generator=seeded())
    assert weights_sha256(last) == weights_sha256(alone)
    assert record == one
    assert record.clean_at_last == one.clean_after


def test_a_suspect_that_is_no_class_is_told(model: Classifier) -> None:
    with pytest.raises(ConfigError, match=r"expected a suspect class in \[0, 3\), got 3"):
        repel_each(model, (1, 3), CLEAN, settings=SHORT, generator=seeded(), twins_of=none)
