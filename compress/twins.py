# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Compressed forms as differentiable functions of the weights, for whoever trains against them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lmr_guard.classifier import Classifier
from lmr_guard.compress.groups import Groups, masked
from lmr_guard.compress.recipes import Recipe
from lmr_guard.contracts import Twin

__all__ = ["PrunedTwin", "RoundedTwin", "round_weights", "twins"]


def round_weights(weight: Tensor, bits: int = 8) -> Tensor:
    """Nearest values of a symmetric grid, one scale per output channel; gradients pass straight.

    Scale ``s_k = max |w_k| / (2^(bits-1) - 1)``, as ONNX Runtime's symmetric per-channel
    quantiser chooses it; ties go to the even integer.

    Args:
        weight: Shape (K, ...), K output channels.
        bits: Of the signed integers, >= 2.
    """
    peak = weight.detach().abs().flatten(1).amax(dim=1)
    scale = (peak / (2 ** (bits - 1) - 1)).clamp_min(torch.finfo(weight.dtype).tiny)
    scale = scale.view(-1, *[1] * (weight.ndim - 1))
    rounded = (weight.detach() / scale).round() * scale
    straight_through: Tensor = weight + (rounded - weight.detach())
    return straight_through


@dataclass(frozen=True, slots=True)
class RoundedTwin:
    """All convolution and linear weights rounded.

    Args:
        weights: Names of the parameters to round.
        bits: See ``round_weights``.
    """

    weights: tuple[str, ...]
    bits: int = 8

    @classmethod
    def of(cls, classifier: Classifier, bits: int = 8) -> "RoundedTwin":
        """The twin of a classifier's INT8 form."""
        layers = (
            f"{name}.weight"
            for name, layer in classifier.named_modules()
            if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear)
        )
        # A weight that two layers share stands under its first name only.
        own = dict(classifier.named_parameters())
        return cls(tuple(name for name in layers if name in own), bits)

    @property
    def name(self) -> str:
        """E.g. ``rounded-8``."""
        return f"rounded-{self.bits}"

    def __call__(
        self, parameters: Mapping[str, Tensor], generator: torch.Generator, /
    ) -> dict[str, Tensor]:
        """Rounded weights; draws nothing."""
        del generator
        return {name: round_weights(parameters[name], self.bits) for name in self.weights}


@dataclass(frozen=True, slots=True, eq=False)
class PrunedTwin:
    """The weakest channels cut by masks, at a ratio drawn anew each time.

    Half of the draws use one ratio for all layers, half draw each layer's own, so that layer
    shares found later by calibration are covered too.

    Args:
        groups: What can be cut.
        low: Smallest ratio.
        high: Largest ratio.
    """

    groups: Groups
    low: float
    high: float

    @property
    def name(self) -> str:
        """E.g. ``pruned-0.2-0.6``."""
        return f"pruned-{self.low:g}-{self.high:g}"

    def __call__(
        self, parameters: Mapping[str, Tensor], generator: torch.Generator, /
    ) -> dict[str, Tensor]:
        """Masked weights of the current weakest channels."""
        drawn = torch.rand(len(self.groups.all) + 2, generator=generator)
        own = drawn[0] < 0.5
        shares = drawn[2:] if own else drawn[1].expand(len(self.groups.all))
        counts = [
            min(
                round(group.units * (self.low + (self.high - self.low) * float(share))),
                group.units - 1,
            )
            for group, share in zip(self.groups.all, shares, strict=True)
        ]
        return masked(parameters, self.groups.masks(self.groups.cuts(parameters, counts)))


def twins(
    classifier: Classifier, recipes: Sequence[Recipe], groups: Groups | None = None
) -> tuple[Twin, ...]:
    """Twins of everything that these recipes will do to a classifier; none for float32 alone.

    Args:
        classifier: Left as it is.
        recipes: What it will be compressed by.
        groups: Its traced structure, where the caller has it already.

    Raises:
        StageError: A recipe prunes and nothing in the network can be cut.
    """
    found: list[Twin] = []
    if any(recipe.int8 for recipe in recipes):
        found.append(RoundedTwin.of(classifier))
    ratios = [recipe.prune.ratio for recipe in recipes if recipe.prune]
    if ratios:
        found.append(PrunedTwin(groups or Groups(classifier), min(ratios), max(ratios)))
    return tuple(found)
