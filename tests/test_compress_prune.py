# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Channel pruning: a mask computes what the cut network computes, on every kind of coupling."""

import json
from collections.abc import Callable
from functools import partial

import pytest
import timm
import torch
import torch_pruning
from cuttable import (
    NETWORKS,
    UNCOUPLED,
    K,
    classifier,
    generator,
    lopsided,
    noise,
    uniform,
    wrap,
)
from factories import seeded
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models import (
    ShuffleNetV2,
    SwinTransformer,
)

from lmr_guard.classifier import Classifier, Preprocessing, find_head, weights_sha256
from lmr_guard.compress import prune
from lmr_guard.compress.groups import Groups, LayerCut
from lmr_guard.compress.recipes import PruneL1, Shares
from lmr_guard.errors import ConfigError, StageError
from lmr_guard.measure import accuracy


@torch.no_grad()
def masked_logits(model: Classifier, masks: dict[str, Tensor], pixels: Tensor) -> Tensor:
    state = dict(model.named_parameters())
    logits: Tensor = torch.func.functional_call(
        model, {name: state[name] * mask for name, mask in masks.items()}, (pixels,)
    )
    return logits


def assert_close(got: Tensor, expected: Tensor) -> None:
    assert float(expected.std()) > 1e-3, "logits that say nothing prove nothing"
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_masking_equals_cutting(name: str) -> None:
    model = classifier(name)
    plan = uniform(model)
    pruned = prune.apply(plan, model)
    pixels = noise().pixels
    with torch.no_grad():
        got, uncut = pruned(pixels), model(pixels)
    assert_close(got, masked_logits(model, prune.masks(model, plan), pixels))
    assert float((got - uncut).abs().max()) > 1e-3


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - UNCOUPLED))
def test_no_less_goes_than_was_asked_for(name: str) -> None:
    model = classifier(name)
    groups = Groups(model)
    pruned = prune.apply(uniform(model, 0.5), model)
    done = prune.achieved(model, pruned, groups=groups)
    assert groups.skipped == ()
    assert 0.5 <= done.channel_sparsity < 0.6
    # Both sides of most weights go, so about 1 - (1 - 0.5)^2 of them.
    assert 0.6 < done.parameter_sparsity < 0.85
    assert done.bits == 32


@pytest.mark.parametrize("name", sorted(UNCOUPLED))
def test_what_masks_cannot_describe_is_left_whole_and_named(name: str) -> None:
    model = classifier(name)
    groups = Groups(model)
    assert groups.skipped
    assert not {group.layer for group in groups.all} & set(groups.skipped)
    pruned = prune.apply(uniform(model, 0.5), model)
    done = prune.achieved(model, pruned, groups=groups)
    kept = sum(whole.channels for whole in groups.whole)
    assert kept
    share = groups.channels / (groups.channels + kept)
    assert done.channel_sparsity == pytest.approx(0.5 * share)
    assert done.parameter_sparsity < 0.45


def test_achieved_counts_the_networks_by_eye() -> None:
    model = classifier("plain")
    plan = prune.PrunePlan(0.5, "uniform", (LayerCut("network.0", (0, 3)),))
    pruned = prune.apply(plan, model)
    # Gone: 2 filters of 27 weights and a bias, 2 BN pairs, 2 PReLU slopes, 2 columns of 6*9.
    gone = 2 * 28 + 4 + 2 + 2 * 6 * 9
    total = 8 * 28 + 16 + 8 + 6 * 72 + 12 + 6 * K + K
    done = prune.achieved(model, pruned, bits=8)
    assert (done.channel_sparsity, done.bits) == (pytest.approx(2 / 14), 8)
    assert done.parameter_sparsity == pytest.approx(gone / total)
    zeros = sum(
        int((mask == 0).expand_as(model.get_parameter(name)).sum())
        for name, mask in prune.masks(model, plan).items()
    )
    assert zeros == gone


def test_the_smallest_filters_go() -> None:
    model = classifier("plain")
    for cut in uniform(model, 0.4).cuts:
        weight = model.get_parameter(f"{cut.layer}.weight")
        norms = [sum(abs(value) for value in row.flatten().tolist()) for row in weight]
        count = {8: 4, 6: 3}[len(norms)]  # Rounded up from 3.2 and 2.4.
        assert sorted(range(len(norms)), key=lambda i: norms[i])[:count] == sorted(
            cut.channels, key=lambda i: norms[i]
        )


@pytest.mark.parametrize("name", ["resnet", "resnext", "mobilenet"])
def test_ranking_equals_torch_prunings_filter_l1(name: str) -> None:
    model = classifier(name)
    state = dict(model.named_parameters())
    first = torch_pruning.importance.MagnitudeImportance(
        p=1, normalizer=None, group_reduction="first"
    )
    graph = torch_pruning.DependencyGraph().build_dependency(model, (model.example(),))
    for group in Groups(model).all:
        layer = model.get_submodule(group.layer)
        cut = graph.get_pruner_of_module(layer).prune_out_channels
        scores = first(graph.get_pruning_group(layer, cut, list(range(group.channels))))
        order = scores.view(group.fold, -1).mean(0).argsort(stable=True)
        assert Groups(model).rank(state)[group.layer].tolist() == order.tolist()
        break
    else:
        pytest.fail("no group")


def test_a_grouped_convolution_loses_the_same_of_each_group() -> None:
    model = classifier("resnext")
    grouped = [group for group in Groups(model).all if group.fold > 1]
    assert grouped
    assert {group.fold for group in grouped} == {4}
    assert grouped[0].expand([1]) == tuple(1 + i * grouped[0].units for i in range(4))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_classes_are_never_cut(name: str) -> None:
    model = classifier(name)
    head, _ = find_head(model, model.example(), K)
    assert head not in {group.layer for group in Groups(model).all}
    assert f"{head}.bias" not in prune.masks(model, uniform(model, 0.9))


def test_masks_hold_in_train_mode_too() -> None:
    model = classifier("resnet")
    plan = uniform(model)
    pruned = prune.apply(plan, model).train()
    with torch.no_grad():
        got = pruned(noise().pixels)
    assert_close(got, masked_logits(model.train(), prune.masks(model, plan), noise().pixels))


def test_gradients_flow_through_masked_weights_only_where_kept() -> None:
    model = classifier("plain").requires_grad_(True)
    masks = prune.masks(model, uniform(model))
    state = dict(model.named_parameters())
    logits = torch.func.functional_call(
        model, {name: state[name] * mask for name, mask in masks.items()}, (noise().pixels,)
    )
    logits.sum().backward()
    for name, mask in masks.items():
        gradient = state[name].grad
        assert gradient is not None
        assert float((gradient * (1 - mask)).abs().max()) == 0
        assert float(gradient.abs().max()) > 0


def test_groups_follow_new_weights_without_tracing_again() -> None:
    model, other = classifier("resnet"), classifier("resnet", seed=3)
    groups = Groups(model)
    state = dict(other.named_parameters())
    counts = groups.uniform(0.4)
    again = Groups(other)
    assert groups.cuts(state, counts) == again.cuts(state, counts) != uniform(model).cuts
    masks, fresh = groups.masks(groups.cuts(state, counts)), prune.masks(other, uniform(other))
    assert masks.keys() == fresh.keys()
    assert all(torch.equal(masks[name], fresh[name]) for name in masks)


@given(st.floats(0.01, 0.99))
def test_uniform_counts(ratio: float) -> None:
    counts = PLAIN.uniform(ratio)
    for group, count in zip(PLAIN.all, counts, strict=True):
        assert 0 < count < group.units
        assert count >= min(ratio * group.units - 1e-6, group.units - 1)
        assert count - 1 < ratio * group.units


PLAIN = Groups(classifier("plain"))


def test_float_noise_does_not_cut_one_more() -> None:
    # 0.6 * 5 and 0.3 * 10 are whole; 0.7 * 10 comes out above 7 in floats.
    wide = wrap(
        nn.Sequential(nn.Conv2d(3, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, K))
    )
    groups = Groups(wide)
    assert [groups.uniform(n / 10)[0] for n in range(1, 10)] == list(range(1, 10))


def test_a_plan_replays_from_json_on_a_fresh_copy() -> None:
    model = classifier("resnet")
    plan = uniform(model)
    again = prune.from_json(json.loads(json.dumps(prune.to_json(plan))))
    assert again == plan
    first, second = prune.apply(plan, model), prune.apply(again, classifier("resnet"))
    assert weights_sha256(first) == weights_sha256(second)


@given(
    st.builds(
        prune.PrunePlan,
        st.floats(0.01, 0.99),
        st.sampled_from(["calibrated", "damage", "uniform"]),
        st.lists(
            st.builds(LayerCut, st.text(), st.lists(st.integers(0, 99)).map(tuple)), max_size=3
        ).map(tuple),
    )
)
def test_plan_json_round_trip(plan: prune.PrunePlan) -> None:
    assert prune.from_json(json.loads(json.dumps(prune.to_json(plan)))) == plan


@pytest.mark.parametrize(
    "change",
    [
        {"type": "recipe"},
        {"version": 2},
        {"ratio": "0.5"},
        {"shares": "global"},
        {"cuts": None},
        {"cuts": [{"layer": 1, "channels": []}]},
        {"cuts": [{"layer": "a", "channels": [0.5]}]},
    ],
)
def test_foreign_plans_are_refused(change: dict[str, object]) -> None:
    data = prune.to_json(prune.PrunePlan(0.5, "uniform", (LayerCut("a", (1,)),)))
    with pytest.raises(ConfigError, match=r"expected a (prune_plan|cut)"):
        prune.from_json({**data, **change})


def test_a_plan_can_be_read() -> None:
    plan = prune.PrunePlan(0.5, "uniform", (LayerCut("network.0", (1, 4)),))
    assert str(plan) == "L1 pruning, ratio 0.5, uniform shares\nnetwork.0: 2 channels [1, 4]"


@pytest.mark.parametrize(
    ("cuts", "message"),
    [
        ((), "got an empty one"),
        ((LayerCut("network.7.x", (0,)),), "the layer network.7.x, got none"),
        ((LayerCut("network.0", (8,)),), "within the 8 channels of network.0"),
        ((LayerCut("network.0", tuple(range(8))),), "that leaves one"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(cuts: tuple[LayerCut, ...], message: str) -> None:
    with pytest.raises(StageError, match=message):
        prune.apply(prune.PrunePlan(0.5, "uniform", cuts), classifier("plain"))


def test_cutting_the_classes_is_refused() -> None:
    plan = prune.PrunePlan(0.5, "uniform", (LayerCut("network.8", (0,)),))
    for use in (prune.apply, lambda plan, model: prune.masks(model, plan)):
        with pytest.raises(StageError, match=r"got 1 of network.8; the plan was made for another"):
            use(plan, classifier("plain"))


def test_cutting_attention_is_refused() -> None:
    plan = prune.PrunePlan(0.5, "uniform", (LayerCut("network.conv_proj", (0,)),))
    with pytest.raises(StageError, match=r"got 1 of network.conv_proj; the plan was made"):
        prune.apply(plan, classifier("vit"))


def test_frozen_weights_are_no_silent_no_op() -> None:
    model = classifier("resnet").requires_grad_(False)
    with torch.no_grad():
        pruned = prune.apply(uniform(model), model)
    assert prune.achieved(model, pruned).channel_sparsity >= 0.4
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("network", "root", "stays"),
    [
        (
            lambda: ShuffleNetV2([4, 8, 4], [8, 16, 32, 64, 64], num_classes=K),
            "network.stage3.3.branch2.0",
            "network.stage3.3.branch2.5",
        ),
        (
            lambda: SwinTransformer([2, 2], 8, [2, 2], [1, 1], [4, 4], num_classes=K),
            "network.features.1.0.mlp.0",
            "network.features.1.0.attn.qkv",
        ),
    ],
)
def test_of_networks_beyond_torch_pruning_consecutive_layers_are_cut_and_the_rest_named(
    network: Callable[[], nn.Module], root: str, stays: str
) -> None:
    model = wrap(seeded(network))
    nn.init.normal_(model.get_submodule(find_head(model, model.example(), K)[0]).weight)
    groups = Groups(model)
    assert root in {group.layer for group in groups.all}
    assert groups.skipped == ()
    (why,) = {whole.why for whole in groups.whole}
    assert why.startswith("torch-pruning cannot follow this network (")
    assert stays in {whole.layer for whole in groups.whole}
    plan = uniform(model)
    pruned = prune.apply(plan, model, groups)
    done = prune.achieved(model, pruned, groups=groups)
    assert 0.1 < done.channel_sparsity < 0.3
    assert done.parameter_sparsity > 0.1
    with torch.no_grad():
        got = pruned(noise().pixels)
    assert_close(got, masked_logits(model, groups.masks(plan.cuts), noise().pixels))


def test_a_search_that_does_not_end_is_stopped_and_consecutive_layers_are_cut() -> None:
    network = seeded(lambda: timm.create_model("test_coatnet", num_classes=K))
    shape = Preprocessing(height=160, width=160)
    groups = Groups(Classifier(network, shape, K).eval())
    assert groups.all
    (why,) = {whole.why for whole in groups.whole}
    assert "its lists of coupled channels grow without end" in why


class Ghost(nn.Module):
    """One of two halves is made of the other, and a sum couples them crosswise."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.cheap = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.beside, self.last = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 6, 1)
        self.head = nn.Linear(6, K)

    def forward(self, images: Tensor) -> Tensor:
        half = torch.relu(self.first(images))
        both = torch.cat([half, self.cheap(half)], dim=1) + self.beside(images)
        logits: Tensor = self.head(torch.relu(self.last(both)).mean(dim=(2, 3)))
        return logits


@pytest.mark.parametrize("asleep", [False, True])
def test_a_wrong_coupling_is_found_out_in_a_network_whose_channels_do_nothing(asleep: bool) -> None:
    model = wrap(seeded(Ghost))
    if asleep:
        with torch.no_grad():
            model.get_parameter("network.last.weight").zero_()
    groups = Groups(model)
    assert [group.layer for group in groups.all] == ["network.last"]
    assert [whole.why for whole in groups.whole] == [
        "cutting it changes what the other channels compute"
    ]


def test_networks_that_take_no_drawn_weights_are_tried_as_they_are() -> None:
    class Rooted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scales = nn.Parameter(torch.full((1, 8, 1, 1), 2.0))
            self.first, self.head = nn.Conv2d(3, 8, 1), nn.Linear(6, K)
            self.second = nn.Conv2d(8, 6, 1)

        def forward(self, images: Tensor) -> Tensor:
            features = self.second(self.first(images) * self.scales.sqrt())
            logits: Tensor = self.head(torch.relu(features).mean(dim=(2, 3)))
            return logits

    assert "network.second" in {group.layer for group in Groups(wrap(seeded(Rooted))).all}


def test_batch_norms_that_learn_nothing_are_cut_too() -> None:
    body = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False), nn.ReLU()]
    model = wrap(
        seeded(lambda: nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, K)))
    )
    pruned = prune.apply(uniform(model, 0.5), model)
    assert pruned.get_buffer("network.1.running_mean").shape == (4,)
    with torch.no_grad():
        got = pruned(noise().pixels)
    assert_close(got, masked_logits(model, prune.masks(model, uniform(model, 0.5)), noise().pixels))


def test_nothing_to_cut_is_an_error() -> None:
    with pytest.raises(StageError, match="got none; leave pruning out"):
        Groups(wrap(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, K))))


def shufflenet(repeats: int) -> nn.Module:
    return ShuffleNetV2([repeats] * 3, [8, 16, 32, 64, 64], num_classes=K)


class Shuffled(nn.Module):
    """Reverses its channels by a slice with a table, which a tracer takes for elementwise."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
        self.third, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, K)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.first(images))
        features = torch.relu(self.second(features.flip(1)))
        logits: Tensor = self.head(torch.relu(self.third(features)).mean(dim=(2, 3)))
        return logits


@pytest.mark.parametrize(
    ("network", "skipped"),
    [
        (Shuffled, ["network.first"]),
        (partial(shufflenet, 1), ["network.stage2.0.branch2.5"]),
        (partial(shufflenet, 2), ["network.stage4.1.branch2.5"]),
    ],
)
def test_groups_that_are_coupled_wrongly_are_found_out_and_skipped(
    network: Callable[[], nn.Module], skipped: list[str]
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = wrap(network())
        nn.init.normal_(model.get_submodule(find_head(model, model.example(), K)[0]).weight)
    groups = Groups(model)
    assert set(skipped) <= set(groups.skipped)
    assert groups.all
    pruned = prune.apply(uniform(model), model)
    with torch.no_grad():
        got = pruned(noise().pixels)
    assert_close(got, masked_logits(model, groups.masks(uniform(model).cuts), noise().pixels))


def test_the_callers_model_and_generators_are_not_touched() -> None:
    model = classifier("resnet").train()
    model.network.fc.weight.requires_grad_(False)  # type: ignore[union-attr]
    before, rng = weights_sha256(model), torch.get_rng_state()
    recipe = PruneL1(ratio=0.4, shares="calibrated", annealing_steps=1)
    plan = prune.plan(model, recipe, noise(), generator())
    prune.masks(model, plan)
    prune.achieved(model, prune.apply(plan, model))
    prune.reestimate_bn(model, noise())
    assert weights_sha256(model) == before
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(module.training for module in model.modules())
    assert not any(m._forward_hooks for m in model.modules())
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["network.fc.weight"]
    assert all(p.grad is None for p in model.parameters())


# Shares.


def test_shares_by_damage_spare_the_layer_that_matters() -> None:
    model, data = lopsided()
    plan = prune.plan(model, PruneL1(ratio=0.6), data, generator())
    assert [cut.layer for cut in plan.cuts] == ["network.idle"]
    assert plan.shares == "damage"
    assert accuracy(prune.apply(plan, model), data).value == 1


@pytest.mark.parametrize("network", ["plain", "resnet", "resnext"])
@pytest.mark.parametrize("ratio", [0.05, 0.3, 0.6, 0.95])
def test_shares_by_damage_keep_the_overall_rate(network: str, ratio: float) -> None:
    model = classifier(network)
    groups = Groups(model)
    plan = prune.plan(model, PruneL1(ratio=ratio), noise(), generator(), groups=groups)
    assert plan == prune.plan(model, PruneL1(ratio=ratio), noise(), torch.Generator())
    gone = sum(len(cut.channels) for cut in plan.cuts)
    most = sum(group.channels - group.fold for group in groups.all)
    fold = max(group.fold for group in groups.all)
    assert min(groups.share(ratio), most) <= gone < groups.share(ratio) + fold


@pytest.mark.parametrize("shares", ["calibrated", "damage"])
def test_shares_that_are_searched_need_images(shares: Shares) -> None:
    step = PruneL1(ratio=0.5, shares=shares)
    with pytest.raises(ConfigError, match=f"at least 2 clean images for {shares} shares, got 1"):
        prune.plan(classifier("plain"), step, noise(1), generator())
