# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What changes images while a class is searched for: patches, additive patterns, warps.

Parameters of several classes are drawn, kept within a budget for each, and tried on images
together; ``inversion`` says what their sizes are and where they come from.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lmr_guard.training import within_area

__all__ = ["KINDS", "SPACES", "Kind", "Space"]

Space = Literal["patch", "additive", "warp"]
SPACES: tuple[Space, ...] = ("patch", "additive", "warp")

_GRID = 4


@dataclass(frozen=True, slots=True)
class Kind:
    """One space.

    Args:
        start: First budget. Generous, but for warps: those that are trained with noise beside them
            have a slope to the one that counts only near to it, a pixel or less away.
        rate: Step size of Adam.
        draw: Parameters for images of shape (count, C, H, W).
        project: Parameters (changed in place) into budgets (count,).
        apply: Parameters of ``count`` rows to pixels (count, B, C, H, W).
    """

    start: float
    rate: float
    draw: Callable[[tuple[int, int, int, int], torch.Generator], list[Tensor]]
    project: Callable[[Sequence[Tensor], Tensor], None]
    apply: Callable[[Sequence[Tensor], Tensor], Tensor]


def _draw_patch(shape: tuple[int, int, int, int], generator: torch.Generator) -> list[Tensor]:
    count, channels, height, width = shape
    mask = 0.3 * torch.rand(count, 1, height, width, generator=generator)
    return [mask, torch.rand(count, channels, height, width, generator=generator)]


def _project_patch(parameters: Sequence[Tensor], budgets: Tensor) -> None:
    mask, pattern = parameters
    mask.copy_(within_area(mask, budgets))
    pattern.clamp_(0, 1)


def _apply_patch(parameters: Sequence[Tensor], pixels: Tensor) -> Tensor:
    mask, pattern = parameters
    return torch.lerp(pixels, pattern[:, None], mask[:, None])


def _draw_additive(shape: tuple[int, int, int, int], generator: torch.Generator) -> list[Tensor]:
    return [1e-3 * torch.randn(shape, generator=generator)]


def _project_norm(parameters: Sequence[Tensor], budgets: Tensor) -> None:
    (pattern,) = parameters
    size = pattern.flatten(1).square().mean(dim=1).sqrt()
    pattern.mul_((budgets / size.clamp_min(1e-12)).clamp(max=1).view(-1, 1, 1, 1))


def _apply_additive(parameters: Sequence[Tensor], pixels: Tensor) -> Tensor:
    return (pixels + parameters[0][:, None]).clamp(0, 1)


def _draw_warp(shape: tuple[int, int, int, int], generator: torch.Generator) -> list[Tensor]:
    return [0.01 * torch.randn(shape[0], 2, _GRID, _GRID, generator=generator)]


def _apply_warp(parameters: Sequence[Tensor], pixels: Tensor) -> Tensor:
    count, batch, _, height, width = pixels.shape
    flow = F.interpolate(parameters[0], (height, width), mode="bicubic", align_corners=True)
    ys = torch.linspace(-1, 1, height, device=pixels.device)
    xs = torch.linspace(-1, 1, width, device=pixels.device)
    still = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1)
    grid = (still + flow.permute(0, 2, 3, 1))[:, None].expand(count, batch, height, width, 2)
    moved: Tensor = F.grid_sample(
        pixels.flatten(0, 1), grid.flatten(0, 1), padding_mode="border", align_corners=True
    )
    unclipped: Tensor = moved.unflatten(0, (count, batch))
    return unclipped.clamp(0, 1)


KINDS: Mapping[Space, Kind] = MappingProxyType(
    {
        "patch": Kind(0.15, 0.15, _draw_patch, _project_patch, _apply_patch),
        "additive": Kind(0.15, 0.06, _draw_additive, _project_norm, _apply_additive),
        "warp": Kind(0.03, 0.006, _draw_warp, _project_norm, _apply_warp),
    }
)
"""How each is searched."""
