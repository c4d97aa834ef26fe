# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Random changes to training images, each image on its own; shapes and range are kept."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["mirrored", "shifted"]


def mirrored(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Left and right exchanged in half of the images, drawn from a CPU generator."""
    chosen = torch.rand(len(pixels), generator=generator) < 0.5
    chosen = chosen.to(pixels.device)[:, None, None, None]
    return torch.where(chosen, pixels.flip(3), pixels)


def shifted(pixels: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Translated by up to ``most`` pixels along both axes, the border repeated outwards.

    Args:
        pixels: Shape (N, C, H, W).
        most: Largest translation; 0 returns the input.
        generator: CPU generator.
    """
    if not most:
        return pixels
    n, _, height, width = pixels.shape
    padded = F.pad(pixels, (most, most, most, most), mode="replicate")
    offsets = torch.randint(0, 2 * most + 1, (2, n), generator=generator).to(pixels.device)
    rows = offsets[0][:, None] + torch.arange(height, device=pixels.device)
    columns = offsets[1][:, None] + torch.arange(width, device=pixels.device)
    index = torch.arange(n, device=pixels.device)[:, None, None]
    return padded[index, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
