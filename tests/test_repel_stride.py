# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The way from received to repaired: points on it, what is asked at them, which one is taken."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from factories import fingerprint, row_classifier, row_images
from torch import Tensor, nn

from lmr_guard.classifier import Classifier, weights_sha256
from lmr_guard.measure import accuracy
from lmr_guard.repel import RepelSettings
from lmr_guard.repel.stride import Probe, between, probe, shortest

SUSPECT = 1
SETTINGS = RepelSettings(batch=20, lure_area=0.2, lure_steps=60, strides=(0.2, 0.4, 0.6, 0.8))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def model() -> Classifier:
    return row_classifier()


@pytest.fixture(scope="module")
def asked(model: Classifier) -> Probe:
    images = (row_images(60), row_images(45, 1))
    return probe(model, images, SUSPECT, SETTINGS, twins=(), generator=seeded())


def biased(model: Classifier, by: float) -> Classifier:
    """The suspect class is so many logits farther from every image."""
    other = model.clone()
    head = other.network[-1]
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.bias[SUSPECT] -= by
    return other


def test_between_is_a_straight_line(model: Classifier) -> None:
    end = biased(model, 8.0)
    for share in (0.0, 0.25, 1.0):
        found = between(model, end, share).network[-1].bias[SUSPECT]
        assert float(found.detach()) == pytest.approx(
            float(model.network[-1].bias[SUSPECT].detach()) - 8 * share, abs=1e-5
        )
    assert weights_sha256(between(model, end, 1.0)) == weights_sha256(end)


def test_lures_of_the_probe_pull(model: Classifier, asked: Probe) -> None:
    (patches, warps), margins = asked.pulls(model).tolist()
    assert patches[0] > 0.2
    assert len(warps) == len(margins[0]) == 1
    shares, farther = asked.pulls(biased(model, 100.0)).tolist()
    assert shares == [[0.0], [0.0]]
    for before, after in zip(margins, farther, strict=True):
        assert after[0] == pytest.approx(before[0] - 100, abs=1e-3)


def test_margins_by_eye(model: Classifier, asked: Probe) -> None:
    outside = asked.images.pixels[asked.images.labels != SUSPECT]
    kinds: list[list[float]] = [[], []]
    for number, lured in enumerate(asked.lures.each(outside)):
        for logits in model(lured).tolist():
            own = logits.pop(SUSPECT)
            kinds[number >= asked.lures.patches].append(own - max(logits))
    told = asked.pulls(model)[1, :, 0].tolist()
    assert told == pytest.approx([sum(kind) / len(kind) for kind in kinds], abs=1e-4)


class Biased:
    """A form in which every image is so many logits nearer to the suspect class."""

    name = "biased"

    def __init__(self, by: float) -> None:
        self.by = by

    def __call__(
        self, parameters: Mapping[str, Tensor], generator: torch.Generator, /
    ) -> dict[str, Tensor]:
        del generator
        bias = parameters["network.4.bias"].clone()
        bias[SUSPECT] += self.by
        return {"network.4.bias": bias}


def test_a_twin_is_asked_where_more_is_pulled_than_in_the_model(model: Classifier) -> None:
    images = (row_images(60), row_images(45, 1))
    state = fingerprint(model)
    forms = (Biased(0.0), Biased(100.0))
    asked = probe(model, images, SUSPECT, SETTINGS, twins=forms, generator=seeded())
    assert asked.twins == forms[1:]
    assert asked.pulls(model)[0, :, 1].tolist() == [1.0, 1.0]
    assert fingerprint(model) == state


@pytest.mark.parametrize("by", [6.0, 20.0])
def test_the_nearest_point_where_lures_have_lost_hits_and_margin(
    model: Classifier, asked: Probe, by: float
) -> None:
    end, select = biased(model, by), row_images(30, 2)
    points, suppresses = shortest(model, end, select, SETTINGS, asked)
    start, stays = asked.pulls(model)[:, :, 0], asked.pulls(end)[:, :, 0]
    kind = int(start[0].argmax())
    enough = (stays + 0.1 * (start - stays))[:, kind].tolist()

    def is_gone(share: float) -> bool:
        hits, margin = asked.pulls(between(model, end, share))[:, kind, 0].tolist()
        return hits <= max(0.05, enough[0]) and margin <= enough[1]

    nearest = next((share for share in SETTINGS.strides if is_gone(share)), 1.0)
    taken = points[-1]
    assert nearest in {point.share for point in points}
    at = {share: between(model, end, share) for share in (nearest, min(1.0, 1.5 * nearest))}
    held = float(asked.pulls(at[nearest])[0, kind, 0]) > 0.1
    free = accuracy(at[max(at)], select).hits >= accuracy(at[nearest], select).hits
    if not (held or free):
        assert taken.share == nearest
    else:
        farther = round(1.5 * nearest, 4)
        assert taken.share in {min(1.0, farther), farther}
    assert taken.clean == accuracy(taken.model, select)
    assert suppresses
    for point in points:  # By eye.
        pulls = asked.pulls(between(model, end, point.share))[0, kind, 0]
        assert point.pull == pytest.approx(float(pulls))


def test_a_trigger_that_works_where_lures_carry_off_nothing_is_followed_farther(
    model: Classifier, asked: Probe
) -> None:
    end = biased(model, 200.0)
    points, _ = shortest(model, end, row_images(30, 2), SETTINGS, asked)
    assert {point.pull for point in points} == {0.0}
    # Nine tenths of the margin, of which the whole way takes its share evenly.
    assert points[-1].share == 1.0


def test_a_way_that_takes_no_pull_does_not_suppress(model: Classifier, asked: Probe) -> None:
    points, suppresses = shortest(model, model, row_images(30, 2), SETTINGS, asked)
    assert points[-1].pull > 0.2
    assert not suppresses


@pytest.mark.parametrize(("by", "share"), [(2.0, 1.5), (4.8, 1.0), (20.0, 1.0)])
def test_beyond_the_end_where_that_takes_more_pull_than_clean_accuracy(
    model: Classifier, asked: Probe, by: float, share: float
) -> None:
    settings, end = replace(SETTINGS, strides=(0.001, 0.002)), biased(model, by)
    points, _ = shortest(model, end, row_images(30, 2), settings, asked)
    worth = {point.share: point.clean.value - point.pull for point in points}
    assert (worth[1.5] > worth[1.0]) == (share == 1.5)
    assert points[-1].share == share
    assert points[-1].worth == worth[share]


def test_not_beyond_the_end_where_little_is_left_and_clean_images_are_lost(
    model: Classifier, asked: Probe
) -> None:
    """Where few images are carried off at the end, each of them is not worth a clean one."""
    drawn, settings = row_images(200, 2), replace(SETTINGS, strides=(0.001, 0.002))
    of_it = (drawn.labels == SUSPECT).nonzero().flatten()
    select = drawn.subset(torch.cat([(drawn.labels != SUSPECT).nonzero().flatten(), of_it[:3]]))
    end = biased(model, 5.25)
    kind = int(asked.pulls(model)[0, :, 0].argmax())
    at = {share: between(model, end, share) for share in (1.0, 1.5)}
    pull = {share: float(asked.pulls(there)[0, kind, 0]) for share, there in at.items()}
    clean = {share: accuracy(there, select) for share, there in at.items()}
    assert 0.05 < pull[1.0] < 0.1
    assert clean[1.5].hits < clean[1.0].hits
    assert clean[1.5].value - pull[1.5] > clean[1.0].value - pull[1.0]
    points, _ = shortest(model, end, select, settings, asked)
    assert points[-1].share == 1.0


def test_without_a_probe_all_of_the_way_is_gone(model: Classifier) -> None:
    end = biased(model, 8.0)
    (taken,), suppresses = shortest(model, end, row_images(30, 2), SETTINGS, None)
    assert (taken.share, taken.pull, suppresses) == (1.0, 0.0, True)
    assert weights_sha256(taken.model) == weights_sha256(end)
