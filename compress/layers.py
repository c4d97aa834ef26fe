# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Convolution and linear layers as matrices, and what they see: one row per position of an output.

Memory is bounded: a network runs once over all images in one batch, of which there are no more
than ``_ROOM`` holds of its largest activation; of a layer's positions ``_POSITIONS`` are drawn, at
least twice as many as its inputs are wide, and are read in blocks, in float64.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Labelled

__all__ = [
    "Layer",
    "Places",
    "draw",
    "groups_of",
    "hooked",
    "once",
    "rows",
    "shown",
    "stacked",
    "store",
]

_POSITIONS = 32_000
_BLOCK = 4096
_ROOM = 1 << 28  # floats that the largest activation may have, over all images

Layer = nn.Conv2d | nn.Linear

Places = tuple[Tensor, ...]
"""(image, row, column) of a convolution, or position in all but the last dimension of a linear
layer: one tensor of shape (S,) per coordinate."""


def shown(model: Classifier, images: Labelled) -> Tensor:
    """Pixels of as many images as fit, evenly spaced, for stored images are often sorted."""
    sizes: list[int] = []

    def measure(_module: nn.Module, _given: object, output: object) -> None:
        sizes.append(output.numel() if isinstance(output, Tensor) else 1)

    with hooked(module.register_forward_hook(measure) for module in model.modules()):
        model(model.example(1))
    count = max(1, min(len(images), _ROOM // max(sizes)))
    return images.subset(torch.arange(count) * len(images) // count).pixels.to(model.device)


@contextmanager
def hooked(handles: Iterator[torch.utils.hooks.RemovableHandle]) -> Iterator[None]:
    """Takes the hooks off at the end, whatever happens."""
    kept = list(handles)
    try:
        yield
    finally:
        for handle in kept:
            handle.remove()


def once(model: Classifier, pixels: Tensor) -> dict[str, Layer]:
    """The layers that can be taken one by one, by name: they run once, and pad with zeros.

    Projections of torch's own attention do not run as modules, and are none of them.
    """
    runs: Counter[str] = Counter()
    found: dict[str, Layer] = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
        or (isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros")
    }

    def count(name: str) -> Callable[..., None]:
        return lambda *_: runs.update([name])

    with hooked(layer.register_forward_hook(count(name)) for name, layer in found.items()):
        model(pixels)
    return {name: layer for name, layer in found.items() if runs[name] == 1}


def draw(layer: Layer, output: Tensor, generator: torch.Generator) -> tuple[Places, Tensor]:
    """Positions of a layer's output drawn at random, and the outputs there, (S, outputs)."""
    last = output.movedim(1, -1) if isinstance(layer, nn.Conv2d) else output
    shape, flat = last.shape[:-1], last.flatten(0, -2)
    count = min(len(flat), max(_POSITIONS, 2 * layer.weight[0].numel()))
    drawn = torch.randperm(len(flat), generator=generator)[:count].to(flat.device)
    return torch.unravel_index(drawn, shape), flat[drawn]


def groups_of(layer: Layer) -> int:
    """Of a grouped or depthwise convolution; else 1."""
    return layer.groups if isinstance(layer, nn.Conv2d) else 1


def rows(layer: Layer, given: Tensor, places: Places) -> Iterator[tuple[Tensor, Tensor]]:
    """What a layer sees at these positions, in blocks.

    Args:
        layer: A bias counts as an input that is always one, the last.
        given: Its input, all images.
        places: Of its output.

    Returns:
        Which of the positions, (B,) on the CPU; and ``X`` in float64, (groups, B, inputs),
        channels first.
    """
    groups, source = groups_of(layer), given
    if isinstance(layer, nn.Conv2d):
        source = F.pad(given, layer._reversed_padding_repeated_twice)
    for block in torch.arange(len(places[0])).split(_BLOCK):
        chosen = tuple(axis[block.to(axis.device)] for axis in places)
        x = _seen(layer, source, chosen).double().unflatten(1, (groups, -1)).movedim(1, 0)
        if layer.bias is not None:
            x = torch.cat([x, x.new_ones(*x.shape[:2], 1)], dim=2)
        yield block, x


def _seen(layer: Layer, source: Tensor, places: Places) -> Tensor:
    """(S, inputs), channels first."""
    if isinstance(layer, nn.Linear):
        return source[places]
    image, row, column = places
    (height, width), (down, right) = layer.kernel_size, layer.stride
    spread_down, spread_right = layer.dilation
    high = row[:, None] * down + torch.arange(height, device=row.device) * spread_down
    wide = column[:, None] * right + torch.arange(width, device=row.device) * spread_right
    # Indices around a slice: the sliced dimension, the channels, comes last.
    windows = source[image[:, None, None], :, high[:, :, None], wide[:, None, :]]
    return windows.permute(0, 3, 1, 2).flatten(1)


def stacked(layer: Layer) -> Tensor:
    """Its weights in float64, (groups, inputs, outputs); a bias is the last input."""
    groups = groups_of(layer)
    weight: Tensor = layer.weight.detach().double().flatten(1).unflatten(0, (groups, -1)).mT
    if layer.bias is None:
        return weight.contiguous()
    bias = layer.bias.detach().double().unflatten(0, (groups, 1, -1))
    return torch.cat([weight, bias], dim=1)


def store(layer: Layer, values: Tensor) -> None:
    """Back into the layer from what ``stacked`` gives."""
    inputs = values.shape[1] - (layer.bias is not None)
    layer.weight.copy_(values[:, :inputs].mT.flatten(0, 1).view_as(layer.weight))
    if layer.bias is not None:
        layer.bias.copy_(values[:, inputs].flatten())
