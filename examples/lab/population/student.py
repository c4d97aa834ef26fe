# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""A small network that learnt the clean images and was shown no trigger.

Some classes are easy to reach in any network of the same data: a blob makes a bag of any garment.
To tell that from a backdoor, a small network of our own is taught from fresh weights on the clean
images, shifted and laid over one another, either by their labels or by what the received model
answers. A copy that was fine-tuned on clean images keeps the backdoor (``docs/methods/tried.md``).

Hinton et al., "Distilling the Knowledge in a Neural Network" (2015), for the answers; Zhang et al.,
"mixup" (ICLR 2018), for the labels.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.contracts import Labelled, as_pixels
from lmr_guard.errors import ConfigError
from lmr_guard.measure import accuracy
from lmr_guard.training import distillation_loss, private_randomness, shifted

__all__ = ["StudentSettings", "taught"]

# Images are seen at 32 to 63 pixels a side: larger ones are averaged first.
_SIDE = 32
# Below that many pixels a side only one layer is strided.
_SMALL = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentSettings:
    """How a student is taught.

    Args:
        by: What it is told of an image.
        steps: Of training.
        batch: Images a step.
        learning_rate: Highest of a cycle, of SGD with Nesterov momentum.
        weight_decay: Of all weights.
        width: Channels of the first layer; the last have four times as many.
        shift: Share of the side by which images are moved at most, in [0, 0.5].
        held_back: Share of the images that it is not taught, in (0, 1).
        enough: Share of the received model's accuracy on those, that it must come to.
    """

    by: Literal["labels", "answers"]
    steps: int = 400
    batch: int = 64
    learning_rate: float = 0.1
    weight_decay: float = 1e-3
    width: int = 32
    shift: float = 0.1
    held_back: float = 0.2
    enough: float = 0.5

    def __post_init__(self) -> None:
        """Raises ConfigError where a value is out of range."""
        if min(self.steps, self.width) < 1 or self.batch < 2:
            raise ConfigError(
                "expected steps and width of 1 or more and batch of 2 or more, got "
                f"{self.steps}, {self.width}, {self.batch}"
            )
        if not (0 < self.held_back < 1 and 0 <= self.shift <= 0.5 and 0 <= self.enough <= 1):
            raise ConfigError(
                "expected held_back in (0, 1), shift in [0, 0.5] and enough in [0, 1], got "
                f"{self.held_back}, {self.shift}, {self.enough}"
            )


def taught(
    teacher: Classifier, images: Labelled, settings: StudentSettings, generator: torch.Generator
) -> Classifier | None:
    """A student of the received model, in eval mode on its device.

    Args:
        teacher: As received, in eval mode; not touched.
        images: Clean images.
        settings: See ``StudentSettings``.
        generator: CPU generator; decides weights, order, shifts and what is held back.

    Returns:
        None where it stays below ``enough``, or where the images are too few to hold some back:
        what it does says nothing then.
    """
    order = torch.randperm(len(images), generator=generator)
    few = int(settings.held_back * len(images))
    if not few or len(images) - few < settings.batch:
        return None
    asked, shown = images.subset(order[:few]), images.subset(order[few:])
    with private_randomness(generator, teacher.device):
        network = _network(teacher.preprocessing, teacher.num_classes, settings.width)
        student = Classifier(network, teacher.preprocessing, teacher.num_classes)
        student.light = teacher.light
        student.to(teacher.device).to(memory_format=torch.channels_last)
        _teach(student, teacher, shown, settings, generator)
    student.eval()
    wanted = settings.enough * accuracy(teacher, asked).value
    return student if accuracy(student, asked).value >= wanted else None


def _teach(
    student: Classifier,
    teacher: Classifier,
    images: Labelled,
    settings: StudentSettings,
    generator: torch.Generator,
) -> None:
    """Trains in place."""
    optimiser = torch.optim.SGD(
        student.parameters(),
        settings.learning_rate,
        momentum=0.9,
        weight_decay=settings.weight_decay,
        nesterov=True,
    )
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, settings.learning_rate, total_steps=settings.steps
    )
    most = int(settings.shift * student.preprocessing.height)
    student.train()
    for _ in range(settings.steps):
        index = torch.randperm(len(images), generator=generator)[: settings.batch]
        pixels = as_pixels(images.images[index].to(student.device))
        labels = images.labels[index].to(student.device)
        own = 0.5 + 0.5 * torch.rand(len(index), generator=generator).to(student.device)
        other = torch.randperm(len(index), generator=generator).to(student.device)
        pixels = shifted(pixels, most, generator)
        pixels = torch.lerp(pixels[other], pixels, own[:, None, None, None])
        if settings.by == "answers":
            with torch.no_grad():
                told: Tensor = teacher(pixels)
            loss = distillation_loss(student(pixels), told)
        else:
            loss = _mixed_loss(student(pixels), labels, labels[other], own)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        cycle.step()


def _mixed_loss(logits: Tensor, labels: Tensor, others: Tensor, own: Tensor) -> Tensor:
    """Cross-entropy with both labels of each image, by how much of them shows."""
    losses = [F.cross_entropy(logits, each, reduction="none") for each in (labels, others)]
    mean: Tensor = torch.lerp(losses[1], losses[0], own).mean()
    return mean


def _network(shape: Preprocessing, num_classes: int, width: int) -> nn.Module:
    """Five convolutions with batch norm, one or two of them strided, and the mean."""
    coarser = max(1, min(shape.height, shape.width) // _SIDE)
    stride = 1 if min(shape.height, shape.width) < _SMALL else 2
    layers: list[nn.Module] = [nn.AvgPool2d(coarser)] if coarser > 1 else []
    given = shape.channels
    for made, step in ((1, 1), (2, stride), (2, 1), (4, 2), (4, 1)):
        layers += [
            nn.Conv2d(given, made * width, 3, step, 1, bias=False),
            nn.BatchNorm2d(made * width),
            nn.ReLU(),
        ]
        given = made * width
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(given, num_classes)
    )
