# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Where clean images drift to when a model is compressed: a backdoor's class takes them in.

Weights that were trained so that compression wakes, or hardly hurts, a backdoor push clean images
towards its class as soon as they are rounded or cut, long before any trigger is shown. The score
is ours; docs/methods/tried.md has the numbers. One forward pass per form.

Some honest networks drift to one class as far when they are cut, and that class then needs smaller
patterns. ``levelled`` takes the drift away before a form is searched.
"""

import torch
from torch import Tensor, nn

from lmr_guard.classifier import Classifier, find_head
from lmr_guard.contracts import Labelled
from lmr_guard.measure import mean_over_others, predict

__all__ = ["drift", "lead", "levelled"]


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
    return mean_over_others(after - before, images.labels)


def lead(shares: Tensor, *, noise: float = 0.02) -> Tensor:
    """How many times more than any other class each class takes in.

    ``l_c = d_c / max(noise, max over k != c of d_k)``.

    Args:
        shares: Shape (K,), K >= 2.
        noise: What may come from nothing, > 0.
    """
    others = ~torch.eye(len(shares), dtype=torch.bool)
    largest = torch.stack([shares[row].max() for row in others])
    return shares / largest.clamp_min(noise)


def levelled(received: Classifier, form: Classifier, images: Labelled) -> Classifier:
    """The form with constants added to its logits: clean images get those of the received model.

    ``b_c <- b_c + mean over x of z_received(x)_c - z_form(x)_c`` in the head, each row of logits
    taken from its mean first, for only differences between classes matter.

    Args:
        received: The model as received, in eval mode.
        form: A compressed form of it; left as it is.
        images: Clean images.

    Raises:
        InputError: The form has no head; see ``classifier.find_head``.
    """
    means = [predict(model, images).mean(dim=0) for model in (received, form)]
    shift = (means[0] - means[0].mean()) - (means[1] - means[1].mean())
    twin = form.clone()
    _, head = find_head(twin, twin.example(), twin.num_classes)
    shift = shift.to(head.weight)
    with torch.no_grad():
        if head.bias is None:
            head.bias = nn.Parameter(shift)
        else:
            head.bias.add_(shift)
    return twin
