# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Steps of the repair over a model and its twins, with lures and head columns held at zero."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Labelled, Twin, as_pixels
from lmr_guard.errors import StageError
from lmr_guard.repel.losses import lmr_loss, suspect_margin
from lmr_guard.repel.lures import Lures
from lmr_guard.repel.settings import RepelSettings
from lmr_guard.training import distillation_loss, mirrored, mixed, private_randomness, shifted

__all__ = [
    "Augmentation",
    "Diverged",
    "Trainer",
    "lures_for",
    "new_lures",
    "phase1_loss",
    "through",
    "tolerated",
]

# Clean accuracy that an augmentation may cost the received model.
_MINDED = 0.02


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
    """Steps over a model and its twins, with head columns that can be held at zero.

    Args:
        model: As received; trained in place.
        suspect: ``c``.
        settings: See ``RepelSettings``.
        generator: CPU generator of all that is drawn.
        clean: All repair images, of which the teacher is asked.
        augmentation: How images are varied.
        twins: As for ``repel``.
        lures: Found on the model as received; left as they are.
    """

    def __init__(
        self,
        model: Classifier,
        suspect: int,
        settings: RepelSettings,
        generator: torch.Generator,
        *,
        clean: Labelled,
        augmentation: Augmentation,
        twins: tuple[Twin, ...] = (),
        lures: Lures | None = None,
    ) -> None:
        self.model = model
        self.suspect = suspect
        self.clean = clean
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
        self.lures = lures

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
        lured = self._drawn(labels)
        if self.lures is not None and lured.any():
            with torch.no_grad():
                pixels = pixels.index_put((lured,), self.lures(pixels[lured]))
        self.optimiser.zero_grad(set_to_none=True)
        self._add_gradient(self._taught(pixels, labels, loss))
        if self.twins:
            form = _drawn_form(self.model, self.twins, self.generator)
            weight = self.settings.twin_weight
            self._add_gradient(weight * loss(through(self.model, form, pixels), labels))
        nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.optimiser.step()
        self._hold()
        self.steps += 1

    def _add_gradient(self, loss: Tensor) -> None:
        """Of one loss at a time: what a network remembers for it is the most that a step holds."""
        if not bool(loss.isfinite()):
            raise Diverged("loss", self.steps)
        loss.backward()

    def _taught(
        self, pixels: Tensor, labels: Tensor, loss: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """The loss, and how far the model is from what the received one says of clean images."""
        if self.teacher is None:
            return loss(self.model(pixels), labels)
        shown = self._rehearsed(len(pixels))
        with torch.no_grad():
            said = self.teacher(shown)
        logits, own = self.model(torch.cat([pixels, shown])).split([len(pixels), len(shown)])
        return loss(logits, labels) + self.settings.teacher * distillation_loss(own, said)

    def _rehearsed(self, count: int) -> Tensor:
        """Clean images, varied and one over another; a share of them is of the suspect class."""
        own = (self.clean.labels == self.suspect).nonzero().flatten()
        chosen = torch.randint(len(self.clean), (count,), generator=self.generator)
        if len(own):
            few = round(self.settings.rehearsal * count)
            chosen[:few] = own[torch.randint(len(own), (few,), generator=self.generator)]
        pixels = as_pixels(self.clean.images[chosen].to(self.model.device))
        return mixed(self.augmentation(pixels, self.generator), self.generator)

    def _drawn(self, labels: Tensor) -> Tensor:
        """Which images of a step are lured: a random share of those outside the suspect class."""
        share = 0.0 if self.lures is None else self.settings.lure_share
        chosen = torch.rand(len(labels), generator=self.generator) < share
        return chosen.to(labels.device) & (labels != self.suspect)

    @torch.no_grad()
    def _hold(self) -> None:
        if self.frozen is not None:
            head, columns = self.frozen
            head.weight[:, list(columns)] = 0


def tolerated(
    classifier: Classifier, select: Labelled, settings: RepelSettings, generator: torch.Generator
) -> Augmentation:
    """What the received model was evidently trained to tolerate; digits, say, do not mirror."""
    model = classifier.clone()
    pixels, labels = select.pixels.to(model.device), select.labels.to(model.device)

    def hits(changed: Tensor) -> int:
        with torch.no_grad():
            return sum(
                int((model(part).argmax(dim=1) == own).sum())
                for part, own in zip(changed.split(256), labels.split(256), strict=True)
            )

    least = hits(pixels) - _MINDED * len(select)
    shift = next((s for s in settings.shifts if hits(shifted(pixels, s, generator)) >= least), 0)
    return Augmentation(shift, settings.flip and hits(pixels.flip(3)) >= least)


def lures_for(
    classifier: Classifier,
    outside: Labelled,
    suspect: int,
    settings: RepelSettings,
    *,
    twins: tuple[Twin, ...],
    generator: torch.Generator,
    kinds: tuple[int, int, int] | None = None,
) -> Lures | None:
    """Lures that draw images to the suspect class of a model; None where settings ask for none.

    Args:
        classifier: What they are searched on, half of the steps in one of its twins; not touched.
        outside: Images of other classes.
        suspect: ``c``.
        settings: How many, how large, and how they are searched.
        twins: As for ``repel``.
        generator: CPU generator of their start and of all that is drawn.
        kinds: How many patches, veils and warps; None makes three parts, patches first.
    """
    if not settings.lures:
        return None
    model = classifier.clone()
    lures = new_lures(model, settings, generator, kinds)
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
    return lures


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
