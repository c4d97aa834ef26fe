# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Twins compute what the compressed network computes, and let gradients through."""

from collections.abc import Mapping
from functools import partial

import pytest
import reference
import torch
from factories import row_classifier, row_network
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.compress.groups import Groups, LayerCut
from lmr_guard.compress.quantize import rounded
from lmr_guard.compress.recipes import parse, standard
from lmr_guard.compress.twins import PrunedTwin, RoundedTwin, round_weights, twins
from lmr_guard.contracts import Twin
from lmr_guard.errors import StageError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def state(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters())


def noise(model: Classifier, count: int = 6) -> Tensor:
    return torch.rand(count, *model.example().shape[1:], generator=seeded())


def through(twin: Twin, model: Classifier, seed: int = 0) -> Tensor:
    """What the twin's form of the model computes."""
    changed = twin(state(model), seeded(seed))
    logits: Tensor = functional_call(model, changed, (noise(model),))
    return logits


@given(
    st.sampled_from([(3, 4), (2, 1, 5), (3, 2, 2, 2), (1, 1, 1, 1)]),
    st.integers(2, 16),
    st.integers(0, 500),
    st.booleans(),
)
def test_rounding_channel_by_channel(
    shape: tuple[int, ...], bits: int, seed: int, dead: bool
) -> None:
    # In float64, where the formula and its order of operations cannot differ by an integer.
    weight = torch.randn(shape, generator=seeded(seed), dtype=torch.float64)
    if dead:
        weight[0] = 0
    got = round_weights(weight, bits)
    levels = 2 ** (bits - 1) - 1
    for before, after in zip(weight.flatten(1), got.flatten(1), strict=True):
        step = float(before.abs().max()) / levels or 1.0
        expected = [i * step for i in reference.rounded(before.tolist(), bits)]
        assert after.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-300)
        assert (after - before).abs().max() <= step / 2 * (1 + 1e-9)


def test_rounding_by_eye() -> None:
    weight = torch.tensor([[127.0, 0.5, 1.5, -2.5, -2.6], [0, 0, 0, 0, 0], [2.54, 0.02, 0, 0, 0]])
    expected = torch.tensor([[127.0, 0, 2, -2, -3], [0, 0, 0, 0, 0], [2.54, 0.02, 0, 0, 0]])
    torch.testing.assert_close(round_weights(weight), expected)
    coarse = [[127.0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [2.54, 0, 0, 0, 0]]
    torch.testing.assert_close(round_weights(weight, bits=2), torch.tensor(coarse))


@given(st.integers(0, 200))
def test_what_is_rounded_lies_exactly_on_the_grid(seed: int) -> None:
    weight = torch.randn(4, 50, generator=seeded(seed))
    got = round_weights(weight)
    for before, after in zip(weight, got, strict=True):
        step = before.abs().max() / 127
        assert torch.equal(after, (before / step).round() * step)


def test_gradients_pass_straight_through() -> None:
    weight = torch.randn(3, 2, 2, generator=seeded()).requires_grad_()
    factor = torch.randn(3, 2, 2, generator=seeded(1))
    (round_weights(weight, 3) * factor).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, factor)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_rounded_twin_is_the_rounded_network(clean_network: Classifier, bits: int) -> None:
    twin = RoundedTwin.of(clean_network, bits)
    assert twin.name == f"rounded-{bits}"
    assert len(twin.weights) == sum(
        isinstance(layer, nn.Conv2d | nn.Linear) for layer in clean_network.modules()
    )
    expected = rounded(clean_network, bits)(noise(clean_network))
    assert torch.equal(through(twin, clean_network), expected)
    assert not torch.equal(expected, clean_network(noise(clean_network)))


def test_rounding_follows_the_weights_of_the_moment() -> None:
    model = row_classifier()
    twin = RoundedTwin.of(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.7).add_(0.01)
    assert torch.equal(through(twin, model), rounded(model)(noise(model)))


def test_every_weight_gets_a_gradient_through_a_twin() -> None:
    model = row_classifier(partial(row_network, norm=False))
    for twin in (RoundedTwin.of(model), PrunedTwin(Groups(model), 0.2, 0.4)):
        model.zero_grad(set_to_none=True)
        through(twin, model).square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_weight_that_two_layers_share_is_rounded_once() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    shape = Preprocessing(channels=1, height=2, width=2, mean=(0.0,), std=(1.0,))
    model = Classifier(nn.Sequential(nn.Flatten(), first, nn.ReLU(), second), shape, 4).eval()
    twin = RoundedTwin.of(model)
    assert twin.weights == ("network.1.weight",)
    expected = rounded(model)(noise(model))
    torch.testing.assert_close(through(twin, model), expected)
    assert not torch.equal(expected, model(noise(model)))


def weakest(groups: Groups, parameters: Mapping[str, Tensor], ratio: float) -> list[LayerCut]:
    """By eye: that share of each layer's channels, the smallest sums of absolute weights."""
    found = []
    for group in groups.all:
        filters = parameters[f"{group.layer}.weight"].detach().abs().flatten(1).sum(1)
        order = sorted(range(group.channels), key=lambda j, f=filters: float(f[j]))
        count = min(round(ratio * group.channels), group.channels - 1)
        if count:
            found.append(LayerCut(group.layer, tuple(sorted(order[:count]))))
    return found


@pytest.mark.parametrize("ratio", [0.2, 0.6, 0.999])
@pytest.mark.parametrize("seed", range(4))
def test_the_pruned_twin_is_the_cut_network(
    clean_network: Classifier, ratio: float, seed: int
) -> None:
    groups = Groups(clean_network)
    twin = PrunedTwin(groups, ratio, ratio)
    cuts = weakest(groups, state(clean_network), ratio)
    assert cuts
    small = groups.cut(clean_network, cuts)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (clean_network, small))
    assert after < before
    torch.testing.assert_close(
        through(twin, clean_network, seed), small(noise(clean_network)), rtol=1e-4, atol=1e-4
    )
    masks = groups.masks(cuts)
    got = twin(state(clean_network), seeded(seed))
    assert set(got) == set(masks)
    for name, value in got.items():
        assert torch.equal(value, state(clean_network)[name] * masks[name])


def shares(twin: PrunedTwin, model: Classifier, seed: int) -> list[float]:
    """The share of each group's channels that one draw cuts."""
    changed = twin(state(model), seeded(seed))
    return [
        float((changed[f"{g.layer}.weight"].flatten(1) == 0).all(dim=1).sum()) / g.channels
        if f"{g.layer}.weight" in changed
        else 0.0
        for g in twin.groups.all
    ]


def test_ratios_are_drawn_for_all_layers_or_for_each(clean_network: Classifier) -> None:
    twin = PrunedTwin(Groups(clean_network), 0.25, 0.75)
    assert twin.name == "pruned-0.25-0.75"
    drawn = [shares(twin, clean_network, seed) for seed in range(60)]
    assert all(0.25 - 1e-6 <= share <= 0.75 + 1e-6 for one in drawn for share in one)
    spread = [max(one) - min(one) for one in drawn]
    # One ratio differs over the layers by rounding only: half a channel of 16.
    assert 15 < sum(s <= 1 / 16 for s in spread) < 45
    assert max(spread) > 0.25
    assert min(map(min, drawn)) < 0.35
    assert max(map(max, drawn)) > 0.65
    assert shares(twin, clean_network, 7) == drawn[7]


def test_pruning_follows_the_weights_of_the_moment() -> None:
    model = row_classifier()
    groups = Groups(model)
    twin = PrunedTwin(groups, 0.5, 0.5)
    (name,) = (f"{group.layer}.weight" for group in groups.all)
    gone = (twin(state(model), seeded())[name].flatten(1) == 0).all(1)
    assert int(gone.sum()) == 6
    with torch.no_grad():
        state(model)[name][gone] *= 1000
    now_gone = (twin(state(model), seeded())[name].flatten(1) == 0).all(1)
    assert torch.equal(now_gone, ~gone)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["float32"], []),
        (["float32", "int8"], ["rounded-8"]),
        (["l1-0.3", "l1-0.5"], ["pruned-0.3-0.5"]),
        (["l1-0.4+int8"], ["rounded-8", "pruned-0.4-0.4"]),
    ],
)
def test_twins_of_recipes(labels: list[str], names: list[str]) -> None:
    assert [twin.name for twin in twins(row_classifier(), parse(labels))] == names


def test_twins_of_the_standard_recipes() -> None:
    found = twins(row_classifier(), standard())
    assert [twin.name for twin in found] == ["rounded-8", "pruned-0.2-0.6"]


def test_a_structure_that_the_caller_has_is_not_traced_again() -> None:
    groups = Groups(row_classifier())
    _, pruned = twins(row_classifier(), parse(["int8", "l1-0.5"]), groups)
    assert isinstance(pruned, PrunedTwin)
    assert pruned.groups is groups


def test_what_cannot_be_cut_has_no_pruned_twin() -> None:
    shape = Preprocessing(channels=1, height=2, width=2, mean=(0.0,), std=(1.0,))
    bare = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), shape, 3).eval()
    assert [twin.name for twin in twins(bare, parse(["int8"]))] == ["rounded-8"]
    with pytest.raises(StageError, match="expected layers whose channels can be cut, got none"):
        twins(bare, parse(["l1-0.5"]))
