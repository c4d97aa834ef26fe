# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The model that owns its preprocessing; the head is found by what runs, not by name."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import squeezenet1_1

from lmr_guard.classifier import Classifier, Preprocessing, find_head, weights_sha256
from lmr_guard.errors import InputError

EXAMPLE = torch.full((2, 3, 8, 8), 0.5)


def linear_headed() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
    )  # fmt: skip


def conv_headed(kernel_size: int = 1, groups: int = 1) -> nn.Sequential:
    head = nn.Conv2d(4, 4, kernel_size, groups=groups)
    return nn.Sequential(nn.Conv2d(3, 4, 3), head, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class DefinedBackwards(nn.Module):
    """Its head is registered first and runs last."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(6, 5)
        self.first = nn.Linear(192, 6)
        self.unused = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.first(x.flatten(1)).relu())
        return logits


def classifier(network: nn.Module | None = None) -> Classifier:
    preprocessing = Preprocessing(height=8, width=8, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    return Classifier(network or linear_headed(), preprocessing, 5)


def test_the_network_sees_normalised_pixels() -> None:
    pixels = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    seen = classifier(nn.Identity())(pixels)
    for channel, (mean, std) in enumerate([(0.1, 0.5), (0.2, 1.0), (0.3, 2.0)]):
        expected = (pixels[:, channel] - mean) / std
        assert torch.allclose(seen[:, channel], expected, atol=1e-6)


def test_the_example_fits_the_network() -> None:
    model = classifier().eval()
    assert model.example().shape == (2, 3, 8, 8)
    assert model(model.example(batch=3)).shape == (3, 5)
    assert model.device == torch.device("cpu")


def test_a_clone_is_independent_in_eval_mode_and_trainable() -> None:
    model = classifier().train()
    model.requires_grad_(False)
    before = weights_sha256(model)
    twin = model.clone()
    assert weights_sha256(twin) == before
    assert all(not module.training for module in twin.modules())
    assert all(parameter.requires_grad for parameter in twin.parameters())
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    assert weights_sha256(model) == before
    assert all(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_digest_is_that_of_the_bare_weights() -> None:
    model = classifier()
    assert weights_sha256(model) == weights_sha256(model.network)


def change_one_value(model: nn.Module) -> None:
    weight = model.get_parameter("6.weight")
    with torch.no_grad():
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))


def change_a_statistic(model: nn.Module) -> None:
    model.get_buffer("1.running_mean")[0] += 1


def change_the_type_alone(model: nn.Module) -> None:
    """Zero has the same bytes in both."""
    statistics = model.get_submodule("1")
    statistics.num_batches_tracked = model.get_buffer("1.num_batches_tracked").double()


def change_a_shape(model: nn.Module) -> None:
    bias = model.get_parameter("6.bias")
    bias.data = bias.data.view(1, -1)


@pytest.mark.parametrize(
    "change", [change_one_value, change_a_statistic, change_the_type_alone, change_a_shape]
)
def test_the_digest_sees_every_change(change: Callable[[nn.Module], None]) -> None:
    model = linear_headed()
    before = weights_sha256(model)
    assert weights_sha256(model) == before
    change(model)
    assert weights_sha256(model) != before


def test_the_head_is_the_last_linear_layer() -> None:
    model = linear_headed()
    name, layer = find_head(model, EXAMPLE, 5)
    assert (name, layer) == ("6", model[6])


def test_the_head_is_the_layer_that_runs_last_not_the_one_defined_last() -> None:
    model = DefinedBackwards()
    assert find_head(model, EXAMPLE, 5) == ("last", model.last)


def test_the_head_is_named_within_a_classifier() -> None:
    assert find_head(classifier(), EXAMPLE, 5)[0] == "network.6"


def test_the_head_may_be_a_convolution_before_the_pooling() -> None:
    model = squeezenet1_1(num_classes=7)
    name, layer = find_head(model, torch.zeros(2, 3, 64, 64), 7)
    assert (name, layer) == ("classifier.1", model.classifier[1])


def test_a_1x1_convolution_is_a_head() -> None:
    assert find_head(conv_headed(), EXAMPLE, 4)[0] == "1"


@pytest.mark.parametrize(
    ("model", "classes", "message"),
    [
        (nn.Flatten(), 5, "got no linear or convolution layer"),
        (linear_headed(), 6, r"with 6 outputs, got 6: Linear\(in_features=4, out_features=5"),
        (conv_headed(), 3, "with 3 outputs, got 1: Conv2d"),
        (conv_headed(kernel_size=3), 4, "got 1: Conv2d"),
        (conv_headed(groups=2), 4, "got 1: Conv2d"),
        (nn.Sequential(linear_headed(), nn.Linear(5, 2)), 5, r"got 1: Linear\(in_features=5"),
        (nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 5, 1)), 5, "got 1: Conv1d"),
    ],
)
def test_no_head_is_a_clear_error(model: nn.Module, classes: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_head(model, EXAMPLE, classes)


def snapshot(model: nn.Module) -> tuple[object, ...]:
    """All that looking for a head could disturb."""
    return (
        weights_sha256(model),
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [len(module._forward_hooks) for module in model.modules()],
        torch.get_rng_state().tolist(),
    )


class Fails(nn.Module):
    """Runs a layer, then fails."""

    def __init__(self) -> None:
        super().__init__()
        self.body = linear_headed()

    def forward(self, x: Tensor) -> Tensor:
        self.body(x)
        raise RuntimeError("no further")


def test_looking_for_the_head_leaves_the_model_as_it_was() -> None:
    model = linear_headed().train()
    model[1].eval()
    model[0].requires_grad_(False)
    model[6].register_forward_hook(lambda *_: None)
    before = snapshot(model)
    find_head(model, EXAMPLE, 5)
    assert snapshot(model) == before


def test_a_model_that_fails_is_left_as_it_was() -> None:
    model = Fails().train()
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="no further"):
        find_head(model, EXAMPLE, 5)
    assert snapshot(model) == before
