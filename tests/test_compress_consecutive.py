# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What is proposed of consecutive layers, before anything is tried."""

import torch
from cuttable import K, wrap
from torch import nn

from lmr_guard.compress.consecutive import proposed
from lmr_guard.compress.tables import Group


def groups(*layers: nn.Module) -> list[Group]:
    model = wrap(nn.Sequential(*layers, nn.Linear(6, K)))
    head = list(model.modules())[-1]
    return proposed(model, head)


def entries(group: Group) -> list[tuple[str, int]]:
    return [(s.name.removeprefix("network."), s.dim) for s in group.slices]


POOLED = (nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_what_lies_between_two_layers_goes_with_the_channels_of_the_first() -> None:
    depthwise = nn.Conv2d(6, 6, 3, groups=6, bias=False)
    first, *others = groups(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.PReLU(6), depthwise, nn.Conv2d(6, 6, 1), *POOLED
    )
    assert (first.layer, first.channels, first.fold) == ("network.0", 6, 1)
    assert entries(first) == [
        ("0.weight", 0),
        ("0.bias", 0),
        ("1.weight", 0),
        ("1.bias", 0),
        ("1.running_mean", 0),
        ("1.running_var", 0),
        ("2.weight", 0),
        ("3.weight", 0),
        ("4.weight", 1),
    ]
    assert [group.layer for group in others] == ["network.4"]


def test_a_flattened_channel_is_several_columns() -> None:
    layers = [nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d((1, 3)), nn.Flatten()]
    (group,) = groups(*layers)
    (columns,) = [s for s in group.slices if s.dim == 1]
    assert columns.roots.tolist() == [0, 0, 0, 1, 1, 1]
    assert columns.positions.tolist() == list(range(6))


def test_other_widths_grouped_layers_norms_over_channels_and_single_units_are_not_proposed() -> (
    None
):
    pooled = nn.AdaptiveAvgPool2d(1)
    assert groups(nn.Conv2d(3, 6, 3, groups=3), pooled, nn.Flatten()) == []
    assert groups(nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6), pooled, nn.Flatten()) == []
    assert groups(nn.Conv2d(3, 1, 1), nn.AdaptiveAvgPool2d((2, 3)), nn.Flatten()) == []


def test_layers_that_run_twice_are_passed_over() -> None:
    twice = nn.Conv2d(6, 6, 1)
    found = groups(nn.Conv2d(3, 6, 1), twice, twice, nn.Conv2d(6, 6, 1), *POOLED)
    assert "network.1" not in {group.layer for group in found}


def test_nothing_is_left_behind() -> None:
    model = wrap(nn.Sequential(nn.Conv2d(3, 6, 1), *POOLED, nn.Linear(6, K)))
    random = torch.get_rng_state()
    proposed(model, list(model.modules())[-1])
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(random, torch.get_rng_state())
