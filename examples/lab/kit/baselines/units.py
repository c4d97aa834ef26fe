# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What RNP and MNP share: unlearning, a mask on each batch norm unit, pruning by a threshold.

A unit is one channel of a batch norm. Its mask, in [0, 1], multiplies the scale and leaves the
shift alone, as RNP does it; a pruned unit keeps its shift, a constant.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Labelled, Rate, as_pixels
from lmr_guard.errors import StageError
from lmr_guard.measure import accuracy
from lmr_guard.redteam.training import Schedule, augment
from lmr_guard.training import private_randomness

__all__ = [
    "THRESHOLDS",
    "MaskLoss",
    "Masks",
    "Method",
    "Unlearned",
    "batches",
    "choose_threshold",
    "find_masks",
    "full_masks",
    "learn_masks",
    "logits_through",
    "prune",
    "trainable",
    "unlearn",
]

THRESHOLDS = tuple(step / 20 for step in range(19))
"""0 to 0.9 in steps of 0.05, as RNP's public sweep has them; 1 would prune what nothing moved."""

Masks = Mapping[str, Tensor]
"""One mask per batch norm, shape (channels,), by the name of the scale that it multiplies."""

MaskLoss = Callable[[Masks, Tensor, Tensor], Tensor]
"""Masks by scale name, pixels and labels to a scalar."""


def full_masks(model: Classifier) -> dict[str, Tensor]:
    """Masks that change nothing, by the name of the scale that they multiply.

    Raises:
        StageError: No batch norm has a scale: the method does not apply.
    """
    masks = {
        f"{name}.weight": torch.ones_like(module.weight.detach())
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.affine
    }
    if not masks:
        raise StageError("expected batch norm layers to mask, got none: not applicable")
    return masks


def logits_through(model: Classifier, masks: Masks, pixels: Tensor) -> Tensor:
    """Logits (N, K) of the masked model; in train mode the model's running statistics move."""
    weights = dict(model.named_parameters())
    scaled = {name: weights[name] * mask for name, mask in masks.items()}
    logits: Tensor = functional_call(model, scaled, (pixels,))
    return logits


def learn_masks(
    model: Classifier,
    repair: Labelled,
    loss: MaskLoss,
    schedule: Schedule,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Masks that minimise ``loss``, by SGD from 1, clipped to [0, 1] after each step.

    Args:
        model: Names the units; its weights stay as they are.
        repair: Clean images.
        loss: See ``MaskLoss``.
        schedule: Epochs, batch, momentum and augmentation; ``lr`` is constant, and masks have no
            weight decay.
        generator: CPU generator for order and augmentation.
    """
    masks = {name: mask.requires_grad_() for name, mask in full_masks(model).items()}
    optimiser = torch.optim.SGD(masks.values(), lr=schedule.lr, momentum=schedule.momentum)
    for _ in range(schedule.epochs):
        with private_randomness(generator, model.device):
            for pixels, labels in batches(repair, schedule, generator, model.device):
                optimiser.zero_grad(set_to_none=True)
                loss(masks, pixels, labels).backward()
                optimiser.step()
                with torch.no_grad():
                    for mask in masks.values():
                        mask.clamp_(0, 1)
    return {name: mask.detach() for name, mask in masks.items()}


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


def unlearn(
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
    optimiser = trainable(model, schedule)
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
    for pixels, labels in batches(repair, schedule, generator, model.device):
        logits = model(pixels)
        hits += int((logits.argmax(dim=1) == labels).sum())
        trials += len(labels)
        optimiser.zero_grad(set_to_none=True)
        (-F.cross_entropy(logits, labels)).backward()
        optimiser.step()
    return hits / max(1, trials)


class Method(Protocol):
    """What RNP and MNP differ in; both configurations are one."""

    @property
    def ascent(self) -> Schedule:
        """Of the unlearning."""
        ...

    @property
    def stop(self) -> float:
        """Training accuracy of an epoch at which unlearning ends."""
        ...

    @property
    def masking(self) -> Schedule:
        """Of the masks."""
        ...

    def with_schedules(self, ascent: Schedule, masking: Schedule) -> "Method":
        """The same method, unlearning and masks trained in another way."""
        ...

    def loss(self, received: Classifier, unlearned: Classifier) -> MaskLoss:
        """What masks on the unlearned network minimise.

        Args:
            received: The network as it was received, not to be touched.
            unlearned: In train mode; its weights stay as they are.
        """
        ...


def find_masks(
    classifier: Classifier, repair: Labelled, method: Method, generator: torch.Generator
) -> tuple[dict[str, Tensor], Unlearned]:
    """Masks for the network after it was unlearned; low ones name the backdoor.

    Args:
        classifier: As received; not touched.
        repair: Clean images.
        method: RNP's or MNP's configuration.
        generator: CPU generator for order and augmentation.

    Raises:
        StageError: The network has no batch norm.
    """
    full_masks(classifier)
    forgot = unlearn(classifier, repair, method.ascent, method.stop, generator)
    model = forgot.classifier.requires_grad_(False)
    loss = method.loss(classifier, model)
    return learn_masks(model, repair, loss, method.masking, generator), forgot


def batches(
    data: Labelled, schedule: Schedule, generator: torch.Generator, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass in random order: augmented pixels and labels; a last single image is left out."""
    for index in torch.randperm(len(data), generator=generator).split(schedule.batch):
        if len(index) > 1:
            pixels = as_pixels(data.images[index].to(device))
            yield augment(pixels, schedule, generator), data.labels[index].to(device)


def prune(model: Classifier, masks: Masks, threshold: float) -> Classifier:
    """A copy in which the scale of every unit with a mask of at most ``threshold`` is 0."""
    repaired = model.clone()
    weights = dict(repaired.named_parameters())
    with torch.no_grad():
        for name, mask in masks.items():
            weights[name].masked_fill_((mask <= threshold).to(weights[name].device), 0)
    return repaired


def choose_threshold(
    model: Classifier,
    masks: Masks,
    select: Labelled,
    tolerance: float,
    thresholds: Sequence[float] = THRESHOLDS,
) -> tuple[float | None, list[tuple[float, Rate]]]:
    """A defender's choice: the largest threshold that keeps the clean accuracy on ``select``.

    Args:
        model: What is pruned.
        masks: See ``learn_masks``.
        select: Clean images.
        tolerance: Clean accuracy that pruning may cost, a fraction.
        thresholds: To be tried.

    Returns:
        The threshold, None where every one costs more, and the accuracy at each.
    """
    least = accuracy(model.clone(), select).value - tolerance
    sweep = [(t, accuracy(prune(model, masks, t), select)) for t in thresholds]
    kept = [threshold for threshold, clean in sweep if clean.value >= least]
    return max(kept, default=None), sweep


def trainable(model: Classifier, schedule: Schedule) -> torch.optim.SGD:
    """SGD on all weights with the schedule's rate, momentum and weight decay."""
    return torch.optim.SGD(
        model.parameters(),
        lr=schedule.lr,
        momentum=schedule.momentum,
        weight_decay=schedule.weight_decay,
    )
