# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Lowers the suspect's logit a little at the end of a repair.

When a backdoor is gone what its trigger still does is what happens at the border of the suspect
class anyway: some images fall on the wrong side of it, with the trigger somewhat more than without.
The head's bias moves that border. So the suspect's is lowered, by part of the margin that repulsion
asks of every image; what it costs is images of the suspect class that lie as near, and where clean
images say that it costs more than that it is lowered less.

Source: logit adjustment after training (Menon et al., "Long-Tail Learning via Logit Adjustment",
ICLR 2021), there for classes that are rare.
"""

import torch

from lmr_guard.classifier import Classifier, find_head
from lmr_guard.contracts import Clean
from lmr_guard.measure import accuracy

__all__ = ["lowered"]

_COST = 0.005
_HALVINGS = 3


def lowered(
    classifier: Classifier, suspect: int, clean: Clean, by: float
) -> tuple[Classifier, float]:
    """A copy whose suspect's logit is lower on every image, and by how much it is, in logits.

    Halved, three times at most, while more than half a percent of the clean images is lost; then
    it stays as it was, and so does a network whose head has no bias. Uses no randomness.

    Args:
        classifier: Repaired, in eval mode; left as it is.
        suspect: ``c``.
        clean: Images of ``repair`` and ``select`` are counted; ``report`` is not looked at.
        by: To begin with, >= 0; 0 lowers nothing.
    """
    if by == 0:
        return classifier.clone(), 0.0
    least = _right(classifier, clean) - _COST * (len(clean.repair) + len(clean.select))
    for offset in (by / 2**halving for halving in range(_HALVINGS + 1)):
        model = classifier.clone()
        _, head = find_head(model, model.example(), model.num_classes)
        if head.bias is None:
            break
        with torch.no_grad():
            head.bias[suspect] -= offset
        if _right(model, clean) >= least:
            return model, offset
    return classifier.clone(), 0.0


def _right(classifier: Classifier, clean: Clean) -> int:
    return accuracy(classifier, clean.repair).hits + accuracy(classifier, clean.select).hits
