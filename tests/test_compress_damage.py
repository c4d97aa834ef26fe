# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Damage of cutting: measured right, made convex, shared out so that no other way does less."""

from itertools import pairwise, product
from math import log

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lmr_guard.classifier import Classifier, Preprocessing, weights_sha256
from lmr_guard.compress.damage import Damage, _convex, measured
from lmr_guard.compress.groups import Groups
from lmr_guard.contracts import Labelled

ONE = Preprocessing(channels=1, height=1, width=1, mean=(0.0,), std=(1.0,))


def tiny(*middle: nn.Module) -> Classifier:
    """Four channels, all of them 1 where the pixel is 1; the logits are (0, their weighted sum)."""
    network = nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), *middle, nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([1.0, 1.1, 1.2, 1.3]).view(4, 1, 1, 1))
        network[-1].weight.zero_()
        network[-1].weight[1] = torch.tensor([0.0, 1.0, 2.0, 3.0])
        network[-1].bias.zero_()
    return Classifier(network, ONE, 2).eval()


def images(*values: int) -> Labelled:
    pixels = torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1)
    return Labelled(pixels, torch.zeros(len(values), dtype=torch.long), ("a", "b"))


def kl(uncut: float, cut: float) -> float:
    """By hand: KL of two Bernoulli distributions with these logits."""
    p, q = torch.tensor([uncut, cut]).double().sigmoid().tolist()
    return p * log(p / q) + (1 - p) * log((1 - p) / (1 - q))


def test_damage_is_the_mean_divergence_from_the_uncut_network() -> None:
    model = tiny()
    told = measured(model, Groups(model), images(255, 0), batch_statistics=False)
    # Units 0, 1, 2 go, in that order; at 0 all channels are 0 and nothing is lost.
    whole = 1.1 + 2.4 + 3.9
    points = [0.0, 0.0, kl(whole, whole - 1.1) / 2, kl(whole, whole - 3.5) / 2]
    (curve,) = told.curves
    expected = _convex(list(enumerate(points)))
    assert [x for x, _ in curve] == [x for x, _ in expected] == [0, 1, 2, 3]
    assert [y for _, y in curve] == pytest.approx([y for _, y in expected], abs=1e-6)


@pytest.mark.parametrize("batch_statistics", [False, True])
def test_stale_statistics_count_only_where_they_will_stay(batch_statistics: bool) -> None:
    model, data = tiny(nn.BatchNorm2d(4)), images(*range(1, 67))
    before, asked = weights_sha256(model), list[tuple[int, int]]()
    told = measured(
        model,
        Groups(model),
        data,
        batch_statistics=batch_statistics,
        progress=lambda _step, done, total: asked.append((done, total)),
    )
    ((nothing, cost),) = (curve[0] for curve in told.curves)
    assert (nothing, cost > 0.1) == (0, batch_statistics)
    assert asked == [(1, 1)]
    assert weights_sha256(model) == before
    assert not any(module.training for module in model.modules())


def test_what_is_no_number_is_the_worst_damage() -> None:
    model = tiny()
    with torch.no_grad():
        model.get_parameter("network.2.weight").fill_(float("nan"))
    told = measured(model, Groups(tiny()), images(255, 0), batch_statistics=False)
    assert told.curves == (((0, 1e6), (3, 1e6)),)
    assert told.counts(2) == (2,)


def test_labels_are_not_looked_at() -> None:
    model, data = tiny(), images(255, 9, 77)
    other = Labelled(data.images, 1 - data.labels, data.classes)
    groups = Groups(model)
    ours, theirs = (measured(model, groups, part, batch_statistics=False) for part in (data, other))
    assert ours == theirs


heights = st.lists(st.floats(0, 10), min_size=2, max_size=6)


@given(heights)
def test_curves_are_the_greatest_convex_ones_below_what_rises(values: list[float]) -> None:
    curve = _convex(list(enumerate(values)))
    assert (curve[0][0], curve[-1][0]) == (0, len(values) - 1)
    assert curve[-1][1] == max(values)
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(curve)]
    assert all(late >= early - 1e-9 for early, late in pairwise(slopes))
    at = dict(curve)
    risen = [max(values[: x + 1]) for x in range(len(values))]
    assert all(at[x] == risen[x] for x in at)
    for (x0, y0), (x1, y1) in pairwise(curve):
        for x in range(x0, x1 + 1):
            assert y0 + (y1 - y0) * (x - x0) / (x1 - x0) <= risen[x] + 1e-9


@given(st.lists(heights, min_size=1, max_size=3), st.data())
def test_no_other_way_to_cut_as_much_does_less_damage(
    values: list[list[float]], data: st.DataObject
) -> None:
    curves = tuple(_convex(list(enumerate(row))) for row in values)
    most = sum(len(row) - 1 for row in values)
    channels = data.draw(st.integers(0, most))
    damage = Damage((1,) * len(curves), curves)

    def cost(counts: tuple[int, ...]) -> float:
        return sum(interpolated(curve, n) for curve, n in zip(curves, counts, strict=True))

    chosen = damage.counts(channels)
    assert sum(chosen) == channels
    others = product(*(range(len(row)) for row in values))
    assert cost(chosen) <= min(cost(o) for o in others if sum(o) == channels) + 1e-9


def interpolated(curve: tuple[tuple[int, float], ...], n: int) -> float:
    for (x0, y0), (x1, y1) in pairwise(curve):
        if x0 <= n <= x1:
            return y0 + (y1 - y0) * (n - x0) / (x1 - x0)
    raise AssertionError(n)


def test_a_folded_unit_counts_as_all_of_its_channels() -> None:
    flat = ((0, 0.0), (4, 1.0))
    assert Damage((4, 1), (flat, flat)).counts(5) == (2, 0)
