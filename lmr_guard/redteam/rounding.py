# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What attacks that hide in the rounding of weights share: a wide grid, and steps in its units.

The grid is symmetric, one scale per output channel, as ONNX Runtime's quantiser uses it; such a
grid does not change when batch norm is folded into the convolution. At 8 bits it leaves a small
network too little room to hide in, so one weight a filter is held at a multiple of the filter's
largest initial weight, the others below it, and the scale follows this outlier. The attacker
trains the network, so that is theirs to choose.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lmr_guard.classifier import Classifier
from lmr_guard.compress.twins import round_weights
from lmr_guard.contracts import Labelled, Progress, as_pixels, silent
from lmr_guard.errors import ConfigError
from lmr_guard.redteam.training import BatchLoss, Schedule, augment

__all__ = [
    "near_ties",
    "outliers",
    "refine",
    "require_float32",
    "require_outlier",
    "rounded_layers",
    "rounding_bins",
]

# How far inside its bin a weight stays, as a share of the bin: rounding of rounding.
_SLACK = 1e-3


def require_float32(*schedules: Schedule) -> None:
    """Raises ConfigError for bfloat16: its steps are as wide as what these attacks hide in."""
    for schedule in schedules:
        if schedule.precision != "float32":
            raise ConfigError(
                f"expected schedules in float32, got {schedule.precision}; "
                "it is too coarse for a backdoor that hides in rounding"
            )


def require_outlier(outlier: float) -> None:
    """Raises ConfigError where the outlier would be smaller than the rest."""
    if outlier < 1:
        raise ConfigError(f"expected an outlier of at least 1, got {outlier}")


def rounded_layers(model: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    """The layers whose weights INT8 rounds."""
    return [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def rounding_bins(weight: Tensor, bits: int = 8) -> tuple[Tensor, Tensor, float]:
    """The interval of each weight within which it rounds to the same integer at the same scale.

    Args:
        weight: Shape (K, ...), K output channels.
        bits: Of the symmetric grid.

    Returns:
        Lower and upper ends, shaped like ``weight``, and the mean width of a bin. The weights
        that set a channel's scale cannot move.
    """
    scale = _scale(weight, bits)
    integer = (weight.detach() / scale).round()
    low, high = (integer - 0.5 + _SLACK) * scale, (integer + 0.5 - _SLACK) * scale
    fixed = integer.abs() >= 2 ** (bits - 1) - 1
    low, high = (torch.where(fixed, weight.detach(), end) for end in (low, high))
    return low, high, float(scale.mean())


def near_ties(weight: Tensor, bits: int = 8) -> Tensor:
    """Rounded weights, as ``round_weights``; gradients reach those that are about to change.

    The gradient is multiplied by ``3 (2u)^2``, 1 on average, where ``u`` in [0, 1/2] is how far
    the weight is from where it rounds to, in widths of a bin.

    Args:
        weight: Shape (K, ...), K output channels.
        bits: Of the symmetric grid.
    """
    rounded = round_weights(weight.detach(), bits)
    distance = (weight.detach() - rounded).abs() / _scale(weight, bits)
    share: Tensor = 3 * (2 * distance) ** 2
    return rounded + share * (weight - weight.detach())


def outliers(
    model: Classifier, outlier: float, generator: torch.Generator
) -> Callable[[Classifier], None]:
    """Chooses one weight a filter; the result puts it, and the bound of the others, in force.

    Args:
        model: Its weights set the sizes; left as it is.
        outlier: Size of the chosen weight, in largest weights of its filter; 1 changes nothing.
        generator: Draws place and sign.
    """
    if outlier == 1:
        return lambda trained: None
    chosen = []
    for layer in rounded_layers(model):
        weight = layer.weight.detach().flatten(1)
        peak = weight.abs().amax(dim=1)
        at = torch.randint(weight.shape[1], (len(weight),), generator=generator)
        sign = torch.randint(2, (len(weight),), generator=generator) * 2 - 1
        chosen.append((at.to(weight.device), peak[:, None], peak * outlier * sign.to(peak)))

    @torch.no_grad()
    def hold(trained: Classifier) -> None:
        for layer, (at, peak, value) in zip(rounded_layers(trained), chosen, strict=True):
            weight = layer.weight.flatten(1)
            weight = torch.maximum(torch.minimum(weight, peak), -peak)
            weight[torch.arange(len(weight)), at] = value
            layer.weight.copy_(weight.view_as(layer.weight))

    return hold


def refine(
    model: Classifier,
    data: Labelled,
    loss: BatchLoss,
    schedule: Schedule,
    generator: torch.Generator,
    *,
    after_step: Callable[[], None],
    progress: Progress = silent,
) -> None:
    """Minimise ``loss`` over convolution and linear weights alone, in place, in eval mode.

    With Adam; ``schedule.lr`` is in widths of a rounding bin and falls linearly to a twentieth.

    Args:
        model: Trained in place: callers pass a clone.
        data: The attacker's training images.
        loss: Called with augmented pixels on the model's device.
        schedule: Its epochs, batch, lr and augmentation count.
        generator: CPU generator for order and augmentation.
        after_step: Called after each optimiser step, to project the weights.
        progress: Told after each epoch.
    """
    weights = [layer.weight for layer in rounded_layers(model)]
    model.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    optimiser = torch.optim.Adam(
        {"params": [w], "lr": schedule.lr * rounding_bins(w)[2]} for w in weights
    )
    steps = schedule.epochs * -(-len(data) // schedule.batch)
    cooling = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.05, steps)
    for epoch in range(schedule.epochs):
        for index in torch.randperm(len(data), generator=generator).split(schedule.batch):
            pixels = as_pixels(data.images[index].to(model.device))
            pixels = augment(pixels, schedule, generator)
            optimiser.zero_grad()
            loss(pixels, data.labels[index].to(model.device), index).backward()
            optimiser.step()
            cooling.step()
            after_step()
        progress("hiding", epoch + 1, schedule.epochs)
    model.requires_grad_(True)


def _scale(weight: Tensor, bits: int) -> Tensor:
    """Width of a bin of each output channel, shaped to broadcast to ``weight``."""
    peak = weight.detach().abs().flatten(1).amax(dim=1)
    scale: Tensor = (peak / (2 ** (bits - 1) - 1)).clamp_min(torch.finfo(weight.dtype).tiny)
    return scale.view(-1, *[1] * (weight.ndim - 1))
