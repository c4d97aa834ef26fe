# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Refits the layers of a pruned network to what the uncut one computes, from a few clean images.

A network that lost channels computes something else in every layer behind the cut. A few hundred
images cannot train it again, but they can refit it: each convolution and linear layer, in the
order in which they run, gets the weights that reproduce best what the same layer of the uncut
network puts out, from the channels that are left, as the layers before it, refit already, now
yield them. That is ridge least squares towards the weights ``W0`` that the layer has::

    W = argmin ||X W - Y||^2 + l ||W - W0||^2 = (X'X + l I)^-1 (X'Y + l W0)

``X`` are the layer's inputs in the cut network, one row per position of an output, ``Y`` its
outputs in the uncut one, ``l`` a share of the mean of the diagonal of ``X'X``. Grouped and
depthwise convolutions are refit group by group. No label is looked at; batch norm stays as it was,
for the inputs that its statistics describe are what is restored.

Source: the reconstruction of He, Zhang and Sun, "Channel Pruning for Accelerating Very Deep Neural
Networks" (ICCV 2017), here for all layers one after another and without their choice of channels.

Memory is bounded: each network runs once over all images in one batch, of which there are no more
than ``_ROOM`` holds of its largest activation; of a layer's positions ``_POSITIONS`` are drawn, at
least as many as its inputs are wide, and enter the sums in blocks, in float64. The largest matrix
is as wide as the widest layer's inputs: 4608 in ResNet-18, 170 MB.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmr_guard.classifier import Classifier
from lmr_guard.compress.groups import Groups
from lmr_guard.compress.prune import PrunePlan, apply
from lmr_guard.contracts import Labelled
from lmr_guard.errors import StageError

__all__ = ["refit"]

_RIDGE = 1e-3
_POSITIONS = 32_000
_BLOCK = 4096
_ROOM = 1 << 28  # floats that the largest activation may have, over all images
_Layer = nn.Conv2d | nn.Linear


@torch.no_grad()
def refit(
    classifier: Classifier,
    plan: PrunePlan,
    repair: Labelled,
    generator: torch.Generator,
    *,
    groups: Groups | None = None,
) -> Classifier:
    """The planned cut of a classifier, every layer refit to the uncut one.

    A layer stays as it was cut where it runs more than once or not as a module (the projections of
    torch's own attention), pads otherwise than by zeros, or its sums are too ill-conditioned.

    Args:
        classifier: Uncut, in eval mode; left as it is.
        plan: The channels that go.
        repair: Clean images; their labels are not looked at.
        generator: CPU generator; draws the positions.
        groups: The traced structure of ``classifier``, where the caller has it already.

    Raises:
        StageError: There is no image, or the plan does not fit.
    """
    if not len(repair):
        raise StageError("expected clean images to refit pruned layers on, got none; give some")
    model = classifier.clone()
    pixels = _images(model, repair).to(model.device)
    layers = _layers(model, pixels[:1])
    wanted = _outputs(model, layers, pixels, generator)
    groups = groups or Groups(classifier)
    masks = groups.masks(plan.cuts)
    state = dict(model.named_parameters())
    for name, mask in masks.items():
        state[name].mul_(mask.to(state[name]))

    def solve(name: str) -> Callable[[_Layer, tuple[Tensor]], None]:
        def hook(layer: _Layer, given: tuple[Tensor]) -> None:
            stacked = _solved(layer, given[0], wanted.pop(name))
            if stacked is not None:
                _store(layer, stacked)
                for own, parameter in layer.named_parameters(recurse=False):
                    if (mask := masks.get(f"{name}.{own}")) is not None:
                        parameter.mul_(mask.to(parameter))

        return hook

    with _hooked(layer.register_forward_pre_hook(solve(name)) for name, layer in layers.items()):
        model(pixels)
    return apply(plan, model, groups)


def _images(model: Classifier, repair: Labelled) -> Tensor:
    """Pixels of as many images as fit, evenly spaced, for stored images are often sorted."""
    sizes: list[int] = []

    def measure(_module: nn.Module, _given: object, output: object) -> None:
        sizes.append(output.numel() if isinstance(output, Tensor) else 1)

    with _hooked(module.register_forward_hook(measure) for module in model.modules()):
        model(model.example(1))
    count = max(1, min(len(repair), _ROOM // max(sizes)))
    return repair.subset(torch.arange(count) * len(repair) // count).pixels


@contextmanager
def _hooked(handles: Iterator[torch.utils.hooks.RemovableHandle]) -> Iterator[None]:
    kept = list(handles)
    try:
        yield
    finally:
        for handle in kept:
            handle.remove()


def _layers(model: Classifier, pixels: Tensor) -> dict[str, _Layer]:
    """What can be refit, by name: layers that run once."""
    runs: Counter[str] = Counter()
    found: dict[str, _Layer] = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
        or (isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros")
    }

    def count(name: str) -> Callable[..., None]:
        return lambda *_: runs.update([name])

    with _hooked(layer.register_forward_hook(count(name)) for name, layer in found.items()):
        model(pixels)
    return {name: layer for name, layer in found.items() if runs[name] == 1}


@dataclass(frozen=True, slots=True, eq=False)
class _Wanted:
    """Outputs of one layer at some positions.

    Args:
        positions: (image, row, column) of a convolution, or position in all but the last dimension
            of a linear layer, one tensor of shape (S,) per coordinate.
        outputs: Shape (S, outputs).
    """

    positions: tuple[Tensor, ...]
    outputs: Tensor


def _outputs(
    model: Classifier, layers: dict[str, _Layer], pixels: Tensor, generator: torch.Generator
) -> dict[str, _Wanted]:
    """What each layer of the uncut network puts out at positions drawn at random."""
    found: dict[str, _Wanted] = {}

    def keep(name: str) -> Callable[[_Layer, tuple[Tensor], Tensor], None]:
        def hook(layer: _Layer, _given: tuple[Tensor], output: Tensor) -> None:
            last = output.movedim(1, -1) if isinstance(layer, nn.Conv2d) else output
            places, rows = last.shape[:-1], last.flatten(0, -2)
            least = 2 * layer.weight[0].numel()
            count = min(len(rows), max(_POSITIONS, least))
            drawn = torch.randperm(len(rows), generator=generator)[:count].to(rows.device)
            found[name] = _Wanted(torch.unravel_index(drawn, places), rows[drawn])

        return hook

    with _hooked(layer.register_forward_hook(keep(name)) for name, layer in layers.items()):
        model(pixels)
    return found


def _solved(layer: _Layer, given: Tensor, wanted: _Wanted) -> Tensor | None:
    """``W`` as ``_stacked`` has it; None where the sums cannot be solved."""
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    before = _stacked(layer, groups)
    a = before.new_zeros(groups, before.shape[1], before.shape[1])
    b = torch.zeros_like(before)
    source = given
    if isinstance(layer, nn.Conv2d):
        source = F.pad(given, layer._reversed_padding_repeated_twice)
    for block in torch.arange(len(wanted.outputs)).split(_BLOCK):
        places = tuple(axis[block.to(axis.device)] for axis in wanted.positions)
        x = _inputs(layer, source, places).double().unflatten(1, (groups, -1)).movedim(1, 0)
        if layer.bias is not None:
            x = torch.cat([x, x.new_ones(*x.shape[:2], 1)], dim=2)
        y = wanted.outputs[block.to(x.device)].double().unflatten(1, (groups, -1)).movedim(1, 0)
        a += x.mT @ x
        b += x.mT @ y
    diagonal = a.diagonal(dim1=1, dim2=2)
    alive = diagonal > 0
    ridge = _RIDGE * diagonal.sum(dim=1) / alive.sum(dim=1).clamp_min(1)
    # Where nothing comes in, the weights stay what they are.
    a.diagonal(dim1=1, dim2=2).add_(ridge.clamp_min(torch.finfo(torch.float64).tiny)[:, None])
    factor, failed = torch.linalg.cholesky_ex(a)
    after = torch.cholesky_solve(b + ridge[:, None, None] * before, factor)
    return after if bool(after.isfinite().all()) and not bool(failed.any()) else None


def _inputs(layer: _Layer, source: Tensor, places: tuple[Tensor, ...]) -> Tensor:
    """Rows of ``X``: what the layer sees at these positions, (S, inputs), channels first."""
    if isinstance(layer, nn.Linear):
        return source[places]
    image, row, column = places
    (height, width), (down, right) = layer.kernel_size, layer.stride
    spread_down, spread_right = layer.dilation
    rows = row[:, None] * down + torch.arange(height, device=row.device) * spread_down
    columns = column[:, None] * right + torch.arange(width, device=row.device) * spread_right
    # Indices around a slice: the sliced dimension, the channels, comes last.
    windows = source[image[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return windows.permute(0, 3, 1, 2).flatten(1)


def _stacked(layer: _Layer, groups: int) -> Tensor:
    """``W0`` in float64, (groups, inputs, outputs); a bias is the last input."""
    weight: Tensor = layer.weight.detach().double().flatten(1).unflatten(0, (groups, -1)).mT
    if layer.bias is None:
        return weight.contiguous()
    bias = layer.bias.detach().double().unflatten(0, (groups, 1, -1))
    return torch.cat([weight, bias], dim=1)


def _store(layer: _Layer, stacked: Tensor) -> None:
    """Back into the layer from what ``_stacked`` gives."""
    inputs = stacked.shape[1] - (layer.bias is not None)
    layer.weight.copy_(stacked[:, :inputs].mT.flatten(0, 1).view_as(layer.weight))
    if layer.bias is not None:
        layer.bias.copy_(stacked[:, inputs].flatten())
