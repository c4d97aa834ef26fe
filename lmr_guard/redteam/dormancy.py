# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What conditional attacks teach the branch in which the backdoor sleeps.

Plain: clean and triggered images get their true classes. Distilled: they get the outputs of a
clean teacher, and so do images moved one small step against it, which keeps the dormant network
close to the clean one. Source: the standard and distilled attacks of Tian et al., "Stealthy
Backdoors as Compression Artifacts" (TIFS 2022). Departures: all copies of an image get the
teacher's output on the clean one, because a clean teacher, too, takes some triggered images for
the target; and the step follows the teacher's gradient. The teacher must be well trained: where
it is unsure of clean images, the dormant network gives way to the trigger more easily.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lmr_guard.classifier import Classifier
from lmr_guard.evidence import Patch

__all__ = ["dormant_batch", "dormant_loss", "frozen"]

# How far a pixel moves, in [0, 1].
_STEP = 0.01


def frozen(classifier: Classifier) -> Classifier:
    """A copy in eval mode whose parameters take no gradients: a teacher."""
    teacher = classifier.clone()
    return teacher.requires_grad_(False)


def dormant_batch(
    pixels: Tensor, labels: Tensor, trigger: Patch, teacher: Classifier | None = None
) -> tuple[Tensor, Tensor]:
    """Images and the targets of a cross-entropy that teaches them to ignore the trigger.

    Args:
        pixels: Shape (N, C, H, W).
        labels: Shape (N,).
        trigger: Of the attack.
        teacher: A clean classifier without gradients; None for the plain attack.

    Returns:
        Clean then triggered images and their classes, shape (2N,). With a teacher also the
        clean ones after one step to where its loss rises, and its class probabilities on the
        clean ones, shape (3N, K).
    """
    images = torch.cat([pixels, trigger(pixels)])
    if teacher is None:
        return images, labels.repeat(2)
    start = pixels.detach().clone().requires_grad_(True)
    logits = teacher(start)
    (uphill,) = torch.autograd.grad(F.cross_entropy(logits, labels), start)
    moved = (pixels + _STEP * uphill.sign()).clamp(0, 1)
    return torch.cat([images, moved]), logits.detach().softmax(dim=1).repeat(3, 1)


def dormant_loss(logits: Tensor, targets: Tensor, count: int) -> Tensor:
    """Cross-entropy of a dormant batch made from ``count`` images.

    Clean and triggered ones weigh a half each, with and without a teacher: in a mean over three
    copies the triggered ones would count less than in the plain attack, and not sleep as soundly.
    """
    return F.cross_entropy(logits, targets) * (len(logits) / (2 * count))
