# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The geometry of a head against the formulas number by number."""

from math import hypot, inf

import pytest
import reference
import torch
from factories import fingerprint, row_classifier, row_images, row_network, seeded
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.contracts import Rate
from lmr_guard.errors import ConfigError, InputError
from lmr_guard.evidence import Patch
from lmr_guard.measure import against_trigger
from lmr_guard.repel.geometry import Geometry, geometry, linear_geometry
from lmr_guard.repel.losses import suspect_margin

# Few values make ties, many make the rest.
VALUES = st.one_of(st.sampled_from([-1.0, 0.0, 1.0]), st.floats(-40, 40, width=32))
# Few values make images that do not move, rows of the head that are equal, and rays that stay.
SMALL = st.integers(-3, 3).map(float)
# With these no crossing lies beyond a hundred shifts: gaps are at most 60, slopes at least 1.
FARTHEST = 100.0


@st.composite
def heads(draw: st.DrawFn, values: st.SearchStrategy[float] = VALUES) -> tuple[list[Tensor], int]:
    """Features and triggered features (N, D), weight (K, D), bias (K,), float64; a suspect."""
    n, d, k = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(2, 4))

    def numbers(*shape: int) -> Tensor:
        count = torch.Size(shape).numel()
        drawn = draw(st.lists(values, min_size=count, max_size=count))
        return torch.tensor(drawn, dtype=torch.float64).reshape(shape)

    return [numbers(n, d), numbers(n, d), numbers(k, d), numbers(k)], draw(st.integers(0, k - 1))


def slack(tensors: list[Tensor]) -> float:
    """What rounding may cost: all are of the size of a product of two of the numbers."""
    return 1e-12 * (1 + max(float(t.abs().max()) for t in tensors)) ** 2


@given(heads())
def test_geometry_number_by_number(given_head: tuple[list[Tensor], int]) -> None:
    tensors, suspect = given_head
    got = linear_geometry(*tensors, suspect)
    features, triggered, weight, bias = (t.tolist() for t in tensors)
    about = {"abs": 10 * slack(tensors)}
    assert len(got) == len(features)
    for i, (before, after) in enumerate(zip(features, triggered, strict=True)):
        clean, moved = (reference.outputs(weight, bias, h) for h in (before, after))
        rival = int(got.rival[i])
        strongest = max(z for j, z in enumerate(clean) if j != suspect)
        assert rival != suspect
        assert clean[rival] == pytest.approx(strongest, **about)
        v = [b - a for a, b in zip(before, after, strict=True)]
        toward = [a - b for a, b in zip(weight[suspect], weight[rival], strict=True)]
        along = sum(a * b for a, b in zip(toward, v, strict=True))
        gain = reference.margin(moved, suspect) - reference.margin(clean, suspect)
        assert got.shift[i].tolist() == v
        assert got.margin[i] == pytest.approx(reference.margin(clean, suspect), **about)
        assert got.gain[i] == pytest.approx(gain, **about)
        assert got.moved[i] == pytest.approx(hypot(*v))
        assert got.along[i] == pytest.approx(along, **about)
        assert got.bound[i] == pytest.approx(hypot(*toward) * hypot(*v))
        if hypot(*toward) * hypot(*v) > 1e-6:
            cosine = along / hypot(*toward) / hypot(*v)
            assert got.cosine[i] == pytest.approx(cosine, abs=1e-4)


@given(heads())
def test_the_gain_is_bounded_and_safe_images_do_not_land(
    given_head: tuple[list[Tensor], int],
) -> None:
    tensors, suspect = given_head
    got, little = linear_geometry(*tensors, suspect), slack(tensors)
    assert (got.gain <= got.along + little).all()
    assert (got.along <= got.bound + little).all()
    assert (got.cosine.abs() <= 1).all()
    safe = got.margin + got.bound <= 0
    assert got.certified == Rate(int(safe.sum()), len(got))
    assert (got.triggered_margin[safe] <= little).all()
    landed = (tensors[1] @ tensors[2].T + tensors[3]).argmax(dim=1) == suspect
    decided = got.triggered_margin.abs() > little
    assert torch.equal(got.lands[decided], landed[decided])


@given(heads(SMALL))
def test_flip_share_is_what_a_search_finds(given_head: tuple[list[Tensor], int]) -> None:
    tensors, suspect = given_head
    got = linear_geometry(*tensors, suspect)
    features, _, weight, bias = (t.tolist() for t in tensors)
    for i, before in enumerate(features):
        expected, top = reference.flip_share(
            (weight, bias), before, got.shift[i].tolist(), suspect, farthest=FARTHEST
        )
        assume(abs(top) > 1e-6)  # a ray that only touches is more than a search can find
        assert got.flip_share[i] == pytest.approx(expected, abs=1e-6)


@given(heads(SMALL))
def test_flip_share_agrees_with_the_ends_of_the_shift(
    given_head: tuple[list[Tensor], int],
) -> None:
    (features, triggered, weight, bias), suspect = given_head
    got = linear_geometry(features, triggered, weight, bias, suspect)
    assert torch.equal(got.flip_share == 0, got.margin >= 0)
    assert (got.flip_share[got.lands] <= 1).all()
    assert (got.flip_share >= 0).all()
    twice = linear_geometry(features, features + 2 * got.shift, weight, bias, suspect)
    torch.testing.assert_close(twice.flip_share, got.flip_share / 2)
    reached = got.flip_share.isfinite()
    touching = features[reached] + got.flip_share[reached, None] * got.shift[reached]
    margins = suspect_margin(touching @ weight.T + bias, suspect)
    assert (margins >= -1e-9).all()
    assert (margins[got.flip_share[reached] > 0] <= 1e-9).all()


def ray(triggered: list[float], bias: list[float], weight: list[list[float]]) -> Geometry:
    """One image at the origin of a plane, moved to ``triggered``; the suspect is class 0."""
    numbers = ([[0.0, 0.0]], [triggered], weight, bias)
    features, after, w, b = (torch.tensor(n, dtype=torch.float64) for n in numbers)
    return linear_geometry(features, after, w, b, 0)


def test_flip_share_by_eye() -> None:
    weight = [[1.0, 0.0], [0.0, 0.0], [2.0, 0.0]]
    # Class 1 leads by 1, class 2 overtakes the suspect where the first coordinate exceeds 3.
    bias = [0.0, 1.0, -3.0]
    assert ray([4.0, 0.0], bias, weight).flip_share.tolist() == [0.25]
    assert ray([4.0, 0.0], bias, weight).lands.tolist() == [False]
    assert ray([2.0, 0.0], bias, weight).lands.tolist() == [True]
    assert ray([0.5, 9.0], bias, weight).flip_share.tolist() == [2.0]
    assert ray([-1.0, 0.0], bias, weight).flip_share.tolist() == [inf]
    # Now class 2 overtakes just where the suspect draws level with class 1, or sooner.
    assert ray([4.0, 0.0], [0.0, 1.0, -1.0], weight).flip_share.tolist() == [0.25]
    assert ray([4.0, 0.0], [0.0, 1.0, -0.5], weight).flip_share.tolist() == [inf]


@pytest.mark.parametrize(("lead", "expected"), [(1.0, inf), (0.0, 0.0), (-1.0, 0.0)])
def test_an_image_that_does_not_move(lead: float, expected: float) -> None:
    got = ray([0.0, 0.0], [0.0, lead], [[1.0, 0.0], [0.0, 1.0]])
    assert got.margin.tolist() == [-lead]
    for value in (got.moved, got.bound, got.along, got.gain, got.cosine):
        assert value.tolist() == [0.0]
    assert got.flip_share.tolist() == [expected]
    assert got.certified == Rate(int(lead >= 0), 1)


def test_equal_rows_of_the_head_have_no_direction() -> None:
    got = ray([3.0, 4.0], [0.0, 1.0], [[1.0, 1.0], [1.0, 1.0]])
    assert (got.moved.item(), got.bound.item(), got.cosine.item()) == (5.0, 0.0, 0.0)
    assert got.flip_share.tolist() == [inf]


# What makes class 1, laid faintly over the others: it carries some of the images there.
BAR = Patch(torch.ones(1, 1, 4), 0, 1, "bar", target=1, opacity=0.6)


def pairs(count: int = 40) -> tuple[Tensor, Tensor]:
    """Clean and triggered row images outside class 1."""
    images = row_images(count, seed=5)
    clean = images.subset(images.labels != 1).pixels
    return clean, BAR(clean)


@pytest.mark.parametrize("head", ["linear", "conv"])
def test_geometry_of_a_network(head: str) -> None:
    classifier = row_classifier(lambda: row_network(head=head))
    clean, triggered = pairs()
    before = fingerprint(classifier.train())
    got = geometry(classifier, clean, triggered, 1)
    assert fingerprint(classifier) == before
    network = classifier.eval().network
    assert isinstance(network, nn.Sequential)
    last = next(m for m in reversed(network) if isinstance(m, nn.Linear | nn.Conv2d))
    with torch.no_grad():
        h, moved = (network[:3]((x - 0.3) / 0.3).flatten(1) for x in (clean, triggered))
        margins = suspect_margin(classifier(triggered), 1)
    assert last.bias is not None
    expected = linear_geometry(h, moved, last.weight.detach().flatten(1), last.bias.detach(), 1)
    torch.testing.assert_close(got.shift, expected.shift, atol=1e-6, rtol=0)
    torch.testing.assert_close(got.flip_share, expected.flip_share, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got.triggered_margin.float(), margins, atol=1e-4, rtol=0)
    assert got.moved.min() > 0


def test_batches_do_not_matter() -> None:
    classifier = row_classifier()
    clean, triggered = pairs()
    whole, parts = (geometry(classifier, clean, triggered, 1, batch) for batch in (256, 5))
    torch.testing.assert_close(whole.shift, parts.shift, atol=1e-6, rtol=0)
    torch.testing.assert_close(whole.margin, parts.margin, atol=1e-5, rtol=0)


def test_what_lands_is_what_measure_counts() -> None:
    classifier, images = row_classifier(), row_images(120, seed=5)
    clean = images.subset(images.labels != 1).pixels
    lands = geometry(classifier, clean, BAR(clean), 1).lands
    assert Rate(int(lands.sum()), len(lands)) == against_trigger(classifier, images, BAR).asr
    assert 0 < lands.sum() < len(lands)


def convolutional(*end: nn.Module) -> Classifier:
    """A classifier of 4x4 images that sees four positions before its end."""
    network = seeded(lambda: nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), *end))
    shape = Preprocessing(channels=1, height=4, width=4, mean=(0.0,), std=(1.0,))
    return Classifier(network, shape, 3)


def test_averaging_may_stand_on_either_side_of_a_convolution() -> None:
    head, pool, flat = seeded(lambda: nn.Conv2d(5, 3, 1)), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    clean, triggered = pairs()
    behind = geometry(convolutional(head, pool, flat), clean, triggered, 1)
    ahead = geometry(convolutional(pool, head, flat), clean, triggered, 1)
    torch.testing.assert_close(behind.shift, ahead.shift, atol=1e-6, rtol=0)
    torch.testing.assert_close(behind.margin, ahead.margin, atol=1e-5, rtol=0)


def test_a_head_that_is_not_the_end_is_refused() -> None:
    clean, triggered = pairs()
    ends = (nn.Conv2d(5, 3, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(InputError, match=r"expected logits that the head itself yields, got some"):
        geometry(convolutional(*ends), clean, triggered, 1)


def test_logits_that_are_no_numbers_are_refused() -> None:
    classifier = row_classifier().clone()
    with torch.no_grad():
        next(classifier.parameters()).fill_(float("nan"))
    with pytest.raises(InputError, match="that the head itself yields, got some nan off"):
        geometry(classifier, *pairs(), 1)


@pytest.mark.parametrize("suspect", [-1, 3])
def test_the_suspect_must_be_a_class(suspect: int) -> None:
    with pytest.raises(ConfigError, match=rf"expected a suspect class in \[0, 3\), got {suspect}"):
        geometry(row_classifier(), *pairs(), suspect)


@pytest.mark.parametrize("count", [0, 3])
def test_every_image_comes_twice(count: int) -> None:
    clean, triggered = pairs()
    with pytest.raises(ConfigError, match=r"one triggered image for each of one or more clean"):
        geometry(row_classifier(), clean[:0], triggered[:count], 1)
