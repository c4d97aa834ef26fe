# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""How near other images lie to each class by nature, so that it is no wonder if a little suffices.

A class that much resembles others (shirts among garments) needs smaller patterns than they do, with
no backdoor at all. How much it resembles them shows in clean images: with the margins
``m_c(x) = z_y(x)(x) - z_c(x)`` over images x of other classes, a class is near whose lower quartile
is small. A backdoor leaves that alone, for it is trained to be silent on clean images. So
strangeness is divided by nearness. Up to a fifth nearer than usual is nothing that needs an excuse,
and one that is very near is no less strange than half. The score is ours; docs/methods/tried.md has
the numbers.
"""

import torch
from torch import Tensor

from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Labelled
from lmr_guard.measure import predict

__all__ = ["MOST", "USUAL", "nearness"]

USUAL = 1.2
"""Classes of trained networks differ by that much, backdoored or not."""

MOST = 2.0
"""Nearness excuses no more than that: whoever plants a backdoor could also make its class near."""

_QUARTILE = 0.25


def nearness(classifier: Classifier, images: Labelled) -> Tensor:
    """How many times nearer than usual each class lies to images of other classes.

    ``q_c / USUAL`` with ``q_c`` the median of the other classes' lower quartiles of margins over
    the class's own. Uses no randomness.

    Args:
        classifier: As received, in eval mode: a compressed form may send clean images to a
            backdoor's class.
        images: Clean images; those that the model gets wrong are not looked at.

    Returns:
        Shape (K,), in [1, ``MOST``]; 1 where there are no images of other classes.
    """
    logits = predict(classifier, images)
    margins = logits.gather(1, images.labels[:, None]) - logits
    right = logits.argmax(dim=1) == images.labels
    quartiles = torch.full((logits.shape[1],), torch.nan)
    for k in range(logits.shape[1]):
        others = margins[right & (images.labels != k), k]
        if len(others):
            quartiles[k] = others.quantile(_QUARTILE)
    others_too = ~torch.eye(len(quartiles), dtype=torch.bool)
    usual = torch.stack([quartiles[row].nanmedian() for row in others_too])
    near = (usual / quartiles / USUAL).nan_to_num(1.0, MOST, 1.0)
    return near.clamp(1.0, MOST)
