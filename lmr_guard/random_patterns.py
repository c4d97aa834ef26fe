# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Patterns drawn at random, to be tried on a file: no network, no gradient and no trigger is seen.

Each has a kind and a strength. Patterns that share both are *likes*: what one of them does can be
compared with what the others do.

=========  ====================================================  ================================
kind       what it does                                          strength
=========  ====================================================  ================================
``patch``  a square, half of them in a corner, at an edge or in  side, as a share of the shorter
           the middle: flat, noise, checks, stripes, a snippet   side of the image
``frame``  the border, flat or noise                             width, likewise
``blend``  the whole image with noise, a flat colour, another    opacity
           clean image
``wave``   stripes or a sine along rows, columns or a diagonal   amplitude, in pixel units
           are added
``cast``   each colour is raised or lowered, or contrast is      pixel units
``warp``   the image is resampled along a smooth random field    root mean square; the image is 2
                                                                 wide and 2 high
=========  ====================================================  ================================
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lmr_guard.contracts import Labelled

__all__ = ["STRENGTHS", "Kind", "RandomPattern", "draw"]

Kind = Literal["patch", "frame", "blend", "wave", "cast", "warp"]

STRENGTHS: Mapping[Kind, tuple[float, ...]] = MappingProxyType(
    {
        "patch": (0.1, 0.16, 0.25),
        "frame": (0.04,),
        "blend": (0.1, 0.2),
        "wave": (0.04, 0.08),
        "cast": (0.08, 0.16),
        "warp": (0.05, 0.1),
    }
)
"""Of each kind, from weak to strong. All are weak: a strong one sends most images of an honest
network to one class as well, and says nothing."""

# Of each kind and strength; patches differ in more ways.
_EACH: Mapping[Kind, int] = MappingProxyType({"patch": 40})
_OTHERS = 24
_GRID = 4
_PERIODS = 8
_ANCHORS = (0.0, 0.5, 1.0)


@dataclass(frozen=True, slots=True, eq=False)
class RandomPattern:
    """One pattern.

    Args:
        kind: See the module.
        strength: Of ``STRENGTHS``.
        look: What was drawn, in a word or two, e.g. ``"flat"``.
        change: Pixels (N, C, H, W) to changed ones of that shape, each image on its own.
    """

    kind: Kind
    strength: float
    look: str
    change: Callable[[Tensor], Tensor]

    @property
    def group(self) -> tuple[Kind, float]:
        """What it shares with its likes."""
        return self.kind, self.strength

    def __call__(self, pixels: Tensor, /) -> Tensor:
        """Changed copies of pixels, in [0, 1]."""
        return self.change(pixels).clamp(0, 1)


def draw(images: Labelled, generator: torch.Generator) -> tuple[RandomPattern, ...]:
    """A few hundred patterns of all kinds and strengths, for images of this size.

    Args:
        images: Clean images, at least one; snippets and blends are taken from them.
        generator: CPU generator; decides everything: the same seed draws the same.
    """
    return tuple(
        RandomPattern(kind, strength, *_DRAWN[kind](images, strength, generator))
        for kind, strengths in STRENGTHS.items()
        for strength in strengths
        for _ in range(_EACH.get(kind, _OTHERS))
    )


_Drawn = tuple[str, Callable[[Tensor], Tensor]]


def _pick(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (1,), generator=generator))


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand(1, generator=generator))


def _colour(channels: int, generator: torch.Generator) -> Tensor:
    """White, black, a full colour or any colour; shape (C, 1, 1)."""
    way = _pick(4, generator)
    if way == 0:
        return torch.ones(channels, 1, 1)
    if way == 1:
        return torch.zeros(channels, 1, 1)
    drawn = torch.rand(channels, 1, 1, generator=generator)
    return drawn.round() if way == 2 else drawn


def _laid(mask: Tensor, image: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda pixels: torch.lerp(pixels, image.to(pixels), mask.to(pixels))


def _patch(images: Labelled, strength: float, generator: torch.Generator) -> _Drawn:
    channels, height, width = images.images.shape[1:]
    side = max(1, round(strength * min(height, width)))
    look, fill = _filled(images, side, generator)
    top, left = (_place(length - side, generator) for length in (height, width))
    mask, image = torch.zeros(1, height, width), torch.zeros(channels, height, width)
    mask[:, top : top + side, left : left + side] = 1
    image[:, top : top + side, left : left + side] = fill
    return look, _laid(mask, image)


def _place(room: int, generator: torch.Generator) -> int:
    """At one end, in the middle, or, in a third of the cases, anywhere.

    Both sides are drawn so; hence half of the patches are anchored along both.
    """
    anywhere = _uniform(0, 1, generator) < 0.3
    share = _uniform(0, 1, generator) if anywhere else _ANCHORS[_pick(3, generator)]
    return round(share * room)


def _filled(images: Labelled, side: int, generator: torch.Generator) -> tuple[str, Tensor]:
    """What a square shows, shape (C, side, side)."""
    channels, height, width = images.images.shape[1:]
    first, second = (_colour(channels, generator) for _ in range(2))
    rows = torch.arange(side)
    way = _pick(6, generator)
    if way < 2:
        return "flat", first.expand(-1, side, side)
    if way == 2:
        return "noise", torch.rand(channels, side, side, generator=generator)
    if way == 3:
        return "checks", torch.where((rows[:, None] + rows) % 2 == 0, first, second)
    if way == 4:
        bars = rows % 2 == 0
        lying = _pick(2, generator)
        return "stripes", torch.where(bars[:, None] if lying else bars[None], first, second)
    chosen = images.images[_pick(len(images), generator)].float() / 255
    top, left = (_pick(length - side + 1, generator) for length in (height, width))
    return "snippet", chosen[:, top : top + side, left : left + side]


def _frame(images: Labelled, strength: float, generator: torch.Generator) -> _Drawn:
    channels, height, width = images.images.shape[1:]
    thick = max(1, round(strength * min(height, width)))
    mask = torch.ones(1, height, width)
    mask[:, thick : height - thick, thick : width - thick] = 0
    if _pick(3, generator):
        flat = _colour(channels, generator).expand(-1, height, width)
        return "flat", _laid(mask, flat)
    return "noise", _laid(mask, torch.rand(channels, height, width, generator=generator))


def _blend(images: Labelled, strength: float, generator: torch.Generator) -> _Drawn:
    channels, height, width = images.images.shape[1:]
    mask = torch.full((1, height, width), strength)
    way = _pick(3, generator)
    if way == 0:
        return "noise", _laid(mask, torch.rand(channels, height, width, generator=generator))
    if way == 1:
        return "flat", _laid(mask, _colour(channels, generator).expand(-1, height, width))
    return "image", _laid(mask, images.images[_pick(len(images), generator)].float() / 255)


def _wave(images: Labelled, strength: float, generator: torch.Generator) -> _Drawn:
    channels, height, width = images.images.shape[1:]
    most = max(1, min(_PERIODS, height // 2, width // 2))
    periods, phase = 1 + _pick(most, generator), _uniform(0, 2 * math.pi, generator)
    down, across = torch.arange(height) / height, torch.arange(width) / width
    way = _pick(4, generator)
    along = (
        down[:, None].expand(-1, width),
        across.expand(height, -1),
        down[:, None] + across,
        down[:, None] - across,
    )[way]
    wave = torch.sin(2 * math.pi * periods * along + phase)
    stripes = bool(_pick(2, generator))
    added = strength * (wave.sign() if stripes else wave).expand(channels, -1, -1)
    where = ("rows", "columns", "diagonal", "diagonal")[way]
    look = f"{'stripes' if stripes else 'sine'}, {where}"
    return look, lambda pixels: pixels + added.to(pixels)


def _cast(images: Labelled, strength: float, generator: torch.Generator) -> _Drawn:
    channels = images.images.shape[1]
    way = _pick(3, generator)
    if way == 0:
        sign = 1 - 2 * _pick(2, generator)
        return "brightness", lambda pixels: pixels + sign * strength
    if way == 1:
        factor = 1 + 2 * strength * (1 - 2 * _pick(2, generator))
        return "contrast", lambda pixels: 0.5 + factor * (pixels - 0.5)
    signs = 1 - 2 * torch.randint(2, (channels, 1, 1), generator=generator)
    tint = strength * signs * torch.rand(channels, 1, 1, generator=generator).sqrt()
    return "tint", lambda pixels: pixels + tint.to(pixels)


def _warp(images: Labelled, strength: float, generator: torch.Generator) -> _Drawn:
    height, width = images.images.shape[2:]
    coarse = torch.randn(1, 2, _GRID, _GRID, generator=generator)
    flow = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)
    flow = flow * (strength / flow.square().mean().sqrt().clamp_min(1e-12))
    ys, xs = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
    still = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1)
    grid = still + flow[0].permute(1, 2, 0)

    def moved(pixels: Tensor) -> Tensor:
        field = grid.to(pixels).expand(len(pixels), -1, -1, -1)
        return F.grid_sample(pixels, field, padding_mode="border", align_corners=True)

    return "smooth", moved


_DRAWN: Mapping[Kind, Callable[[Labelled, float, torch.Generator], _Drawn]] = MappingProxyType(
    {
        "patch": _patch,
        "frame": _frame,
        "blend": _blend,
        "wave": _wave,
        "cast": _cast,
        "warp": _warp,
    }
)
