# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""A class that other images are near to by nature, and how far that excuses it."""

from typing import Any

import pytest
import torch
from factories import fingerprint
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.contracts import Clean, Labelled
from lmr_guard.localize.nearness import MOST, USUAL, nearness
from lmr_guard.localize.searches import Search

SHAPE = Preprocessing(channels=1, height=1, width=4, mean=(0.0,), std=(1.0,))


class Told(nn.Module):
    """Puts out made-up logits, one row per image, whatever the images show."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: Tensor) -> Tensor:
        return self.logits[: len(x)]


def told(logits: Tensor, labels: Tensor) -> tuple[Classifier, Labelled]:
    count, classes = logits.shape
    images = torch.zeros(count, 1, 1, 4, dtype=torch.uint8)
    data = Labelled(images, labels, tuple("abcdefgh"[:classes]))
    return Classifier(Told(logits), SHAPE, classes).eval(), data


def one_hot_logits(count: int, classes: int, margin: float) -> tuple[Tensor, Tensor]:
    labels = torch.arange(count) % classes
    return margin * nn.functional.one_hot(labels, classes).float(), labels


def test_alike_classes_are_not_near() -> None:
    logits, labels = one_hot_logits(40, 4, 8.0)
    assert nearness(*told(logits, labels)).tolist() == [1.0] * 4


def test_by_hand() -> None:
    """Of class 2 every margin is 5 where those of the others are 8, or 8 and 5."""
    logits, labels = one_hot_logits(40, 4, 8.0)
    logits[labels != 2, 2] += 3.0
    near = nearness(*told(logits, labels)).tolist()
    assert near == pytest.approx([1.0, 1.0, 8 / 5 / USUAL, 1.0])


def test_a_fifth_needs_no_excuse() -> None:
    logits, labels = one_hot_logits(40, 4, 8.0)
    logits[labels != 2, 2] += 1.3
    assert nearness(*told(logits, labels)).tolist() == [1.0] * 4


@pytest.mark.parametrize("closer", [7.0, 7.999])
def test_it_excuses_no_more_than_half(closer: float) -> None:
    logits, labels = one_hot_logits(40, 4, 8.0)
    logits[labels != 2, 2] += closer
    assert float(nearness(*told(logits, labels))[2]) == MOST


def test_what_the_model_gets_wrong_is_not_looked_at() -> None:
    logits, labels = one_hot_logits(40, 4, 8.0)
    logits[:12] = torch.tensor([0.0, 0.0, 99.0, 0.0])
    wrong = labels[:12] != 2
    expected = nearness(*told(logits, labels))
    kept = torch.ones(40, dtype=torch.bool)
    kept[:12] = ~wrong
    assert torch.equal(expected, nearness(*told(logits[kept], labels[kept])))


def test_images_of_one_class_tell_nothing_of_it() -> None:
    logits, labels = one_hot_logits(40, 4, 8.0)
    only = labels == 1
    assert float(nearness(*told(logits[only], labels[only]))[1]) == 1.0


@given(st.floats(0.01, 100.0), st.integers(0, 1000))
def test_the_scale_of_logits_does_not_matter(scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, labels = one_hot_logits(40, 4, 8.0)
    logits = logits + torch.randn(logits.shape, generator=generator)
    plain, scaled = nearness(*told(logits, labels)), nearness(*told(scale * logits, labels))
    assert torch.allclose(plain, scaled, rtol=1e-4)
    assert bool(((plain >= 1) & (plain <= MOST)).all())


def test_a_backdoor_does_not_show_in_it(badnets_network: Classifier, digits: Clean) -> None:
    before = fingerprint(badnets_network)
    near = nearness(badnets_network, digits.repair)
    assert fingerprint(badnets_network) == before
    assert float(near[3]) < 1.1


def test_strangeness_is_divided_by_it(badnets_network: Classifier, digits: Clean) -> None:
    classes = torch.arange(10)
    near = torch.ones(10)
    near[4] = 1.6
    made: dict[str, Any] = {}
    for space, power in (("patch", 1.0), ("warp", 1 / 2)):
        search = Search("it", badnets_network, digits.repair, space, classes, near)  # type: ignore[arg-type]
        sizes = torch.full((10,), 0.8)
        sizes[4] = 0.1
        search.found.append(found(space, sizes))
        made[space] = (float(search.strangeness[4]), 8.0**power / 1.6)
        (record,) = search.records()
        assert record["nearness"] == [1.0] * 4 + [1.6] + [1.0] * 5
        assert record["strangeness"] == pytest.approx(8.0)
    assert all(got == pytest.approx(expected) for got, expected in made.values())


def found(space: str, sizes: Tensor) -> Any:  # noqa: ANN401 - made up
    from lmr_guard.localize.inversion import Found

    return Found(space, torch.arange(10), sizes, (), sizes < 1)  # type: ignore[arg-type]
