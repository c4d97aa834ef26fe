# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Batch norm of a network that was cut: whose statistics it goes by."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Labelled
from lmr_guard.errors import StageError

__all__ = ["batch_size", "reestimate_bn", "use_batch_statistics"]


@torch.no_grad()
def reestimate_bn(classifier: Classifier, repair: Labelled, batch: int = 64) -> Classifier:
    """A copy whose BN statistics are the cumulative average over clean images.

    Pruning shifts the activations that the stored statistics describe. Only batch norms run in
    train mode. Each batch takes every n-th image, because stored images are often sorted by
    class. A network without batch norm comes back as a plain copy.

    Args:
        classifier: Left as it is.
        repair: Clean images, at least 2.
        batch: Images per pass.

    Raises:
        StageError: Fewer than 2 images.
    """
    twin = classifier.clone()
    norms = _tracking(twin)
    if not norms:
        return twin
    if len(repair) < 2:
        raise StageError(
            f"expected at least 2 clean images for BN statistics, got {len(repair)}; give more"
        )
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    passes = min(-(-len(repair) // batch), len(repair) // 2)
    for first in range(passes):
        twin(repair.subset(torch.arange(first, len(repair), passes)).pixels.to(twin.device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return twin.eval()


def batch_size(count: int) -> int:
    """64, or 65 where the last of so many images would be alone: batch statistics need two.

    >>> batch_size(128), batch_size(129)
    (64, 65)
    """
    return 64 + (count % 64 == 1)


def use_batch_statistics(model: nn.Module) -> None:
    """Normalise by what each batch shows, in place, as new statistics or refit layers will."""
    for norm in _tracking(model):
        norm.train()


def _tracking(model: nn.Module) -> list[_BatchNorm]:
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
