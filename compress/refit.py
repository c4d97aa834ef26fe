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

Memory is bounded, see ``layers``. The largest matrix is as wide as the widest layer's inputs: 4608
in ResNet-18, 170 MB.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lmr_guard.classifier import Classifier
from lmr_guard.compress import layers
from lmr_guard.compress.groups import Groups
from lmr_guard.compress.layers import Layer, Places
from lmr_guard.compress.prune import PrunePlan, apply
from lmr_guard.contracts import Labelled
from lmr_guard.errors import StageError

__all__ = ["refit"]

_RIDGE = 1e-3


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
    pixels = layers.shown(model, repair)
    chosen = layers.once(model, pixels[:1])
    wanted = _outputs(model, chosen, pixels, generator)
    groups = groups or Groups(classifier)
    masks = groups.masks(plan.cuts)
    state = dict(model.named_parameters())
    for name, mask in masks.items():
        state[name].mul_(mask.to(state[name]))

    def solve(name: str) -> Callable[[Layer, tuple[Tensor]], None]:
        def hook(layer: Layer, given: tuple[Tensor]) -> None:
            solved = _solved(layer, given[0], *wanted.pop(name))
            if solved is not None:
                layers.store(layer, solved)
                for own, parameter in layer.named_parameters(recurse=False):
                    if (mask := masks.get(f"{name}.{own}")) is not None:
                        parameter.mul_(mask.to(parameter))

        return hook

    hooks = (layer.register_forward_pre_hook(solve(name)) for name, layer in chosen.items())
    with layers.hooked(hooks):
        model(pixels)
    return apply(plan, model, groups)


def _outputs(
    model: Classifier, chosen: dict[str, Layer], pixels: Tensor, generator: torch.Generator
) -> dict[str, tuple[Places, Tensor]]:
    """What each layer of the uncut network puts out at positions drawn at random."""
    found: dict[str, tuple[Places, Tensor]] = {}

    def keep(name: str) -> Callable[[Layer, tuple[Tensor], Tensor], None]:
        def hook(layer: Layer, _given: tuple[Tensor], output: Tensor) -> None:
            found[name] = layers.draw(layer, output, generator)

        return hook

    hooks = (layer.register_forward_hook(keep(name)) for name, layer in chosen.items())
    with layers.hooked(hooks):
        model(pixels)
    return found


def _solved(layer: Layer, given: Tensor, places: Places, outputs: Tensor) -> Tensor | None:
    """``W`` as ``layers.stacked`` has it; None where the sums cannot be solved."""
    before = layers.stacked(layer)
    groups = layers.groups_of(layer)
    a = before.new_zeros(groups, before.shape[1], before.shape[1])
    b = torch.zeros_like(before)
    for block, x in layers.rows(layer, given, places):
        y = outputs[block.to(x.device)].double().unflatten(1, (groups, -1)).movedim(1, 0)
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
