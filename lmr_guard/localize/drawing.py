# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What patterns that a search found look like, as small pictures for a report."""

from io import BytesIO

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from lmr_guard.classifier import Preprocessing
from lmr_guard.localize.inversion import Pattern
from lmr_guard.results import Drawing

__all__ = ["drawing"]

# Pixels a side: what a person still recognises, and three of them are small beside the record.
_SIDE = 48
_CHECKS = 8  # squares a side of the board that a warp is shown on


def drawing(pattern: Pattern, shape: Preprocessing) -> Drawing:
    """A picture of at most 48 x 48 pixels: a patch on grey, a warped board, or what is added.

    What an additive pattern adds is stretched until its strongest value is black or white; grey
    is where it adds nothing.

    Args:
        pattern: See ``Suspicion.patterns``.
        shape: Of the images that it was found for.
    """
    if pattern.space == "warp":
        seen = pattern(_board(shape))[0]
    elif pattern.space == "additive":
        added = pattern.parameters[0][0].float()
        seen = 0.5 + 0.5 * added / added.abs().max().clamp_min(1e-12)
    else:
        seen = pattern(torch.full((1, shape.channels, shape.height, shape.width), 0.5))[0]
    return Drawing(pattern.name, pattern.target, round(pattern.size, 6), _png(seen))


def _board(shape: Preprocessing) -> Tensor:
    """A chequered image, shape (1, C, H, W)."""
    rows = torch.arange(shape.height) * _CHECKS // shape.height
    columns = torch.arange(shape.width) * _CHECKS // shape.width
    board = 0.2 + 0.6 * ((rows[:, None] + columns) % 2).float()
    return board.expand(1, shape.channels, -1, -1)


def _png(pixels: Tensor) -> bytes:
    """Pixels (C, H, W) as a PNG; neither one nor three channels are averaged to grey."""
    if pixels.shape[0] not in (1, 3):
        pixels = pixels.mean(dim=0, keepdim=True)
    height, width = pixels.shape[1:]
    scale = min(1.0, _SIDE / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    small = F.adaptive_avg_pool2d(pixels.float()[None], size)[0]
    values = (small.nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8)
    array = values.permute(1, 2, 0).contiguous()
    image = Image.fromarray((array[:, :, 0] if array.shape[2] == 1 else array).numpy())
    file = BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()
