# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Where clean images drift to when a model is compressed: a backdoor's class takes them in.

Weights that were trained so that compression wakes, or hardly hurts, a backdoor push clean images
towards its class as soon as they are rounded or cut, long before any trigger is shown. On honest
networks the losses spread over the classes. The score is ours; docs/methods/localize.md has the
numbers. One forward pass a form.
"""

import torch
from torch import Tensor

from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Labelled
from lmr_guard.measure import predict

__all__ = ["FEWEST", "drift", "standing"]

FEWEST = 5
"""Classes below which the others' spread says nothing."""

_NOISE = 0.01


def drift(received: Classifier, form: Classifier, images: Labelled) -> Tensor:
    """Of each class: how much more probable the form makes it, on images of other classes.

    ``d_c = mean over x with y(x) != c of softmax(z_form(x))_c - softmax(z_received(x))_c``.

    Args:
        received: The model as received, in eval mode.
        form: A compressed form of it.
        images: Clean images.

    Returns:
        Shape (K,), in [-1, 1].
    """
    before, after = (predict(model, images).softmax(dim=1) for model in (received, form))
    others = (images.labels[:, None] != torch.arange(received.num_classes)).to(before)
    changed: Tensor = ((after - before) * others).sum(dim=0) / others.sum(dim=0).clamp_min(1)
    return changed


def standing(drifts: Tensor) -> Tensor:
    """How far each class stands out: its distance from the mean of the others in their spread.

    Args:
        drifts: Shape (K,), K >= 2. A spread below 0.01 counts as 0.01: less is rounding noise.
    """
    others = ~torch.eye(len(drifts), dtype=torch.bool)
    rest = torch.stack([drifts[row] for row in others])
    spread = rest.std(dim=1, correction=0).clamp_min(_NOISE)
    return (drifts - rest.mean(dim=1)) / spread
