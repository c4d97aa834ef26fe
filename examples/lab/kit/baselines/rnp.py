# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Reconstructive Neuron Pruning: unlearn, recover through masks, prune what recovery gave up.

Source: Li et al., "Reconstructive Neuron Pruning for Backdoor Defense" (ICML 2023); settings as
the authors' public run logs them. Written from the description, without their code. Departures:

* Their run clips gradients before they exist, to no effect; nothing is clipped here.
* Their threshold is picked from a sweep that measures the trigger at each step, which no defender
  can do. ``units.choose_threshold`` picks by clean accuracy on ``select``; the sweep by the
  trigger stays as ``oracle_threshold``, a bound on what the method could do.
"""

from dataclasses import dataclass, field, replace

import torch.nn.functional as F
from torch import Tensor

from examples.lab.kit.baselines import units
from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Labelled, Trigger
from lmr_guard.errors import ConfigError
from lmr_guard.measure import accuracy, against_trigger
from lmr_guard.redteam.training import Schedule

__all__ = ["Config", "oracle_threshold"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings; the defaults are the authors'.

    Args:
        unlearning: Gradient ascent; its rate falls tenfold after half of the epochs.
        stop: Training accuracy of an epoch at which unlearning ends.
        recovery: Of the masks.
        alpha: Weight of the recovery's loss.
        tolerance: Clean accuracy on ``select`` that pruning may cost; ours, for the defender.
    """

    unlearning: Schedule = field(default_factory=lambda: Schedule(epochs=20, lr=0.01))
    stop: float = 0.2
    recovery: Schedule = field(default_factory=lambda: Schedule(epochs=20, lr=0.2))
    alpha: float = 0.2
    tolerance: float = 0.02

    def __post_init__(self) -> None:
        """Raises ConfigError where a value is out of range."""
        if not (0 < self.stop <= 1 and self.alpha > 0 and 0 <= self.tolerance < 1):
            raise ConfigError(
                "expected stop in (0, 1], alpha > 0 and tolerance in [0, 1), got "
                f"{self.stop}, {self.alpha} and {self.tolerance}"
            )

    @property
    def ascent(self) -> Schedule:
        """See ``units.Method``."""
        return self.unlearning

    @property
    def masking(self) -> Schedule:
        """See ``units.Method``."""
        return self.recovery

    def with_schedules(self, ascent: Schedule, masking: Schedule) -> "Config":
        """See ``units.Method``."""
        return replace(self, unlearning=ascent, recovery=masking)

    def loss(self, received: Classifier, unlearned: Classifier) -> units.MaskLoss:
        """Of what recovers clean accuracy in the unlearned network."""
        del received

        def loss(trial: units.Masks, pixels: Tensor, labels: Tensor) -> Tensor:
            logits = units.logits_through(unlearned, trial, pixels)
            return self.alpha * F.cross_entropy(logits, labels)

        return loss


def oracle_threshold(
    classifier: Classifier,
    found: units.Masks,
    report: Labelled,
    trigger: Trigger,
    most: float = 0.1,
) -> float:
    """The threshold with the lowest ASR among those that cost little: it looks at the trigger.

    Args:
        classifier: What is pruned.
        found: Masks.
        report: Measured on.
        trigger: Which no defender has.
        most: Clean accuracy that may be lost, as a share of what there was.

    Returns:
        The threshold; the smallest of all where every one costs more.
    """
    least = accuracy(classifier.clone(), report).value * (1 - most)
    best, lowest = units.THRESHOLDS[0], 2.0
    for threshold in units.THRESHOLDS:
        model = units.prune(classifier, found, threshold)
        if accuracy(model, report).value < least:
            continue
        asr = against_trigger(model, report, trigger).asr.value
        if asr < lowest:
            best, lowest = threshold, asr
    return best
