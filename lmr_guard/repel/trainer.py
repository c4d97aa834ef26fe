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
from lmr_guard.training import mirrored, private_randomness, shifted

__all__ = ["Augmentation", "Diverged", "Trainer", "phase1_loss"]


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
        shape = model.preprocessing
        self.lures = Lures(
            settings.lures,
            (shape.channels, shape.height, shape.width),
            area=settings.lure_area,
            rate=settings.lure_rate,
            generator=generator,
            device=model.device,
        )

    def search(self, outside: Labelled) -> None:
        """Lets the lures find what draws images of other classes, on the model and its twins."""
        if not self.settings.lures:
            return
        self.model.train(self.settings.train_bn)
        with private_randomness(self.generator, self.model.device):
            for _ in range(self.settings.lure_steps):
                size = min(self.settings.batch, len(outside))
                chosen = torch.randperm(len(outside), generator=self.generator)[:size]
                pixels = as_pixels(outside.images[chosen].to(self.model.device))
                lured = self.lures(pixels)
                form = self._twin() if self.twins and self._coin() else {}
                logits = self._through(form, lured)
                self.lures.climb(suspect_margin(logits, self.suspect).mean())
        self.model.eval()

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
            for index in _batches(len(data), self.settings.batch, self.generator):
                self._step(data.subset(index), loss)
        self.model.eval()

    def _step(self, data: Labelled, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        pixels = as_pixels(data.images.to(self.model.device))
        pixels = self.augmentation(pixels, self.generator)
        labels = data.labels.to(self.model.device)
        lured = self._drawn(labels)
        if lured.any():
            pixels = pixels.index_put((lured,), self.lures(pixels[lured]))
        outputs = [self.model(pixels)]
        value = loss(outputs[0], labels)
        if self.twins:
            outputs.append(self._through(self._twin(), pixels))
            value = value + self.settings.twin_weight * loss(outputs[1], labels)
        if not bool(value.isfinite()):
            raise Diverged("loss", self.steps)
        if lured.any():
            pulls = [suspect_margin(logits[lured], self.suspect).mean() for logits in outputs]
            self.lures.climb(torch.stack(pulls).sum())
        self.optimiser.zero_grad(set_to_none=True)
        value.backward()
        self.optimiser.step()
        self._hold()
        self.steps += 1

    def _drawn(self, labels: Tensor) -> Tensor:
        """Which images of a step are lured: a random share of those outside the suspect class."""
        share = self.settings.lure_share if self.settings.lures else 0.0
        chosen = torch.rand(len(labels), generator=self.generator) < share
        return chosen.to(labels.device) & (labels != self.suspect)

    def _coin(self) -> bool:
        return bool(torch.rand(1, generator=self.generator) < 0.5)

    def _twin(self) -> dict[str, Tensor]:
        """The weights of one compressed form, drawn at random."""
        drawn = int(torch.randint(len(self.twins), (1,), generator=self.generator))
        return self.twins[drawn](dict(self.model.named_parameters()), self.generator)

    def _through(self, changed: dict[str, Tensor], pixels: Tensor) -> Tensor:
        """Logits with other weights; running statistics stay those of the full model."""
        buffers = {name: value.clone() for name, value in self.model.named_buffers()}
        logits: Tensor = functional_call(self.model, {**buffers, **changed}, (pixels,))
        return logits

    @torch.no_grad()
    def _hold(self) -> None:
        if self.frozen is not None:
            head, columns = self.frozen
            head.weight[:, list(columns)] = 0


def _batches(count: int, size: int, generator: torch.Generator) -> list[Tensor]:
    """Random batches; a last one of a single image joins its neighbour (batch norm needs two)."""
    batches = list(torch.randperm(count, generator=generator).split(size))
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
