# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What attacks that poison the training set share: which images, and training on them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Labelled
from lmr_guard.redteam.training import EpochProgress, Schedule, fit, silent_epochs

__all__ = ["Poison", "drawn", "poisoned", "train"]


@dataclass(frozen=True, slots=True, eq=False)
class Poison:
    """A change to a fixed part of the training images.

    Args:
        change: Pixels (N, C, H, W) to changed pixels of that shape.
        marked: Which positions of the training data it is made to, bool, shape (N,).
        target: Class that they are trained to; None keeps the true one.
    """

    change: Callable[[Tensor], Tensor]
    marked: Tensor
    target: int | None


def drawn(
    labels: Tensor, share: float, generator: torch.Generator, *, of: int | None = None
) -> Tensor:
    """A random choice of training images, each with probability ``share``; bool, shape (N,).

    Args:
        labels: Shape (N,).
        share: In [0, 1].
        generator: CPU generator.
        of: Only images of this class are chosen: what a clean-label attack can do.
    """
    chosen = torch.rand(len(labels), generator=generator) < share
    return chosen if of is None else chosen & (labels.cpu() == of)


@torch.no_grad()
def poisoned(
    pixels: Tensor, labels: Tensor, index: Tensor, poisons: Sequence[Poison]
) -> tuple[Tensor, Tensor]:
    """One batch as the attacker shows it: pixels (N, C, H, W), labels (N,).

    Args:
        pixels: Shape (N, C, H, W).
        labels: Shape (N,).
        index: Positions of the images in the training data, shape (N,), on the CPU.
        poisons: Changes, made in this order.
    """
    for poison in poisons:
        marked = poison.marked[index].to(pixels.device)
        # Only the marked ones are computed: a change may be a network of its own.
        pixels = pixels.index_put((marked,), poison.change(pixels[marked]))
        if poison.target is not None:
            labels = labels.masked_fill(marked, poison.target)
    return pixels, labels


def train(
    model: Classifier,
    data: Labelled,
    poisons: Sequence[Poison],
    schedule: Schedule,
    generator: torch.Generator,
    *,
    after_step: Callable[[], None] | None = None,
    progress: EpochProgress = silent_epochs,
) -> None:
    """Cross-entropy on the poisoned data, in place; changes are made after augmentation.

    So a pattern always stands at its place, and which images are poisoned never changes.
    """

    def loss(pixels: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        images, aimed = poisoned(pixels, labels, index, poisons)
        return F.cross_entropy(model(images), aimed, label_smoothing=schedule.smoothing)

    fit(
        model,
        data,
        loss,
        schedule,
        generator,
        after_step=after_step,
        progress=progress,
    )
