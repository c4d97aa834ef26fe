# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The records: what they refuse, and the laws of ``Rate``."""

from dataclasses import FrozenInstanceError
from math import isclose, sqrt
from statistics import NormalDist

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmr_guard.contracts import Labelled, Rate, Trigger, silent
from lmr_guard.evidence import Patch

CONFIDENCES = st.floats(0.5, 0.999)


@st.composite
def rates(draw: st.DrawFn, least: int = 1) -> Rate:
    trials = draw(st.integers(least, 10_000))
    return Rate(draw(st.integers(0, trials)), trials)


@given(rates(least=0), CONFIDENCES)
def test_the_bounds_bracket_the_estimate(rate: Rate, confidence: float) -> None:
    assert 0 <= rate.lower(confidence) <= rate.value <= rate.upper(confidence) <= 1


@given(rates(), CONFIDENCES)
def test_the_bounds_solve_wilsons_equation(rate: Rate, confidence: float) -> None:
    """At a bound b the estimate lies z standard errors of b away."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    for bound in (rate.lower(confidence), rate.upper(confidence)):
        reach = z * sqrt(bound * (1 - bound) / rate.trials)
        assert isclose(abs(rate.value - bound), reach, rel_tol=1e-6, abs_tol=1e-7)


@given(rates(), CONFIDENCES)
def test_hits_and_misses_are_mirror_images(rate: Rate, confidence: float) -> None:
    misses = Rate(rate.trials - rate.hits, rate.trials)
    assert isclose(rate.upper(confidence), 1 - misses.lower(confidence), abs_tol=1e-12)


@given(rates(), st.integers(2, 20))
def test_more_trials_at_the_same_share_narrow_the_bounds(rate: Rate, times: int) -> None:
    more = Rate(rate.hits * times, rate.trials * times)
    assert more.upper() - more.lower() < rate.upper() - rate.lower()
    assert rate.lower() <= more.lower() + 1e-12
    assert more.upper() <= rate.upper() + 1e-12


@given(rates())
def test_one_more_hit_never_lowers_a_bound(rate: Rate) -> None:
    more = Rate(min(rate.hits + 1, rate.trials), rate.trials)
    assert more.lower() >= rate.lower() - 1e-12
    assert more.upper() >= rate.upper() - 1e-12


@given(rates(), CONFIDENCES)
def test_more_confidence_widens_the_bounds(rate: Rate, confidence: float) -> None:
    assert rate.lower(0.9999) <= rate.lower(confidence) + 1e-12
    assert rate.upper(0.9999) >= rate.upper(confidence) - 1e-12


@given(rates(least=0), rates(least=0))
def test_pooling_adds_counts(first: Rate, second: Rate) -> None:
    pooled = first + second
    assert pooled == second + first
    assert pooled.hits == first.hits + second.hits
    assert pooled.trials == first.trials + second.trials
    estimates = [rate.value for rate in (first, second) if rate.trials]
    if estimates:
        assert min(estimates) - 1e-12 <= pooled.value <= max(estimates) + 1e-12


def test_nothing_tried_says_nothing() -> None:
    nothing = Rate(0, 0)
    assert (nothing.lower(), nothing.value, nothing.upper()) == (0.0, 0.0, 1.0)
    assert str(nothing) == "0/0"


def test_a_rate_reads_as_counts_and_per_cent() -> None:
    assert str(Rate(3, 8)) == "3/8 (37.5%)"


@pytest.mark.parametrize(("hits", "trials"), [(-1, 3), (4, 3), (1, 0), (0, -1)])
def test_impossible_counts_are_refused(hits: int, trials: int) -> None:
    with pytest.raises(ValueError, match=f"0 <= hits <= trials, got {hits} of {trials}"):
        Rate(hits, trials)


def test_records_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError, match="hits"):
        Rate(1, 2).hits = 2  # type: ignore[misc]


def labelled(n: int = 5) -> Labelled:
    images = torch.arange(n * 12, dtype=torch.uint8).view(n, 3, 2, 2)
    return Labelled(images, torch.arange(n) % 3, ("a", "b", "c"))


def test_pixels_are_bytes_over_255() -> None:
    data = Labelled(
        torch.tensor([[[[0, 51], [102, 255]]]], dtype=torch.uint8), torch.tensor([0]), ("a",)
    )
    assert torch.equal(data.pixels, torch.tensor([[[[0.0, 0.2], [0.4, 1.0]]]]))
    assert data.pixels.dtype is torch.float32


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_batches_are_all_images_in_order(size: int) -> None:
    data = labelled()
    batches = list(data.batches(size))
    assert all(len(pixels) == len(labels) <= size for pixels, labels in batches)
    assert torch.equal(torch.cat([pixels for pixels, _ in batches]), data.pixels)
    assert torch.equal(torch.cat([labels for _, labels in batches]), data.labels)


@pytest.mark.parametrize(
    "indices", [torch.tensor([3, 1]), torch.tensor([False, True, False, True, False])]
)
def test_a_subset_takes_positions_or_a_mask(indices: torch.Tensor) -> None:
    data = labelled()
    part = data.subset(indices)
    assert len(part) == 2
    assert torch.equal(part.images, data.images[indices])
    assert torch.equal(part.labels, data.labels[indices])
    assert part.classes == data.classes


def test_a_subset_may_be_empty() -> None:
    assert len(labelled().subset(torch.tensor([], dtype=torch.int64))) == 0


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 3, 4, 4), torch.tensor([0, 1]), "uint8 images"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]), r"got torch.uint8 \(2, 4"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0]), r"labels of shape \(2,\)"),
        (
            torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
            torch.tensor([0, 1], dtype=torch.int32),
            "int64 labels",
        ),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 2]), r"\[0, 2\), got 0 to 2"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([-1, 1]), "got -1 to 1"),
    ],
)
def test_images_and_labels_that_do_not_fit_are_refused(
    images: torch.Tensor, labels: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Labelled(images, labels, ("a", "b"))


@given(rates(least=0))
def test_a_rate_is_read_as_it_was_written_whatever_stands_beside(rate: Rate) -> None:
    assert rate.to_json() == {"hits": rate.hits, "trials": rate.trials}
    assert Rate.from_json(rate.to_json() | {"lower": 0}) == rate


def test_a_patch_is_a_trigger_and_a_rate_is_none() -> None:
    patch = Patch(image=torch.ones(3, 1, 1), x=0, y=0, name="dot", target=1)
    assert isinstance(patch, Trigger)
    assert not isinstance(Rate(0, 1), Trigger)


def test_the_silent_observer_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    silent("step", 1, 2)
    assert capsys.readouterr() == ("", "")
