# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Universal changes of an image that draw clean images to one class.

A backdoor is a change that sends any image to the attacker's class. Whoever repairs a model does
not know it, but can ask the model for changes with that effect, and train the model not to follow
them. They are of three kinds, as triggers are:

=========  ================================  ======================================================
kind       what becomes of the image ``x``   bound
=========  ================================  ======================================================
patch      ``(1 - m) x + m p``               ``mean(m) <= area``, of every second ``3 area``
veil       ``(1 - o) x + o p``               the opacity ``o`` is fixed
warp       ``x`` read along a smooth field   no displacement above ``reach``
           of 4 x 4 displacements
=========  ================================  ======================================================

Sources: universal adversarial perturbations with a budget of area, as in trigger inversion (Wang et
al., "Neural Cleanse", S&P 2019); the warp is that of Nguyen and Tran, "WaNet" (ICLR 2021). Nothing
here sees a real trigger.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from lmr_guard.training import within_area

__all__ = ["Lures"]

_LARGER = 3.0
_CELLS = 4
_REACH = 1.5  # Pixels of an image of up to 32; larger images are moved in proportion.
_USUAL = 32


class Lures:
    """Several changes at once; an image meets one of them, drawn at random.

    Args:
        kinds: How many patches, veils and warps.
        shape: Channels, rows, columns of the images.
        area: Largest mean of a patch's mask, of every second three times as much: what is found
            small does not stand for a large trigger, nor the other way round.
        opacity: Of a veil.
        rate: Step size of Adam, in units of mask and pattern; of warps in units of their reach.
        generator: CPU generator for the start and the draws.
        device: Where they live.
    """

    def __init__(
        self,
        kinds: tuple[int, int, int],
        shape: tuple[int, int, int],
        *,
        area: float,
        opacity: float,
        rate: float,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        channels, height, width = shape
        self.kinds = kinds
        self.patches, self.veils, self.warps = kinds
        self.opacity, self.generator = opacity, generator
        areas = area * torch.tensor([1.0, _LARGER]).repeat(self.patches)[: self.patches]
        self.areas = areas.clamp_max(1).to(device)
        start = (
            2
            * areas[:, None, None, None]
            * torch.rand(self.patches, 1, height, width, generator=generator)
        )
        pattern = torch.rand(self.patches, channels, height, width, generator=generator)
        veil = torch.rand(self.veils, channels, height, width, generator=generator)
        field = 2 * torch.rand(self.warps, 2, _CELLS, _CELLS, generator=generator) - 1
        self.mask = within_area(start.to(device), self.areas).requires_grad_(True)
        self.pattern = pattern.to(device).requires_grad_(True)
        self.veil = veil.to(device).requires_grad_(True)
        self.field = field.to(device).requires_grad_(True)
        self._own = [self.mask, self.pattern, self.veil, self.field]
        self._optimiser = torch.optim.Adam(self._own, rate, maximize=True)
        reach = _REACH * max(1.0, min(height, width) / _USUAL)
        # A grid from corner to corner runs from -1 to 1.
        self._scale = torch.tensor([2 * reach / width, 2 * reach / height], device=device)

    def __len__(self) -> int:
        """How many."""
        return sum(self.kinds)

    def __call__(self, pixels: Tensor, /) -> Tensor:
        """Pixels (N, C, H, W) with a lure each; gradients reach the lures."""
        drawn = torch.randint(len(self), (len(pixels),), generator=self.generator)
        return self._changed(pixels, drawn)

    def each(self, pixels: Tensor) -> Iterator[Tensor]:
        """The same pixels (N, C, H, W) under one lure after the other."""
        for number in range(len(self)):
            yield self._changed(pixels, torch.full((len(pixels),), number))

    def climb(self, pull: Tensor) -> None:
        """One step towards a larger ``pull``, a scalar that depends on the lures.

        Parameters of the model get no gradient, and the graph is kept for the caller's own step.
        """
        slopes = torch.autograd.grad(pull, self._own, retain_graph=True, allow_unused=True)
        for parameter, slope in zip(self._own, slopes, strict=True):
            parameter.grad = slope
        self._optimiser.step()
        with torch.no_grad():
            self.mask.copy_(within_area(self.mask, self.areas))
            self.pattern.clamp_(0, 1)
            self.veil.clamp_(0, 1)
            self.field.clamp_(-1, 1)

    def _changed(self, pixels: Tensor, drawn: Tensor) -> Tensor:
        """Each image under the lure of its number; CPU numbers, shape (N,)."""
        drawn = drawn.to(pixels.device)
        covered, veiled = drawn < self.patches, drawn >= self.patches
        warped = drawn >= self.patches + self.veils
        veiled &= ~warped
        changed = pixels
        if covered.any():
            own = drawn[covered]
            inside = torch.lerp(pixels[covered], self.pattern[own], self.mask[own])
            changed = changed.index_put((covered,), inside)
        if veiled.any():
            own = drawn[veiled] - self.patches
            under = torch.lerp(pixels[veiled], self.veil[own], self.opacity)
            changed = changed.index_put((veiled,), under)
        if warped.any():
            own = drawn[warped] - self.patches - self.veils
            changed = changed.index_put((warped,), self._moved(pixels[warped], own))
        return changed

    def _moved(self, pixels: Tensor, own: Tensor) -> Tensor:
        """Read along the fields of these numbers, bilinear between pixels."""
        height, width = pixels.shape[2:]
        rows = torch.linspace(-1, 1, height, device=pixels.device)
        columns = torch.linspace(-1, 1, width, device=pixels.device)
        still = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
        smooth = F.interpolate(self.field, (height, width), mode="bicubic", align_corners=True)
        grid = still + smooth.permute(0, 2, 3, 1)[own] * self._scale
        moved: Tensor = F.grid_sample(pixels, grid, padding_mode="border", align_corners=True)
        return moved
