# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Searches of one form: what is searched on, which of several counts, what is recorded."""

import hypothesis.strategies as st
import pytest
import torch
from factories import fingerprint, row_classifier, row_images
from hypothesis import given
from torch import nn
from torchvision import models

from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.errors import StageError
from lmr_guard.localize import spaces
from lmr_guard.localize.inversion import Found, InversionSettings, Pattern
from lmr_guard.localize.searches import (
    PATCHED,
    Search,
    outstanding,
    reads_patches,
    recognised,
    search_spaces,
)

QUICK = (InversionSettings(steps=6, batch=2),)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def model() -> Classifier:
    return row_classifier().eval()


def made(model: Classifier, space: spaces.Space, *sizes: list[float]) -> Search:
    """A search that came to these sizes, one list a repeat."""
    classes = torch.tensor([0, 2, 4])
    search = Search("form", model, row_images(20), space, classes, torch.ones(5))
    for number, each in enumerate(sizes):
        patterns = tuple(
            Pattern(space, k, size, (torch.full((1,), float(number)),))
            for k, size in zip((0, 2, 4), each, strict=True)
        )
        reached = torch.tensor(each) < 1
        search.found.append(Found(space, classes, torch.tensor(each), patterns, reached))
    return search


def test_each_space_is_searched_once_and_the_model_left_alone(model: Classifier) -> None:
    before = fingerprint(model)
    searches = list(
        search_spaces("twin", model, row_images(60), QUICK, seeded(), near=torch.ones(3))
    )
    assert [search.space for search in searches] == list(spaces.SPACES)
    assert all(search.form == "twin" and len(search.found) == 1 for search in searches)
    assert fingerprint(model) == before


def test_nothing_is_searched_before_it_is_asked_for(model: Classifier) -> None:
    generator = seeded()
    state = generator.get_state()
    lazy = search_spaces("twin", model, row_images(60), QUICK, generator, near=torch.ones(3))
    assert torch.equal(generator.get_state(), state)
    next(lazy)
    assert not torch.equal(generator.get_state(), state)


def test_the_last_search_counts(model: Classifier) -> None:
    search = made(model, "patch", [0.2, 0.05, 0.2], [0.2, 0.2, 0.1])
    assert search.leading == 4
    assert search.score == pytest.approx(2.0)
    assert search.strangeness.tolist() == pytest.approx([0.75, 0.75, 2.0])


def test_what_the_next_class_shows_too_is_taken_off() -> None:
    found = outstanding(torch.tensor([3.0, 1.7, 1.95, 0.5]))
    # By eye: 3 over 1.95 / 1.3, which is less than 1.7; the next two over 1.95 and 1.7, which are
    # less than 3 / 1.3; the last over 1.95.
    assert found.tolist() == pytest.approx([2.0, 1.7 / 1.95, 1.95 / 1.7, 0.5 / 1.95])
    assert outstanding(torch.tensor([3.0, 1.2])).tolist() == pytest.approx([3.0, 0.6])


def test_one_other_class_is_no_excuse_where_the_next_is_ordinary() -> None:
    # As two backdoors show in one search, and three.
    assert outstanding(torch.tensor([3.0, 2.8, 1.0, 1.0])).tolist()[:2] == pytest.approx([3.0, 2.8])
    three = outstanding(torch.tensor([3.0, 2.8, 2.6, 1.0, 1.0])).tolist()[:3]
    assert three == pytest.approx([1.5, 1.4, 1.3])


@pytest.mark.parametrize(
    ("layer", "told"),
    [
        (nn.Conv2d(1, 4, 2, stride=2), True),
        (nn.Conv2d(1, 4, (2, 4), stride=(2, 4)), True),
        (nn.Conv2d(1, 4, 1), False),
        (nn.Conv2d(1, 4, 3, stride=2), False),
        (nn.Conv2d(4, 4, 2, stride=2), False),
    ],
)
def test_of_a_network_that_reads_patches_less_counts(
    model: Classifier, layer: nn.Module, *, told: bool
) -> None:
    other = model.clone()
    other.network.append(layer)  # It need not run to be seen.
    assert reads_patches(other) is told
    search = made(other, "patch", [0.2, 0.05, 0.2])
    assert search.score == pytest.approx(4.0 / (PATCHED if told else 1.0))


def test_transformers_read_patches_and_residual_networks_do_not() -> None:
    shape = Preprocessing(channels=3, height=224, width=224)
    for network in (models.vit_b_32, models.convnext_tiny):
        assert reads_patches(Classifier(network(), shape, 1000))
    assert not reads_patches(Classifier(models.resnet18(), shape, 1000))


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=20))
def test_what_stands_out_is_strange_and_keeps_its_place(strange: list[float]) -> None:
    before = torch.tensor(strange)
    after = outstanding(before)
    assert bool((after <= before).all())
    assert bool((after >= before / 2 - 1e-6).all())
    assert float(after[before.argmax()]) == float(after.max())


def test_what_wakes_is_told_from_what_is_strange_in_both_forms(model: Classifier) -> None:
    asleep = made(model, "patch", [0.1, 0.2, 0.2])
    assert asleep.strangeness.tolist() == pytest.approx([2.0, 0.75, 0.75])
    for sizes, woken in (
        ([0.1, 0.2, 0.2], [1.0, 0.75, 0.75]),
        ([0.05, 0.2, 0.1], [1.5, 0.375, 1.25]),
        ([0.1, 0.1, 0.04], [0.35, 0.7, 2.5]),
    ):
        awake = made(model, "patch", sizes)
        assert awake.woken(asleep).tolist() == pytest.approx(woken)


def test_a_class_that_was_not_searched_asleep_counts_as_ordinary(model: Classifier) -> None:
    asleep = made(model, "patch", [0.1, 0.2, 0.2])
    awake = made(model, "patch", [0.2, 0.05, 0.2])
    awake.classes = torch.tensor([0, 1, 4])
    assert awake.woken(asleep).tolist() == pytest.approx([0.3125, 4.0, 0.625])


def test_a_search_that_is_made_again_keeps_its_classes(model: Classifier) -> None:
    (search, *_) = search_spaces("twin", model, row_images(60), QUICK, seeded(), near=torch.ones(3))
    search.add(QUICK, seeded(1))
    first, second = search.found
    assert torch.equal(first.classes, second.classes)
    patterns = (each.patterns[0].parameters[0] for each in search.found)
    assert not torch.equal(*patterns)
    assert [record["repeat"] for record in search.records()] == [0, 1]


def test_of_a_warp_the_square_root_counts(model: Classifier) -> None:
    assert made(model, "warp", [0.8, 0.8, 0.2]).score == pytest.approx(2.0)


def test_the_pattern_is_that_of_the_last_search(model: Classifier) -> None:
    pattern = made(model, "patch", [0.2, 0.1, 0.2], [0.2, 0.2, 0.1]).pattern(4)
    assert pattern.target == 4
    assert pattern.parameters[0].tolist() == [1.0]


def test_a_record_a_search(model: Classifier) -> None:
    records = list(made(model, "patch", [0.2, 0.1, 0.2], [0.2, 0.2, 0.1]).records())
    assert [(r["repeat"], r["class"], r["strangeness"]) for r in records] == [
        (0, 2, 2.0),
        (1, 4, 2.0),
    ]
    assert records[0]["classes"] == [0, 2, 4]
    assert records[0]["sizes"] == pytest.approx([0.2, 0.1, 0.2])


def test_only_images_that_the_model_gets_right_are_searched_on(model: Classifier) -> None:
    data = row_images(60)
    wrong = data.labels.clone()
    wrong[:20] = (wrong[:20] + 1) % 3
    spoilt = type(data)(data.images, wrong, data.classes)
    kept = recognised(model, spoilt)
    logits = model(kept.pixels)
    assert 0 < len(kept) < len(spoilt)
    assert torch.equal(logits.argmax(dim=1), kept.labels)


def test_where_only_one_class_is_right_all_images_are_searched_on(model: Classifier) -> None:
    data = row_images(60)
    constant = type(data)(data.images, torch.full_like(data.labels, 1), data.classes)
    assert recognised(model, constant) is constant
    with pytest.raises(StageError, match="images of two classes or more"):
        list(search_spaces("twin", model, constant, QUICK, seeded(), near=torch.ones(3)))
