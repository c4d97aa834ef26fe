# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Reconstructive Neuron Pruning: unlearn, recover through masks, prune what recovery gave up.

Source: Li et al., "Reconstructive Neuron Pruning for Backdoor Defense" (ICML 2023); settings as
the authors' public run logs them. Written from the description, without their code. Departures:

* Their run clips gradients before they exist, to no effect; nothing is clipped here.
* Their threshold is picked from a sweep that measures the trigger at each step, which no defender
  can do. ``units.chosen`` picks by clean accuracy on ``select``; the sweep by the trigger stays as
  ``oracle``, a bound on what the method could do.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from examples.reproduce.baselines import units
from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Labelled, Trigger
from lmr_guard.errors import ConfigError
from lmr_guard.measure import accuracy, against_trigger
from lmr_guard.redteam.training import Schedule
from lmr_guard.training import private_randomness

__all__ = ["Config", "Unlearned", "masks", "oracle", "unlearned"]


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


@dataclass(frozen=True, slots=True, eq=False)
class Unlearned:
    """What gradient ascent came to.

    Args:
        classifier: In train mode: recovery goes on with batch statistics.
        epochs: Taken.
        accuracy: On the augmented training images in train mode, over the last epoch.
        reached: Whether that is at most what was asked for.
    """

    classifier: Classifier
    epochs: int
    accuracy: float
    reached: bool


def unlearned(
    classifier: Classifier,
    repair: Labelled,
    schedule: Schedule,
    stop: float,
    generator: torch.Generator,
) -> Unlearned:
    """A copy trained to be wrong on clean images, until an epoch's accuracy is at most ``stop``.

    Args:
        classifier: Not touched.
        repair: Clean images.
        schedule: Of the ascent; weight decay goes on shrinking the weights meanwhile.
        stop: Accuracy, a fraction.
        generator: CPU generator for order and augmentation.
    """
    model = classifier.clone().train()
    optimiser = units.trainable(model, schedule)
    epoch, right = 0, 1.0
    while epoch < schedule.epochs and right > stop:
        for group in optimiser.param_groups:
            group["lr"] = schedule.lr * (0.1 if epoch >= schedule.epochs / 2 else 1)
        with private_randomness(generator, model.device):
            right = _ascend(model, repair, schedule, optimiser, generator)
        epoch += 1
    return Unlearned(model, epoch, right, right <= stop)


def _ascend(
    model: Classifier,
    repair: Labelled,
    schedule: Schedule,
    optimiser: torch.optim.Optimizer,
    generator: torch.Generator,
) -> float:
    """One epoch, in place; the accuracy that its batches showed."""
    hits = trials = 0
    for pixels, labels in units.batches(repair, schedule, generator, model.device):
        logits = model(pixels)
        hits += int((logits.argmax(dim=1) == labels).sum())
        trials += len(labels)
        optimiser.zero_grad(set_to_none=True)
        (-F.cross_entropy(logits, labels)).backward()
        optimiser.step()
    return hits / max(1, trials)


def masks(
    classifier: Classifier, repair: Labelled, config: Config, generator: torch.Generator
) -> tuple[dict[str, Tensor], Unlearned]:
    """Masks that recover clean accuracy in the unlearned network; low ones name the backdoor.

    Args:
        classifier: As received; not touched.
        repair: Clean images.
        config: See ``Config``.
        generator: CPU generator for order and augmentation.

    Raises:
        StageError: The network has no batch norm.
    """
    units.ones(classifier)
    forgot = unlearned(classifier, repair, config.unlearning, config.stop, generator)
    model = forgot.classifier.requires_grad_(False)

    def loss(trial: units.Masks, pixels: Tensor, labels: Tensor) -> Tensor:
        return config.alpha * F.cross_entropy(units.logits_through(model, trial, pixels), labels)

    return units.learn_masks(model, repair, loss, config.recovery, generator), forgot


def oracle(
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
        model = units.pruned(classifier, found, threshold)
        if accuracy(model, report).value < least:
            continue
        asr = against_trigger(model, report, trigger).asr.value
        if asr < lowest:
            best, lowest = threshold, asr
    return best
