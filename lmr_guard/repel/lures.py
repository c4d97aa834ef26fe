# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Universal patterns that draw clean images to one class, kept up to date while a model changes.

A backdoor is a pattern that sends any image to the attacker's class. Whoever repairs a model does
not know it, but can ask the model for patterns with that effect, and train the model not to follow
them. The search is that of universal adversarial perturbation with a budget of area, as in trigger
inversion (Wang et al., "Neural Cleanse", S&P 2019); keeping the patterns up to date step by step
makes it the minimax of adversarial unlearning (Zeng et al., "I-BAU", ICLR 2022) with one step each.
Nothing here sees a real trigger.
"""

import torch
from torch import Tensor

from lmr_guard.training import within_area

__all__ = ["Lures"]


class Lures:
    """Several patterns at once; an image meets one of them, drawn at random.

    ``out = (1 - m) pixels + m pattern`` with the mask ``m`` in [0, 1] and ``mean(m) <= area``.

    Args:
        count: Number of patterns.
        shape: Channels, rows, columns of the images.
        area: Largest mean of a mask.
        rate: Step size of Adam, in units of mask and pattern.
        generator: CPU generator for the start and the draws.
        device: Where the patterns live.
    """

    def __init__(
        self,
        count: int,
        shape: tuple[int, int, int],
        *,
        area: float,
        rate: float,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        channels, height, width = shape
        start = 2 * area * torch.rand(count, 1, height, width, generator=generator)
        pattern = torch.rand(count, channels, height, width, generator=generator)
        self.area = area
        self.generator = generator
        self.mask = within_area(start, area).to(device).requires_grad_(True)
        self.pattern = pattern.to(device).requires_grad_(True)
        self._optimiser = torch.optim.Adam([self.mask, self.pattern], rate, maximize=True)

    def __call__(self, pixels: Tensor, /) -> Tensor:
        """Pixels (N, C, H, W) with a pattern each; gradients reach the patterns."""
        drawn = torch.randint(len(self.mask), (len(pixels),), generator=self.generator)
        drawn = drawn.to(pixels.device)
        return torch.lerp(pixels, self.pattern[drawn], self.mask[drawn])

    def climb(self, pull: Tensor) -> None:
        """One step towards a larger ``pull``, a scalar that depends on the patterns.

        Parameters of the model get no gradient, and the graph is kept for the caller's own step.
        """
        self.mask.grad, self.pattern.grad = torch.autograd.grad(
            pull, [self.mask, self.pattern], retain_graph=True
        )
        self._optimiser.step()
        with torch.no_grad():
            self.mask.copy_(within_area(self.mask, self.area))
            self.pattern.clamp_(0, 1)
