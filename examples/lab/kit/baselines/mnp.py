# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Magnitude-based Neuron Pruning, as far as it is known: three losses guided by magnitude.

Source: Li, Jiang and Yi, "Magnitude-based Neuron Pruning for Backdoor Defense" (2024). Known here
are the abstract and summaries: in a trained network a neuron of large magnitude matters much,
backdoor neurons deviate from that, and three losses expose the backdoor (clean loss maximised
under a weight penalty), remove its neurons (their magnitude weighed against clean saliency) and
preserve the clean ones. Formulas, weights and rates are not known and there is no public code, so
this is our reading, and its numbers say nothing about the authors':

1. *Expose*: gradient ascent on the clean cross-entropy with a weight penalty, as RNP's with five
   times its weight decay. Clean units shrink, the backdoor stays.
2. *Remove*: masks ``m`` on batch norm units of the exposed network that minimise
   ``CE(exposed, m) + weight * sum_u s_u m_u / sum_u s_u``, where ``s_u`` is the magnitude of unit
   u in the received network as a multiple of its layer's mean: a mask falls where the unit
   is large and clean images do not need it.
3. *Preserve*: in the same sum, ``CE(received, m)`` keeps up what clean images need.

A unit's magnitude is its scale's, which is what the masks multiply. The threshold is chosen on
``select``, as for RNP.
"""

from dataclasses import dataclass, field, replace

import torch.nn.functional as F
from torch import Tensor

from examples.lab.kit.baselines import units
from lmr_guard.classifier import Classifier
from lmr_guard.errors import ConfigError
from lmr_guard.redteam.training import Schedule

__all__ = ["Config", "magnitudes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings; all are ours.

    Args:
        exposing: Gradient ascent; its weight decay is the weight penalty.
        stop: Training accuracy of an epoch at which exposing ends.
        masking: Of the masks; the rate is RNP's times the weight of its loss.
        weight: Of the magnitude penalty, a mean over all units. Chosen so that it lowers the mask
            of a unit of average magnitude by about a fifth.
        preserving: Weight of the clean loss of the received network.
        tolerance: Clean accuracy on ``select`` that pruning may cost.
    """

    exposing: Schedule = field(
        default_factory=lambda: Schedule(epochs=20, lr=0.01, weight_decay=2.5e-3)
    )
    stop: float = 0.2
    masking: Schedule = field(default_factory=lambda: Schedule(epochs=20, lr=0.04))
    weight: float = 30.0
    preserving: float = 1.0
    tolerance: float = 0.02

    def __post_init__(self) -> None:
        """Raises ConfigError where a value is out of range."""
        if not (0 < self.stop <= 1 and 0 <= self.tolerance < 1):
            raise ConfigError(
                f"expected stop in (0, 1] and tolerance in [0, 1), got {self.stop} and "
                f"{self.tolerance}"
            )
        if min(self.weight, self.preserving) < 0:
            raise ConfigError(
                f"expected weights of at least 0, got {self.weight} and {self.preserving}"
            )

    @property
    def ascent(self) -> Schedule:
        """See ``units.Method``."""
        return self.exposing

    def with_schedules(self, ascent: Schedule, masking: Schedule) -> "Config":
        """See ``units.Method``."""
        return replace(self, exposing=ascent, masking=masking)

    def loss(self, received: Classifier, unlearned: Classifier) -> units.MaskLoss:
        """Of what removes the backdoor from the exposed network; see the module."""
        size = magnitudes(received)
        total = sum(float(each.sum()) for each in size.values())
        kept_up = received.clone().train().requires_grad_(False)

        def loss(trial: units.Masks, pixels: Tensor, labels: Tensor) -> Tensor:
            removed = F.cross_entropy(units.logits_through(unlearned, trial, pixels), labels)
            kept = F.cross_entropy(units.logits_through(kept_up, trial, pixels), labels)
            heavy = sum((size[name] * mask).sum() for name, mask in trial.items()) / total
            return removed + self.preserving * kept + self.weight * heavy

        return loss


def magnitudes(classifier: Classifier) -> dict[str, Tensor]:
    """Size of each unit's scale as a multiple of the mean of its layer, shape (channels,).

    Raises:
        StageError: The network has no batch norm.
    """
    weights = dict(classifier.named_parameters())
    sizes = {name: weights[name].detach().abs() for name in units.full_masks(classifier)}
    return {name: size / size.mean().clamp_min(1e-12) for name, size in sizes.items()}
