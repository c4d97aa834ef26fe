# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The one small training loop that all attacks are built on."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lmr_guard.augmentation import mirrored, shifted
from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Labelled, Progress, Trigger, silent
from lmr_guard.errors import ConfigError
from lmr_guard.randomness import private_randomness

__all__ = ["BatchLoss", "Schedule", "augment", "fit", "fit_clean", "target_of"]

BatchLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Pixels (N, C, H, W), labels (N,) and positions in the training data (N,) to a scalar loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How a network is trained.

    Args:
        epochs: Passes over the data.
        lr: Peak learning rate; one-cycle: a linear rise over a fifth of the steps, then down to 0.
        batch: Images a step.
        momentum: Of SGD with Nesterov.
        weight_decay: Of SGD.
        shift: Largest random translation in pixels; 0 for none.
        flip: Whether images are mirrored at random.
    """

    epochs: int = 20
    lr: float = 0.1
    batch: int = 128
    momentum: float = 0.9
    weight_decay: float = 5e-4
    shift: int = 0
    flip: bool = False


def target_of(trigger: Trigger) -> int:
    """The attacker's class. Raises ConfigError where the trigger names none."""
    if trigger.target is None:
        raise ConfigError(f"expected a trigger with a target class, got none in {trigger.name!r}")
    return trigger.target


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
    progress: Progress = silent,
    step_name: str = "training",
) -> None:
    """Minimise ``loss`` over ``data`` with SGD, in place; the model ends in eval mode.

    Args:
        model: Trained in place: callers pass a clone.
        data: The attacker's training images.
        loss: Called with augmented pixels on the model's device.
        schedule: See ``Schedule``.
        generator: CPU generator for order and augmentation.
        train_bn: False keeps batch normalisation in eval mode: its statistics stay.
        after_step: Called after each optimiser step, e.g. to project the weights.
        progress: Told after each epoch.
        step_name: What ``progress`` calls it.
    """
    batches = (len(data) + schedule.batch - 1) // schedule.batch
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
    model.train(train_bn)
    for epoch in range(schedule.epochs):
        with private_randomness(generator, model.device):
            for index in torch.randperm(len(data), generator=generator).split(schedule.batch):
                if len(index) < 2 and train_bn:
                    continue
                pixels = data.images[index].to(model.device).float() / 255
                labels = data.labels[index].to(model.device)
                optimiser.zero_grad(set_to_none=True)
                loss(augment(pixels, schedule, generator), labels, index).backward()
                optimiser.step()
                scheduler.step()
                if after_step is not None:
                    after_step()
        progress(step_name, epoch + 1, schedule.epochs)
    model.eval()


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
        return F.cross_entropy(model(pixels), labels)

    fit(model, data, loss, schedule, generator, progress=progress, step_name="clean training")
    return model
