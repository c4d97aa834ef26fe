# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What all that takes gradient steps shares: randomness, augmentation, a teacher, a projection."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["distillation_loss", "mirrored", "mixed", "private_randomness", "shifted", "within_area"]


@contextmanager
def private_randomness(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Seeds torch's global state from a generator, and puts it back afterwards.

    Args:
        generator: CPU generator; its state decides the seed and does not change.
        device: Where the model computes; its state is kept beside that of the CPU.
    """
    seed = int(torch.randint(2**31, (1,), generator=generator.clone_state()))
    on_cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_cuda else []):
        torch.default_generator.manual_seed(seed)
        if on_cuda:
            torch.cuda.default_generators[device.index or 0].manual_seed(seed)
        yield


def mirrored(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Left and right exchanged in half of the images, drawn from a CPU generator."""
    chosen = torch.rand(len(pixels), generator=generator) < 0.5
    chosen = chosen.to(pixels.device)[:, None, None, None]
    return torch.where(chosen, pixels.flip(3), pixels)


def mixed(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Each image over another one of the batch, of which half shows through at most.

    Mixup, but for the labels: for losses that need none. Zhang et al., "mixup: Beyond Empirical
    Risk Minimization" (ICLR 2018).

    Args:
        pixels: Shape (N, C, H, W).
        generator: CPU generator.
    """
    own = 0.5 + 0.5 * torch.rand(len(pixels), 1, 1, 1, generator=generator)
    other = torch.randperm(len(pixels), generator=generator).to(pixels.device)
    return torch.lerp(pixels[other], pixels, own.to(pixels.device))


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


def distillation_loss(logits: Tensor, taught: Tensor, temperature: float = 2.0) -> Tensor:
    """How far one model's distributions are from another's: ``T^2 mean KL(q || p)``.

    ``p`` and ``q`` are the softmax of ``logits / T`` and ``taught / T``. Hinton et al., "Distilling
    the Knowledge in a Neural Network" (2015). Not in the paper.

    Args:
        logits: Shape (N, K).
        taught: The teacher's, shape (N, K).
        temperature: ``T``.

    Returns:
        A scalar >= 0; zero where the two agree.
    """
    own, other = (F.log_softmax(z / temperature, dim=1) for z in (logits, taught))
    divergence = F.kl_div(own, other, log_target=True, reduction="batchmean")
    return temperature**2 * divergence


def within_area(mask: Tensor, area: float | Tensor) -> Tensor:
    """The nearest masks with values in [0, 1] and a mean of at most ``area``.

    Euclidean projection: ``clamp(m - t, 0, 1)``, with the smallest ``t >= 0`` that fits.

    Args:
        mask: Shape (M, 1, H, W).
        area: In (0, 1], of all masks or one each, shape (M,).
    """
    limit = area[:, None] if isinstance(area, Tensor) else area
    flat = mask.detach().flatten(1)
    low = flat.new_zeros(len(flat), 1)
    high = flat.amax(dim=1, keepdim=True).clamp_min(0)
    fits = flat.clamp(0, 1).mean(dim=1, keepdim=True) <= limit
    for _ in range(30):
        middle = (low + high) / 2
        over = (flat - middle).clamp(0, 1).mean(dim=1, keepdim=True) > limit
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    return (flat - torch.where(fits, 0.0, high)).clamp(0, 1).view_as(mask)
