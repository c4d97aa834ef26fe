# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Channels between one layer and the next, for networks whose coupling nobody could trace.

Layers are taken in the order in which they run. Between a layer and the next one that takes as many
channels in as it puts out, there may be batch norms, PReLUs and depthwise convolutions of that
width: the expansions of inverted residuals, the first layers of residual branches and of the
feed-forward parts of transformers are built so. Nothing here looks at where the channels really go,
through additions, shuffles or attention: ``groups`` tries every group that is proposed.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lmr_guard.classifier import Classifier
from lmr_guard.compress.tables import Group, Slice, maskable, slices

__all__ = ["proposed"]

_Ran = Sequence[tuple[str, nn.Module]]


def proposed(model: Classifier, head: nn.Module) -> list[Group]:
    """Groups of consecutive layers, none of which was tried; a layer is the root of one at most.

    Args:
        model: In eval mode; run once, left as it is.
        head: The layer that yields the classes; may take channels in, keeps what it puts out.
    """
    ran = _ran(model)
    once = [item for item in ran if sum(item[1] is other for _, other in ran) == 1]
    found = (_group(once[at], once[at + 1 :]) for at in range(len(once)) if once[at][1] is not head)
    return [group for group in found if group is not None]


def _ran(model: Classifier) -> _Ran:
    ran: list[tuple[str, nn.Module]] = []
    handles = [
        module.register_forward_hook(lambda m, _i, _o, name=name: ran.append((name, m)))
        for name, module in model.named_modules()
        if next(module.children(), None) is None and next(module.parameters(), None) is not None
    ]
    try:
        with torch.no_grad():
            model(model.example())
    finally:
        for handle in handles:
            handle.remove()
    return ran


def _group(root: tuple[str, nn.Module], later: _Ran) -> Group | None:
    name, layer = root
    if not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear) or not maskable(layer):
        return None
    if getattr(layer, "groups", 1) != 1 or (width := len(layer.weight)) < 2:
        return None
    channels = torch.arange(width)
    found: list[Slice] = slices(layer, name, True, channels, channels)
    for name_after, after in later:
        if not maskable(after):
            return None
        if _passes_on(after, width):
            found += slices(after, name_after, True, channels, channels)
        elif (taken := _columns(after, width)) is not None:
            found += slices(after, name_after, False, torch.arange(len(taken)), taken)
            return Group(name, width, 1, tuple(found))
        else:
            return None
    return None


def _passes_on(layer: nn.Module, width: int) -> bool:
    """Whether each channel that comes in goes out by itself."""
    if isinstance(layer, _BatchNorm):
        return layer.num_features == width
    if isinstance(layer, nn.PReLU):
        return layer.num_parameters in {1, width}
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        return layer.groups == layer.in_channels == layer.out_channels == width
    return False


def _columns(layer: nn.Module, width: int) -> torch.Tensor | None:
    """The channel that each input column would hold; a flattened one holds several of each."""
    if isinstance(layer, nn.Linear) and layer.in_features % width == 0:
        return torch.arange(width).repeat_interleave(layer.in_features // width)
    if isinstance(layer, nn.Conv1d | nn.Conv2d) and (layer.groups, layer.in_channels) == (1, width):
        return torch.arange(width)
    return None
