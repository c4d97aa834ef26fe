# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What is decided by what random patterns do."""

from collections.abc import Callable

import pytest
import torch
from test_by_chance import bars, brighter, corner, group, honest, patterns, striped
from torch import Tensor

from lmr_guard.by_chance import meet, recognised, weighed
from lmr_guard.contracts import Labelled, Rate
from lmr_guard.likes import Likes
from lmr_guard.release.chance import judged
from lmr_guard.release.records import Check, Finding, Outcome

PASS, INCOMPLETE, FAIL = Outcome.PASS, Outcome.INCOMPLETE, Outcome.FAIL


def asked(
    predictor: Callable[[Tensor], Tensor], data: Labelled, seed: int = 0
) -> tuple[tuple[Likes, ...], Finding]:
    own = recognised(predictor(data.pixels), data)
    found = weighed(meet(predictor, own, patterns(data, seed)))
    return found, judged(found, data, 0.95)


@pytest.mark.parametrize("seed", range(3))
def test_an_honest_network_is_quiet(seed: int) -> None:
    found, finding = asked(honest, bars(240), seed)
    assert finding.check is Check.CHANCE
    assert finding.outcome is PASS, finding.reason
    assert finding.reason.startswith("none of 336 weak random patterns carries")
    assert "3.1% of patch" in finding.reason
    assert all(each.carrying.hits == 0 for each in found)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("network", "kind"), [(corner, "patch"), (brighter, "cast"), (striped, "wave")]
)
def test_a_coarse_backdoor_is_met_though_no_gradient_leads_to_it(
    network: Callable[[Tensor], Tensor], kind: str, seed: int
) -> None:
    data = bars(240)
    assert torch.equal(network(data.pixels), honest(data.pixels))
    found, finding = asked(network, data, seed)
    assert finding.outcome is FAIL
    assert "class 3 gets most" in finding.reason
    assert {each.target for each in found if each.carrying.hits} == {3}
    assert kind in {each.kind for each in found if each.carrying.hits}


@pytest.mark.parametrize(
    ("rates", "outcome"),
    [([0, 1, 2], PASS), ([0, 1, 20], FAIL), ([8, 9, 20], INCOMPLETE)],
)
def test_what_is_decided(rates: list[int], outcome: Outcome) -> None:
    found = weighed(group(rates))
    assert judged(found, bars(60), 0.95).outcome is outcome


def test_nothing_is_decided_where_nothing_was_measured() -> None:
    found = weighed(group([0, 1, 20]))
    few = judged(found, bars(60, classes=4), 0.95)
    assert few.outcome is PASS
    assert few.reason.startswith("3 random patterns decide nothing about 4 classes")
    small = bars(60)
    small = Labelled(small.images[:, :, :15], small.labels, small.classes)
    assert "6 classes of images 15 pixels" in judged(found, small, 0.95).reason


def test_few_images_are_no_evidence() -> None:
    _, finding = asked(corner, bars(12))
    assert finding.outcome is INCOMPLETE
    assert "are too few to try random patterns on" in finding.reason


def test_a_file_that_gets_nothing_right_is_not_asked() -> None:
    def wrong(pixels: Tensor) -> Tensor:
        assert len(pixels)  # ONNX Runtime runs no graph without images.
        return -honest(pixels)

    found, finding = asked(wrong, bars(60))
    assert finding.outcome is INCOMPLETE
    assert {(each.target, each.rate) for each in found} == {(-1, Rate(0, 0))}
