# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Real weights of real architectures are told by their names and shapes alone."""

import pytest
import timm
import torch
from factories import small_network
from torch import Tensor, nn
from torchvision import models

from lmr_guard.received.guessed import _ODD, _Weightless, fitting, outline


def named(weights: dict[str, Tensor]) -> list[str]:
    return [found.name for found in fitting(weights)]


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v2", "squeezenet1_1", "efficientnet_b0", "shufflenet_v2_x0_5"]
)
def test_torchvision(name: str) -> None:
    found = named(models.get_model(name, num_classes=7).state_dict())
    assert set(found) == {f"torchvision:{name}"}


def test_what_training_puts_around_it_does_not_matter() -> None:
    weights = models.resnet18(num_classes=5).state_dict()
    around = {f"module.net.{name}": value for name, value in weights.items()}
    assert named(around | {"loss.weight": torch.ones(5)}) == ["torchvision:resnet18"]


def test_the_stem_for_small_images_and_grey_ones() -> None:
    network = models.resnet18(num_classes=5)
    network.conv1 = nn.Conv2d(1, 64, 3, padding=1, bias=False)
    (found,) = fitting(network.state_dict())
    assert (found.name, found.stem) == ("torchvision:resnet18", "cifar")


def test_where_the_weights_do_not_tell_the_stem_both_are_named() -> None:
    found = fitting(models.mobilenet_v2(num_classes=5).state_dict())
    assert [each.stem for each in found] == ["native", "cifar"]


def test_the_size_of_a_vision_transformer() -> None:
    weights = models.vit_b_32(num_classes=5, image_size=64).state_dict()
    (found,) = fitting(weights)
    assert (found.name, found.input_size) == ("torchvision:vit_b_32", (3, 64, 64))


@pytest.mark.slow
@pytest.mark.long
def test_timm_where_torchvision_has_none() -> None:
    weights = timm.create_model("test_resnet", num_classes=5).state_dict()
    assert named(weights) == ["timm:test_resnet"]


@pytest.mark.slow
def test_a_network_of_ones_own_is_nobody_s() -> None:
    assert fitting(small_network().state_dict()) == []


def test_one_missing_weight_is_too_few() -> None:
    weights = models.squeezenet1_1(num_classes=5).state_dict()
    del weights["features.3.squeeze.bias"]
    assert fitting({**weights, "other": torch.ones(1)}) == []


def test_building_an_outline_draws_nothing() -> None:
    before = torch.get_rng_state()
    assert outline("torchvision:regnet_y_400mf") is not None
    assert torch.equal(torch.get_rng_state(), before)
    assert outline("timm:no_such_network") is None


@pytest.mark.parametrize("name", ["resnet18", "test_vit", "test_convnext", "test_byobnet"])
def test_an_outline_is_that_of_the_network_with_its_values(name: str) -> None:
    kind, make = (
        ("timm", timm.create_model) if "test_" in name else ("torchvision", models.get_model)
    )
    built = make(name, num_classes=_ODD).state_dict()
    assert outline(f"{kind}:{name}") == {key: tuple(value.shape) for key, value in built.items()}


def test_what_has_no_values_is_not_filled() -> None:
    with _Weightless():
        bare, held = torch.empty(2, 3), torch.ones(2, 3)
        assert nn.init.kaiming_normal_(bare) is nn.init.trunc_normal_(bare) is bare.mul_(2) is bare
        assert nn.init.zeros_(held) is held
        assert torch.equal(held.add_(2), torch.full((2, 3), 2.0))
    assert bare.is_meta
    assert bare._version == 0
