# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Trains a cut network for a few steps towards what the uncut one says of clean images.

Layers that are refit one by one each do what they can; what is left of the error adds up, and
only all of them together can make up for it. So the refit network learns from the uncut one, on
clean images that are varied and laid over one another: distillation (Hinton et al., "Distilling
the Knowledge in a Neural Network", 2015) on mixed images (mixup, ICLR 2018), which needs no label
and so is not bound to what a few hundred of them tell. It learns not only what is said of them but
what the head sees of them too, which tells far more of one image than K logits do: few images are
all that there are (Wang et al., "Compressing Models with Few Samples: Mimicking then Replacing",
CVPR 2022). Batch norm stays as it was. Both may compute in bfloat16 meanwhile, see
``lmr_guard.arithmetic``; whether it helped is asked in float32.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lmr_guard.arithmetic import plain
from lmr_guard.classifier import Classifier, find_head
from lmr_guard.contracts import Labelled, Progress, as_pixels, silent
from lmr_guard.measure import predict
from lmr_guard.training import distillation_loss, mirrored, mixed, shifted

__all__ = ["DEAR", "distance", "distilled", "turned"]

DEAR = 0.03
"""Share of the images that a cut may answer otherwise until more than usual is done about it."""

_BATCH = 64
_RATE = 0.01
_MOMENTUM = 0.9
_WARM = 10
_CLIP = 5.0
_FREE = 0.01
_FEATURES = 30.0
_SIXTEENTH = 16  # of the height: the largest translation


def distilled(
    cut: Classifier,
    uncut: Classifier,
    images: tuple[Labelled, Labelled],
    generator: torch.Generator,
    progress: Progress = silent,
    *,
    steps: int,
    left: Tensor | None = None,
    working: Callable[[Classifier], Classifier] = Classifier.clone,
) -> Classifier:
    """The cut network after some steps, or as it was where it needs none or they do not help.

    It needs none where it answers as the uncut one does all but a hundredth of the images that it
    does not learn from, and twice as many where it turned more than three of a hundred; they help
    where they bring it nearer there. Clean accuracy would not tell: of a few hundred images a cut
    that costs three points may well lose none.

    Args:
        cut: Refit; left as it is.
        uncut: The teacher, in eval mode; left as it is.
        images: Clean images to learn from, and others on which the two are compared, by their
            answers before and by the loss after. No label is looked at.
        generator: CPU generator of all that is drawn.
        progress: Told after each step.
        steps: Of 64 images each, at a learning rate that rises for ten steps and falls to zero.
        left: Which inputs of the uncut head the cut one has, (inputs,), int64; None has all.
        working: Makes the copies that the steps are computed with, as ``Settings.working`` does.
    """
    learnt, compared = images
    otherwise = turned(cut, uncut, compared)
    if otherwise <= _FREE:
        return cut.clone()
    if otherwise > DEAR:
        steps *= 2
    teacher, student = working(uncut).requires_grad_(False), working(cut)
    optimiser = torch.optim.SGD(student.parameters(), lr=_RATE, momentum=_MOMENTUM)
    with _watched(teacher) as given, _watched(student) as own:
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = _RATE * min(1.0, (step + 1) / _WARM) * (1 - step / steps)
            shown = _shown(learnt, generator).to(student.device)
            with torch.no_grad():
                said = teacher(shown)
            loss = distillation_loss(student(shown), said)
            loss = loss + _FEATURES * _apart(own.pop(), given.pop(), left)
            if not bool(loss.isfinite()):
                return cut.clone()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), _CLIP)
            optimiser.step()
            progress("distil", step + 1, steps)
    student = plain(student.to(cut.device))
    nearer = distance(student, uncut, compared) < distance(cut, uncut, compared)
    return student if nearer else cut.clone()


@contextmanager
def _watched(model: Classifier) -> Iterator[list[Tensor]]:
    """What the head of a model is given, its inputs last, added to the list each time it runs."""
    _, head = find_head(model, model.example(), model.num_classes)
    given: list[Tensor] = []

    def keep(layer: nn.Module, inputs: tuple[Tensor]) -> None:
        seen = inputs[0].movedim(1, -1) if isinstance(layer, nn.Conv2d) else inputs[0]
        given.append(seen.float())

    handle = head.register_forward_pre_hook(keep)
    try:
        yield given
    finally:
        handle.remove()


def _apart(own: Tensor, taught: Tensor, left: Tensor | None) -> Tensor:
    """Mean squared difference of what two heads see, in units of its variance in the teacher."""
    if left is not None:
        taught = taught[..., left.to(taught.device)]
    spread = taught.var().clamp_min(torch.finfo(taught.dtype).tiny)
    return (own - taught).square().mean() / spread


def _shown(images: Labelled, generator: torch.Generator) -> Tensor:
    """A batch of images, moved, mirrored and one over another."""
    chosen = torch.randint(len(images), (_BATCH,), generator=generator)
    pixels = as_pixels(images.images[chosen])
    moved = shifted(pixels, pixels.shape[2] // _SIXTEENTH, generator)
    return mixed(mirrored(moved, generator), generator)


def turned(student: Classifier, teacher: Classifier, images: Labelled) -> float:
    """Share of the images that one answers otherwise than the other, in [0, 1].

    Args:
        student: In eval mode.
        teacher: The same.
        images: Taken as they are; their labels are not looked at.
    """
    own, taught = (predict(model, images).argmax(dim=1) for model in (student, teacher))
    return float((own != taught).float().mean())


@torch.no_grad()
def distance(student: Classifier, teacher: Classifier, images: Labelled) -> float:
    """How far what one says of images is from what the other does, as ``distillation_loss`` has it.

    Args:
        student: In eval mode.
        teacher: The same.
        images: Taken as they are; their labels are not looked at.

    Returns:
        The loss, summed over them, >= 0.
    """
    total = 0.0
    for pixels, _ in images.batches(_BATCH):
        own = pixels.to(teacher.device)
        total += float(distillation_loss(student(own), teacher(own))) * len(pixels)
    return total
