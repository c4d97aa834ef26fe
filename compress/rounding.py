# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Rounds weights so that each layer still puts out what it did, not each weight to the nearest.

A backdoor that sleeps until weights are rounded lives in the one direction in which all of them
move when each goes to the nearest step of its grid. Rounded otherwise, it does not wake: weights
are taken one input after the other, and what the rounding of one changes of the layer's outputs
on clean images is made up for by those that are not rounded yet::

    q = s round(w_i / s),   w_j -= U_ij (w_i - q) / U_ii  for j > i,   U'U = (X'X + l I)^-1

``X`` are the layer's inputs on clean images, a row per position of an output, ``s`` the step of
INT8, a 127th of the largest weight of each output channel, which stays where it is so that the
grid does; a bias, where there is one, is the last to make up for something and is not rounded. No
label is looked at, and no trigger. What is on its grid is left there by whoever rounds it to the
nearest, ONNX Runtime too.

Sources: rounding one by one with what is left made up for is that of Frantar et al., "OPTQ" (ICLR
2023), after Hassibi and Stork's surgeon (1993). That rounding otherwise than to the nearest keeps
such a backdoor asleep is the finding of "Nearest is Not Dearest" (EFRAP, CVPR 2024), which learns
which way to round; this here does not.
"""

import torch
from torch import Tensor, nn

from lmr_guard.classifier import Classifier
from lmr_guard.compress import layers
from lmr_guard.compress.layers import Layer, Places
from lmr_guard.compress.quantize import require_bits, rounded
from lmr_guard.contracts import Labelled
from lmr_guard.errors import StageError

__all__ = ["crowding", "rounded_alike", "settled"]

_EDGE = 0.1
_RIDGE = 1e-2
_WIDEST = 8192  # inputs of a layer, squared in float64: 512 MB


@torch.no_grad()
def crowding(classifier: Classifier, *, bits: int = 8) -> tuple[float, int]:
    """How many weights lie near where they would round the other way: the share, and of how many.

    Near is a tenth of a step of INT8's grid. What training leaves knows nothing of that grid and
    is spread over its steps alike: a fifth lies there, or less where most weights are smaller than
    a step. Who trains weights within the step that they round to, so that something sleeps until
    they are rounded, leaves them at its edges.

    Args:
        classifier: Its convolutions and linear layers count, but for the largest weight of each
            output channel, which is on the grid.
        bits: Of the grid, 2 to 16.
    """
    top, near, count = 2 ** (bits - 1) - 1, 0, 0
    for layer in classifier.modules():
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear):
            weights = layer.weight.double().flatten(1)
            peaks = weights.abs().amax(dim=1, keepdim=True)
            steps = (weights * (top / peaks))[weights.abs() < peaks]
            near += int(((steps - steps.round()).abs() > 0.5 - _EDGE).sum())
            count += len(steps)
    return (near / count if count else 0.0), count


def rounded_alike(
    classifier: Classifier, repair: Labelled, generator: torch.Generator, *, bits: int = 8
) -> Classifier:
    """A copy whose convolution and linear weights all stand on INT8's grid.

    What cannot be settled goes to the nearest. Arguments and what is raised are as for ``settled``.

    Args:
        classifier: In eval mode; left as it is.
        repair: See there.
        generator: See there.
        bits: See there.
    """
    return rounded(settled(classifier, repair, generator, bits=bits), bits)


@torch.no_grad()
def settled(
    classifier: Classifier, repair: Labelled, generator: torch.Generator, *, bits: int = 8
) -> Classifier:
    """A copy whose convolution and linear weights stand on INT8's grid, as the module says.

    A layer stays as it is where it runs more than once or not as a module, pads otherwise than by
    zeros, has more than 8192 inputs, or its sums are too ill-conditioned.

    Args:
        classifier: In eval mode; left as it is.
        repair: Clean images; their labels are not looked at.
        generator: CPU generator; draws the positions.
        bits: 2 to 16.

    Raises:
        ConfigError: Other bits.
        StageError: There is no image.
    """
    require_bits(bits)
    if not len(repair):
        raise StageError("expected clean images to round weights on, got none; give some")
    model = classifier.clone()
    pixels = layers.shown(model, repair)
    chosen = layers.once(model, pixels[:1])
    top = 2 ** (bits - 1) - 1

    def settle(layer: Layer, given: tuple[Tensor], output: Tensor) -> None:
        """Behind the layer, whose output is there already: all see what the float network gives."""
        places, _ = layers.draw(layer, output, generator)
        sums = _sums(layer, given[0], places)
        found = _on_grid(layers.stacked(layer), sums, top, biased=layer.bias is not None)
        if found is not None:
            layers.store(layer, found)

    narrow = [layer for layer in chosen.values() if layer.weight[0].numel() <= _WIDEST]
    with layers.hooked(layer.register_forward_hook(settle) for layer in narrow):
        model(pixels)
    return model


def _sums(layer: Layer, given: Tensor, places: Places) -> Tensor:
    """``X'X``, (groups, inputs, inputs), float64."""
    wide = layer.weight[0].numel() + (layer.bias is not None)
    found = given.new_zeros(layers.groups_of(layer), wide, wide, dtype=torch.float64)
    for _, x in layers.rows(layer, given, places):
        found += x.mT @ x
    return found


def _on_grid(weights: Tensor, sums: Tensor, top: int, *, biased: bool) -> Tensor | None:
    """Weights as ``layers.stacked`` has them, rounded; None where the sums cannot be solved.

    Args:
        weights: Shape (groups, inputs, outputs), float64.
        sums: ``X'X``, (groups, inputs, inputs), float64; changed.
        top: The largest integer of the grid.
        biased: Whether the last input is a bias, which is not rounded.
    """
    inputs = weights.shape[1] - biased
    diagonal = sums.diagonal(dim1=1, dim2=2)
    alive = (diagonal > 0).sum(dim=1).clamp_min(1)
    ridge = _RIDGE * diagonal.sum(dim=1) / alive
    diagonal.add_(ridge.clamp_min(torch.finfo(torch.float32).tiny)[:, None])
    factor, failed = torch.linalg.cholesky_ex(sums)
    if bool(failed.any()):
        return None
    inverse, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(factor), upper=True)
    if bool(failed.any()) or not bool(inverse.isfinite().all()):
        return None
    size, peak = weights[:, :inputs].abs().max(dim=1)
    step = (size / top).clamp_min(torch.finfo(torch.float64).tiny)
    left = weights.clone()
    for i in range(inputs):
        now = left[:, i]
        whole = torch.where(peak == i, weights[:, i].sign() * top, (now / step).round())
        kept = whole.clamp(-top, top) * step
        share = (now - kept) / inverse[:, i, i, None]
        left[:, i] = kept
        left[:, i + 1 :] -= inverse[:, i, i + 1 :, None] * share[:, None]
    return left
