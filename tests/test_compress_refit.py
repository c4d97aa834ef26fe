# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Refitting a cut network: the least squares by eye, what must stay, and what it is worth."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from factories import fingerprint, row_classifier, row_images, seeded
from torch import Tensor, nn

from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.compress import layers, prune, refit
from lmr_guard.compress.groups import Groups, LayerCut
from lmr_guard.compress.prune import PrunePlan
from lmr_guard.compress.recipes import PruneL1
from lmr_guard.contracts import Clean, Labelled
from lmr_guard.errors import StageError
from lmr_guard.measure import accuracy, predict

SHAPE = Preprocessing(channels=1, height=6, width=6, mean=(0.4,), std=(0.3,))


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int = 40) -> Labelled:
    images = torch.randint(0, 256, (count, 1, 6, 6), dtype=torch.uint8, generator=drawn(5))
    return Labelled(images, torch.arange(count) % 3, ("a", "b", "c"))


def network(body: Callable[[], nn.Module]) -> Classifier:
    return Classifier(seeded(body), SHAPE, 3).eval()


def cutting(layer: str, *channels: int) -> PrunePlan:
    return PrunePlan(0.5, "uniform", (LayerCut(f"network.{layer}", channels),))


# The layer that ranks the first channels of each network below.
ROOTS = {"plain": "0", "depthwise": "2", "Tokens": "inner"}


def plain() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 4, 3),
    )


def depthwise() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, groups=6, dilation=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(6, 5, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 3),
    )


class Tokens(nn.Module):
    """Rows of the image as tokens, one MLP over each, as a transformer has it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 10)
        self.outer = nn.Linear(10, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, pixels: Tensor) -> Tensor:
        tokens = pixels.squeeze(1)
        logits: Tensor = self.head(self.outer(self.inner(tokens).relu()).mean(dim=1))
        return logits


# --- the least squares --------------------------------------------------------------------------


def test_a_head_is_refit_by_ridge_regression_towards_its_weights() -> None:
    model = network(lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.Linear(5, 3)))
    data = pictures()
    after = refit.refit(model, cutting("1", 1, 3), data, drawn())
    features = model.network[0](model.normalise(data.pixels))  # type: ignore[index]
    left = [0, 2, 4]
    wanted = predict(model, data).double()
    seen = model.network[1](features)[:, left].double()  # type: ignore[index]
    seen = torch.cat([seen, torch.ones(len(seen), 1)], dim=1)
    head = model.network[2]  # type: ignore[index]
    start = torch.cat([head.weight[:, left].double(), head.bias[:, None].double()], dim=1)
    rows = []
    for wish, old in zip(wanted.T, start, strict=True):
        square, mixed = torch.zeros(4, 4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
        for x, y in zip(seen, wish, strict=True):
            square += x[:, None] * x[None, :]
            mixed += x * y
        ridge = 1e-3 * square.diagonal().mean()
        rows.append(torch.linalg.solve(square + ridge * torch.eye(4), mixed + ridge * old))
    expected = torch.stack(rows).detach()
    found = after.network[2]  # type: ignore[index]
    assert torch.allclose(found.weight.double(), expected[:, :3], atol=1e-4)
    assert torch.allclose(found.bias.double(), expected[:, 3], atol=1e-4)


# --- laws ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [plain, depthwise])
def test_what_a_cut_channel_told_is_told_by_its_double(body: Callable[[], nn.Sequential]) -> None:
    """Every second channel repeats the one before it: nothing is lost by cutting it."""
    model = network(body)
    layers = [m for m in model.network.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    with torch.no_grad():
        for layer in layers[: 2 if body is plain else 1]:
            for parameter in layer.parameters():
                parameter[1::2] = parameter[::2]
        if body is depthwise:
            for parameter in layers[1].parameters():
                parameter[1::2] = parameter[::2]
    data, plan = pictures(), cutting(ROOTS[body.__name__], 1, 3, 5)
    after = refit.refit(model, plan, data, drawn())
    lost = predict(prune.apply(plan, model), data) - predict(model, data)
    left = predict(after, data) - predict(model, data)
    assert left.abs().max() < 0.02 * lost.abs().max()


@pytest.mark.parametrize("body", [plain, depthwise, Tokens])
def test_it_comes_nearer_to_the_uncut_network(body: Callable[[], nn.Module]) -> None:
    model = network(body)
    plan = cutting(ROOTS[body.__name__], 0, 4)
    data = pictures(80)
    uncut, cut = predict(model, data), predict(prune.apply(plan, model), data)
    after = predict(refit.refit(model, plan, data, drawn()), data)
    assert (after - uncut).square().mean() < 0.5 * (cut - uncut).square().mean()


def test_the_layer_that_is_cut_keeps_the_channels_that_stay() -> None:
    model = network(plain)
    after = refit.refit(model, cutting("0", 1, 3), pictures(), drawn())
    assert torch.allclose(after.network[0].weight, model.network[0].weight[[0, 2, 4, 5]], atol=1e-5)  # type: ignore[index]
    assert torch.equal(after.network[1].running_mean, model.network[1].running_mean[[0, 2, 4, 5]])  # type: ignore[index]


def test_the_model_is_left_alone_and_the_same_generator_gives_the_same() -> None:
    model, data = row_classifier(), row_images(60)
    plan = prune.plan(model, PruneL1(ratio=0.5, shares="uniform"), data, drawn())
    before = fingerprint(model)
    one, two = (refit.refit(model, plan, data, drawn(3)) for _ in range(2))
    assert fingerprint(model) == before
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert all(parameter.requires_grad for parameter in one.parameters())


def test_labels_do_not_matter() -> None:
    model, data = row_classifier(), row_images(60)
    other = Labelled(data.images, data.labels.flip(0), data.classes)
    plan = prune.plan(model, PruneL1(ratio=0.5, shares="uniform"), data, drawn())
    one, two = (refit.refit(model, plan, each, drawn(3)) for each in (data, other))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


# --- what cannot be refit -----------------------------------------------------------------------


class Twice(nn.Module):
    """One layer that runs twice, and one that is never called as a module."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(36, 8)
        self.again = nn.Linear(8, 8)
        self.aside = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, pixels: Tensor) -> Tensor:
        seen = self.again(self.again(self.first(pixels.flatten(1)).relu()).relu())
        logits: Tensor = self.head(F.linear(seen, self.aside.weight, self.aside.bias))
        return logits


def test_layers_that_run_twice_or_not_at_all_stay() -> None:
    model = network(Twice)
    names = set(layers.once(model, model.example(1)))
    assert names == {"network.first", "network.head"}


def test_sums_that_tell_nothing_change_nothing_and_warn_of_nothing() -> None:
    model = network(plain)
    black = Labelled(torch.zeros(9, 1, 6, 6, dtype=torch.uint8), torch.arange(9) % 3, tuple("abc"))
    after = refit.refit(model, cutting("0", 1), black, drawn())
    assert all(bool(parameter.isfinite().all()) for parameter in after.parameters())
    zero = nn.Linear(2, 2)
    unknown, places = torch.full((3, 2), float("nan")), (torch.arange(3),)
    assert refit._solved(zero, unknown, places, torch.zeros(3, 2)) is None


def test_without_images_there_is_nothing_to_refit_on() -> None:
    with pytest.raises(StageError, match="expected clean images to refit pruned layers on, got no"):
        refit.refit(network(plain), cutting("0", 1), pictures(0), drawn())


# --- what it is worth ---------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.4, 0.6])
def test_it_keeps_more_accuracy_than_new_statistics(
    clean_network: Classifier, digits: Clean, ratio: float
) -> None:
    groups = Groups(clean_network)
    step = PruneL1(ratio=ratio, shares="uniform")
    plan = prune.plan(clean_network, step, digits.select, drawn(), groups=groups)
    again = prune.reestimate_bn(prune.apply(plan, clean_network), digits.repair)
    after = refit.refit(clean_network, plan, digits.repair, drawn(), groups=groups)
    kept = accuracy(after, digits.report).hits - accuracy(again, digits.report).hits
    lost = accuracy(clean_network, digits.report).hits - accuracy(after, digits.report).hits
    assert kept > 0
    assert lost <= 0.04 * len(digits.report)
