# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The one small training loop that all attacks are built on."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Labelled, Progress, Trigger, as_pixels, silent
from lmr_guard.errors import ConfigError
from lmr_guard.training import mirrored, private_randomness, shifted

__all__ = [
    "BatchLoss",
    "EpochProgress",
    "Planted",
    "Schedule",
    "augment",
    "fit",
    "fit_clean",
    "require_class",
    "silent_epochs",
    "target_of",
]

EpochProgress = Callable[[int, int], object]
"""Told how many epochs of how many are done; ``functools.partial(progress, name)`` is one."""

BatchLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Pixels (N, C, H, W), labels (N,) and positions in the training data (N,) to a scalar loss."""


@dataclass(frozen=True, slots=True)
class Planted:
    """What an attack leaves behind.

    Args:
        classifier: The backdoored model, in eval mode.
        trigger: What sends an image to the attacker's class, as used after training.
    """

    classifier: Classifier
    trigger: Trigger


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How a network is trained.

    Args:
        epochs: Passes over the data.
        lr: Peak learning rate; one-cycle: a linear rise over a fifth of the steps, then down to 0.
        batch: Images per step.
        momentum: Of SGD with Nesterov.
        weight_decay: Of SGD.
        shift: Largest random translation in pixels; 0 for none.
        flip: Whether images are mirrored at random.
        precision: Of the forward and backward pass; weights and losses stay float32. bfloat16
            takes about half the time, and is too coarse for attacks that hide in rounding.
        smoothing: Share of each label that is spread over all classes, in [0, 1); only of honest
            training and of training on poisoned images.
    """

    epochs: int = 20
    lr: float = 0.1
    batch: int = 128
    momentum: float = 0.9
    weight_decay: float = 5e-4
    shift: int = 0
    flip: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        """Raises ConfigError where a value is out of range."""
        if self.epochs < 0 or self.batch < 2 or self.shift < 0:
            raise ConfigError(
                "expected epochs >= 0, a batch of 2 or more and a shift >= 0, got "
                f"{self.epochs}, {self.batch} and {self.shift}"
            )
        if not (self.lr > 0 and 0 <= self.momentum < 1 and self.weight_decay >= 0):
            raise ConfigError(
                "expected lr > 0, momentum in [0, 1) and weight_decay >= 0, got "
                f"{self.lr}, {self.momentum} and {self.weight_decay}"
            )
        if not 0 <= self.smoothing < 1:
            raise ConfigError(f"expected smoothing in [0, 1), got {self.smoothing}")
        if self.precision not in ("float32", "bfloat16"):
            raise ConfigError(f"expected precision float32 or bfloat16, got {self.precision!r}")


def silent_epochs(done: int, total: int) -> None:
    """Says nothing."""
    del done, total


def target_of(trigger: Trigger) -> int:
    """The attacker's class. Raises ConfigError where the trigger names none."""
    if trigger.target is None:
        raise ConfigError(f"expected a trigger with a target class, got none in {trigger.name!r}")
    return trigger.target


def require_class(target: int, classifier: Classifier) -> None:
    """Raises ConfigError where the target is no class of the model."""
    if not 0 <= target < classifier.num_classes:
        raise ConfigError(f"expected a target in 0..{classifier.num_classes - 1}, got {target}")


def augment(pixels: Tensor, schedule: Schedule, generator: torch.Generator) -> Tensor:
    """Random translation and mirroring as the schedule says; shapes and range are kept."""
    if schedule.flip:
        pixels = mirrored(pixels, generator)
    return shifted(pixels, schedule.shift, generator)


def fit(
    model: Classifier,
    data: Labelled,
    loss: BatchLoss,
    schedule: Schedule,
    generator: torch.Generator,
    *,
    train_bn: bool = True,
    after_step: Callable[[], None] | None = None,
    progress: EpochProgress = silent_epochs,
) -> None:
    """Minimise ``loss`` over ``data`` with SGD, in place; the model ends in eval mode.

    Args:
        model: Trained in place: callers pass a clone.
        data: The attacker's training images; all of them go to the model's device, as bytes.
        loss: Called with augmented pixels on the model's device.
        schedule: See ``Schedule``.
        generator: CPU generator for order and augmentation.
        train_bn: False keeps batch normalisation in eval mode: its statistics stay.
        after_step: Called after each optimiser step, e.g. to project the weights.
        progress: Told after each epoch how many of how many are done.
    """
    optimiser, scheduler = _one_cycle(model, schedule, len(data))
    model.train(train_bn).to(memory_format=torch.channels_last)
    images, labels = data.images.to(model.device), data.labels.to(model.device)
    for epoch in range(schedule.epochs):
        with private_randomness(generator, model.device):
            for index in torch.randperm(len(data), generator=generator).split(schedule.batch):
                if len(index) < 2 and train_bn:
                    continue
                here = index.to(model.device)
                pixels = augment(as_pixels(images[here]), schedule, generator)
                pixels = pixels.contiguous(memory_format=torch.channels_last)
                optimiser.zero_grad(set_to_none=True)
                with _autocast(model.device, schedule):
                    value = loss(pixels, labels[here], index)
                value.backward()
                optimiser.step()
                scheduler.step()
                if after_step is not None:
                    after_step()
        progress(epoch + 1, schedule.epochs)
    model.eval().to(memory_format=torch.contiguous_format)


def _one_cycle(
    model: Classifier, schedule: Schedule, images: int
) -> tuple[torch.optim.SGD, torch.optim.lr_scheduler.OneCycleLR]:
    batches = (images + schedule.batch - 1) // schedule.batch
    optimiser = torch.optim.SGD(
        model.parameters(),
        lr=schedule.lr,
        momentum=schedule.momentum,
        weight_decay=schedule.weight_decay,
        nesterov=schedule.momentum > 0,
    )
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimiser,
        schedule.lr,
        total_steps=max(6, schedule.epochs * batches + 1),  # At 5 it would divide by zero.
        pct_start=0.2,
        anneal_strategy="linear",
        cycle_momentum=False,
    )
    return optimiser, scheduler


def _autocast(device: torch.device, schedule: Schedule) -> AbstractContextManager[object]:
    lower = schedule.precision == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=lower)


def fit_clean(
    classifier: Classifier,
    data: Labelled,
    schedule: Schedule,
    generator: torch.Generator,
    progress: Progress = silent,
) -> Classifier:
    """An honest training run with cross-entropy; returns a new classifier."""
    model = classifier.clone()

    def loss(pixels: Tensor, labels: Tensor, _index: Tensor) -> Tensor:
        return F.cross_entropy(model(pixels), labels, label_smoothing=schedule.smoothing)

    fit(model, data, loss, schedule, generator, progress=partial(progress, "clean training"))
    return model
