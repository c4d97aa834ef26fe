# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Steps of the repair over a model and its twins, with lures and head columns held at zero."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Labelled, Twin, as_pixels
from lmr_guard.errors import StageError
from lmr_guard.repel.losses import distillation_loss, lmr_loss, suspect_margin
from lmr_guard.repel.lures import Lures
from lmr_guard.repel.settings import RepelSettings
from lmr_guard.training import mirrored, mixed, private_randomness, shifted

__all__ = [
    "Augmentation",
    "Diverged",
    "Trainer",
    "new_lures",
    "phase1_loss",
    "search",
    "through",
]


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How the repair images are varied."""

    shift: int
    flip: bool

    def __call__(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Another version of each image."""
        if self.flip:
            pixels = mirrored(pixels, generator)
        return shifted(pixels, self.shift, generator)


class Diverged(StageError):
    """The training left the finite numbers; a lower learning rate may keep to them."""

    def __init__(self, what: str, step: int) -> None:
        super().__init__(f"expected finite {what}, got others at step {step} of the repair")


class Trainer:
    """Steps over a model and its twins, with head columns that can be held at zero."""

    def __init__(
        self,
        model: Classifier,
        suspect: int,
        settings: RepelSettings,
        generator: torch.Generator,
        *,
        twins: tuple[Twin, ...],
        augmentation: Augmentation,
    ) -> None:
        self.model = model
        self.suspect = suspect
        self.augmentation = augmentation
        self.settings = settings
        self.generator = generator
        self.twins = twins
        self.steps = 0
        self.frozen: tuple[nn.Linear | nn.Conv2d, tuple[int, ...]] | None = None
        self.optimiser = torch.optim.SGD(
            model.parameters(),
            lr=settings.learning_rates[0],
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
        self.teacher = model.clone().requires_grad_(False) if settings.teacher else None
        self.lures = new_lures(model, settings, generator)

    def search(self, outside: Labelled) -> None:
        """Lets the lures find what draws images of other classes, on the model and its twins."""
        search(self.lures, self.model, outside, self.suspect, self.settings, twins=self.twins)

    def freeze_columns(self, head: nn.Linear | nn.Conv2d, columns: tuple[int, ...]) -> None:
        """Zero these input columns now and after every step; the optimiser starts anew."""
        self.frozen = (head, columns)
        self.optimiser.state.clear()
        self._hold()

    def epoch(self, data: Labelled, loss: Callable[[Tensor, Tensor], Tensor], lr: float) -> None:
        """One pass over ``data`` in random order. Raises Diverged where the loss is no number."""
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self.model.train(self.settings.train_bn)
        with private_randomness(self.generator, self.model.device):
            for index in _batches(len(data), self.settings, self.generator):
                self._step(data.subset(index), loss)
        self.model.eval()

    def _step(self, data: Labelled, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        pixels = as_pixels(data.images.to(self.model.device))
        pixels = self.augmentation(pixels, self.generator)
        labels = data.labels.to(self.model.device)
        clean, lured = pixels, self._drawn(labels)
        if lured.any():
            with torch.no_grad():
                pixels = pixels.index_put((lured,), self.lures(pixels[lured]))
        taught = self._taught(clean)
        value = self._value(self.model, pixels, labels, taught, loss)
        if self.twins:
            form = _drawn_form(self.model, self.twins, self.generator)
            twin = partial(through, self.model, form)
            value = value + self.settings.twin_weight * self._value(
                twin, pixels, labels, taught, loss
            )
        if not bool(value.isfinite()):
            raise Diverged("loss", self.steps)
        self.optimiser.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.optimiser.step()
        self._hold()
        self.steps += 1

    def _taught(self, clean: Tensor) -> tuple[Tensor, Tensor] | None:
        """Clean images one over another, and what the received model says of them."""
        if self.teacher is None:
            return None
        pixels = mixed(clean, self.generator)
        with torch.no_grad():
            return pixels, self.teacher(pixels)

    def _value(
        self,
        model: Callable[[Tensor], Tensor],
        pixels: Tensor,
        labels: Tensor,
        taught: tuple[Tensor, Tensor] | None,
        loss: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        if taught is None:
            return loss(model(pixels), labels)
        shown, said = taught
        logits, own = model(torch.cat([pixels, shown])).split([len(pixels), len(shown)])
        return loss(logits, labels) + self.settings.teacher * distillation_loss(own, said)

    def _drawn(self, labels: Tensor) -> Tensor:
        """Which images of a step are lured: a random share of those outside the suspect class."""
        share = self.settings.lure_share if self.settings.lures else 0.0
        chosen = torch.rand(len(labels), generator=self.generator) < share
        return chosen.to(labels.device) & (labels != self.suspect)

    @torch.no_grad()
    def _hold(self) -> None:
        if self.frozen is not None:
            head, columns = self.frozen
            head.weight[:, list(columns)] = 0


def new_lures(
    model: Classifier,
    settings: RepelSettings,
    generator: torch.Generator,
    kinds: tuple[int, int, int] | None = None,
) -> Lures:
    """Lures as they are before any search; without ``kinds`` in three parts, patches first."""
    shape = model.preprocessing
    count = settings.lures
    return Lures(
        kinds or ((count + 2) // 3, (count + 1) // 3, count // 3),
        (shape.channels, shape.height, shape.width),
        area=settings.lure_area,
        opacity=settings.lure_opacity,
        rate=settings.lure_rate,
        generator=generator,
        device=model.device,
    )


def search(
    lures: Lures,
    model: Classifier,
    outside: Labelled,
    suspect: int,
    settings: RepelSettings,
    *,
    twins: tuple[Twin, ...],
) -> None:
    """Lets lures find, in place, what draws images to the suspect class.

    Args:
        lures: From ``new_lures``; their generator draws images and twins.
        model: What they are searched on, half of the steps in one of its twins.
        outside: Images of other classes.
        suspect: ``c``.
        settings: See ``RepelSettings``.
        twins: As for ``repel``.
    """
    if not len(lures):
        return
    generator = lures.generator
    model.train(settings.train_bn)
    with private_randomness(generator, model.device):
        for _ in range(settings.lure_steps):
            size = min(settings.batch, len(outside))
            chosen = torch.randperm(len(outside), generator=generator)[:size]
            lured = lures(as_pixels(outside.images[chosen].to(model.device)))
            if twins and bool(torch.rand(1, generator=generator) < 0.5):
                logits = through(model, _drawn_form(model, twins, generator), lured)
            else:
                logits = model(lured)
            lures.climb(suspect_margin(logits, suspect).mean())
    model.eval()


def through(model: Classifier, changed: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """Logits with other weights and the statistics of these images; those of the model stay."""
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    training = model.training
    model.train()
    logits: Tensor = functional_call(model, {**buffers, **changed}, (pixels,))
    model.train(training)
    return logits


def _drawn_form(
    model: Classifier, twins: tuple[Twin, ...], generator: torch.Generator
) -> dict[str, Tensor]:
    """The weights of one compressed form, drawn at random."""
    drawn = int(torch.randint(len(twins), (1,), generator=generator))
    return twins[drawn](dict(model.named_parameters()), generator)


def _batches(count: int, settings: RepelSettings, generator: torch.Generator) -> list[Tensor]:
    """Random batches; a last one of a single image joins its neighbour (batch norm needs two)."""
    if settings.pass_steps is not None:
        return [
            torch.randperm(count, generator=generator)[: settings.batch]
            for _ in range(settings.pass_steps)
        ]
    batches = list(torch.randperm(count, generator=generator).split(settings.batch))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def phase1_loss(logits: Tensor, labels: Tensor, suspect: int, settings: RepelSettings) -> Tensor:
    """``lmr_loss`` with the weights and margins of ``settings``."""
    return lmr_loss(
        logits,
        labels,
        suspect,
        alpha=settings.alpha,
        beta=settings.beta,
        m1=settings.m1,
        m2=settings.m2,
    )
