# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Tables of what goes with a channel: masks and cuts follow from them, and sizes are told."""

import pytest
import torch
from cuttable import classifier, wrap
from torch import nn

from lmr_guard.compress.groups import Groups
from lmr_guard.compress.tables import Group, LayerCut, cut, depthwise, maskable, masks, slices
from lmr_guard.errors import StageError


def test_layers_say_their_new_sizes() -> None:
    model = classifier("mobilenet")
    groups = Groups(model)
    pruned = groups.cut(model, groups.cuts(dict(model.named_parameters()), groups.uniform(0.4)))
    for module in pruned.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.shape[:2] == (
                module.out_channels,
                module.in_channels // module.groups,
            )
        elif isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert len(module.weight) == len(module.running_mean) == module.num_features
        elif isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)


def test_a_tensor_that_loses_both_ways_loses_what_it_had_at_first() -> None:
    model = wrap(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1), nn.Conv2d(5, 2, 1)))
    made = {f"network.{i}": len(model.get_parameter(f"network.{i}.weight")) for i in range(2)}
    groups = []
    for number, (name, width) in enumerate(made.items()):
        all_of = torch.arange(width)
        after = f"network.{number + 1}"
        rows = slices(model.get_submodule(name), name, True, all_of, all_of)
        columns = slices(model.get_submodule(after), after, False, all_of, all_of)
        groups.append(Group(name, width, 1, (*rows, *columns)))
    cuts = [LayerCut("network.0", (0, 3)), LayerCut("network.1", (1,))]
    got = cut(model, groups, cuts).get_parameter("network.1.weight")
    assert torch.equal(got, model.get_parameter("network.1.weight")[[0, 2, 3, 4]][:, [1, 2]])
    mask = masks(groups, dict(model.named_parameters()), cuts)["network.1.weight"]
    assert int(mask.expand(5, 4, 1, 1).sum()) == got.numel()


def test_the_callers_network_and_its_frozen_weights_stay() -> None:
    model = classifier("plain")
    groups = Groups(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    groups.cut(model, [LayerCut(groups.all[0].layer, (0,))])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("item", [LayerCut("network.0", (8,)), LayerCut("nowhere", (0,))])
def test_cuts_of_another_network_are_refused(item: LayerCut) -> None:
    model = classifier("plain")
    with pytest.raises(StageError, match="the plan was made for another network"):
        Groups(model).cut(model, [item])


def test_kinds() -> None:
    assert maskable(nn.Conv2d(3, 4, 1))
    assert not maskable(nn.LayerNorm(4))
    assert not maskable(nn.ConvTranspose2d(3, 4, 1))
    assert depthwise(nn.Conv2d(4, 4, 3, groups=4))
    assert not depthwise(nn.Conv2d(1, 1, 3))
