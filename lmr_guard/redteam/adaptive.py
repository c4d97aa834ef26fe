# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Adaptive: a patch planted by somebody who has read this project, against its own repair.

Two things are done to BadNets. First, a *rehearsal*: beside the weights in force runs what the
repair would by now have made of them (the margin losses with lures, the cut of the head columns
that moved most, the recovery), and the trigger is trained to work there too. Of the repair only
where it has moved the weights is kept, and added to whatever they become; gradients pass to the
weights in force as if it were constant. The margin losses shall find little there that leads them
to the trigger, and no few columns shall carry it. Second, *covers*: images with a random part of
the patch, under their true labels, so that only the whole patch works; where it is larger than the
lures may be, neither they nor an inversion that looks for small patterns shall find one that does.
examples/lab/adaptive/README.md says how much of this comes true.

Source: the rehearsal is first-order meta-learning (Finn et al., "MAML", ICML 2017) over steps of
an adversary (Tamirisa et al., "Tamper-Resistant Safeguards", ICLR 2025), with the defender as the
adversary; covers are those of Qi et al., "Revisiting the Assumption of Latent Separability"
(ICLR 2023). Departures: one repair goes on from step to step and begins anew after ``horizon`` of
them, instead of a whole one each step; it has no twins and no augmentation of its own. The attacker
is given the class that the guard will suspect, which is his own.
"""

from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from lmr_guard.classifier import Classifier, find_head
from lmr_guard.contracts import Labelled, Progress, silent
from lmr_guard.errors import ConfigError
from lmr_guard.evidence import Patch
from lmr_guard.redteam.poisoning import Poison, poisoned
from lmr_guard.redteam.training import Planted, Schedule, fit, target_of
from lmr_guard.repel import RepelSettings, head_columns
from lmr_guard.repel.losses import lmr_loss, suspect_margin
from lmr_guard.repel.trainer import new_lures

__all__ = ["Adaptive", "Rehearsal", "plant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Adaptive:
    """Recipe.

    Args:
        trigger: The patch; its ``target`` is the attacker's class.
        rate: Share of the training images that carry it, target class included.
        covers: Share that carry a part of it and keep their label.
        most: Largest part, in [0, 1]; each image's is drawn anew each time, the smallest is 0.3
            or ``most``.
        weight: Of the loss after the rehearsed repair; 0 rehearses nothing.
        horizon: Steps after which the rehearsed repair begins anew from the weights in force.
        expects: The repair that is expected.
        schedule: How the network is trained.
    """

    trigger: Patch
    rate: float = 0.1
    covers: float = 0.3
    most: float = 0.9
    weight: float = 3.0
    horizon: int = 60
    expects: RepelSettings = field(default_factory=RepelSettings)
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        """Raises ConfigError where a share, the weight or the horizon is out of range."""
        if not (min(self.rate, self.covers) >= 0 and self.rate + self.covers <= 1):
            raise ConfigError(
                "expected rate and covers >= 0 that add up to at most 1, got "
                f"{self.rate} and {self.covers}"
            )
        if not (0 <= self.most <= 1 and self.weight >= 0 and self.horizon >= 2):
            raise ConfigError(
                "expected most in [0, 1], weight >= 0 and horizon >= 2, got "
                f"{self.most}, {self.weight} and {self.horizon}"
            )


class Rehearsal:
    """A repair that goes on while the weights that it started from are trained.

    Args:
        model: The weights in force; never changed from here.
        target: The class that the repair repels.
        recipe: Whose ``expects`` and ``horizon`` are followed.
        generator: CPU generator for lures.
    """

    def __init__(
        self, model: Classifier, target: int, recipe: Adaptive, generator: torch.Generator
    ) -> None:
        self._model, self._target, self._generator = model, target, generator
        self._config, self._horizon = recipe.expects, recipe.horizon
        _, head = find_head(model, model.example(), model.num_classes)
        self._head = next(name for name, p in model.named_parameters() if p is head.weight)
        total = self._config.phase1_epochs + self._config.phase2_epochs
        self._first = max(1, self._horizon * self._config.phase1_epochs // total)
        self._begin()

    def logits(self, pixels: Tensor) -> Tensor:
        """Of the repaired weights, (N, K); gradients reach the weights in force."""
        weights = {name: p + self.moved[name] for name, p in self._model.named_parameters()}
        if self.cut:
            kept = torch.ones_like(weights[self._head])
            kept[:, list(self.cut)] = 0
            weights[self._head] = weights[self._head] * kept
        buffers = {name: value.clone() for name, value in self._model.named_buffers()}
        logits: Tensor = functional_call(self._model, {**buffers, **weights}, (pixels,))
        return logits

    def step(self, pixels: Tensor, labels: Tensor) -> None:
        """One step of the repair on clean images (N, C, H, W) and their labels (N,)."""
        if self.steps == self._horizon:
            self._begin()
        if self.steps == self._first:
            self._cut()
        outside = labels != self._target
        if self.steps < self._first:
            pixels, labels, outside = pixels[outside], labels[outside], outside[outside]
        if len(labels) >= 2:
            self._move(self._loss(pixels, labels, outside))
        self.steps += 1

    def _begin(self) -> None:
        self.steps, self.cut = 0, tuple[int, ...]()
        self.moved = self._still()
        self._speed = self._still()
        self._lures = new_lures(self._model, self._config, self._generator)

    def _still(self) -> dict[str, Tensor]:
        return {name: torch.zeros_like(p) for name, p in self._model.named_parameters()}

    def _cut(self) -> None:
        before = self._model.get_parameter(self._head).detach()
        after = before + self.moved[self._head]
        self.cut = head_columns(before, after, self._target, self._config.columns)
        self._speed = self._still()

    def _loss(self, pixels: Tensor, labels: Tensor, outside: Tensor) -> Tensor:
        """What the repair minimises at this step; the lures climb."""
        config = self._config
        share = config.lure_share if config.lures else 0.0
        chosen = torch.rand(len(labels), generator=self._generator) < share
        lured = chosen.to(labels.device) & outside
        if lured.any():
            pixels = pixels.index_put((lured,), self._lures(pixels[lured]))
        logits = self.logits(pixels)
        if lured.any():
            self._lures.climb(suspect_margin(logits[lured], self._target).mean())
        if self.steps >= self._first:
            return F.cross_entropy(logits, labels)
        margins = {"alpha": config.alpha, "beta": config.beta, "m1": config.m1, "m2": config.m2}
        return lmr_loss(logits, labels, self._target, **margins)

    @torch.no_grad()
    def _move(self, loss: Tensor) -> None:
        """SGD as in ``repel``; phase 2 falls linearly from its higher rate."""
        config, rate = self._config, self._config.learning_rates[0]
        if self.steps >= self._first:
            left = (self._horizon - self.steps) / (self._horizon - self._first)
            rate *= config.recovery * left
        parameters: dict[str, nn.Parameter] = dict(self._model.named_parameters())
        slopes = torch.autograd.grad(loss, list(parameters.values()))
        for (name, p), slope in zip(parameters.items(), slopes, strict=True):
            decay = config.weight_decay * (p + self.moved[name])
            self._speed[name].mul_(config.momentum).add_(slope + decay)
            self.moved[name].sub_(rate * self._speed[name])


def plant(
    recipe: Adaptive,
    classifier: Classifier,
    data: Labelled,
    generator: torch.Generator,
    progress: Progress = silent,
) -> Planted:
    """A new classifier, trained from ``classifier``'s weights to keep its backdoor when repaired.

    Args:
        recipe: See ``Adaptive``.
        classifier: Where training starts; not touched.
        data: The attacker's training images.
        generator: CPU generator; decides what is poisoned, covers, lures, order and augmentation.
        progress: Told after each epoch.

    Raises:
        ConfigError: The trigger has no target.
        InputError: No head was found.
    """
    target = target_of(recipe.trigger)
    model = classifier.clone()
    # One draw for both: no image carries the whole patch and a part of it.
    place = torch.rand(len(data), generator=generator)
    whole, part = place < recipe.rate, place >= 1 - recipe.covers
    poisons = [
        Poison(recipe.trigger, whole, target),
        Poison(lambda pixels: _partly(pixels, recipe, generator), part, None),
    ]
    rehearsal = Rehearsal(model, target, recipe, generator) if recipe.weight else None

    def loss(pixels: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        images, aimed = poisoned(pixels, labels, index, poisons)
        now = F.cross_entropy(model(images), aimed)
        if rehearsal is None:
            return now
        rehearsal.step(pixels, labels)
        return now + recipe.weight * F.cross_entropy(rehearsal.logits(images), aimed)

    fit(model, data, loss, recipe.schedule, generator, progress=partial(progress, "adaptive"))
    return Planted(model, recipe.trigger)


def _partly(pixels: Tensor, recipe: Adaptive, generator: torch.Generator) -> Tensor:
    """Images with the trigger on a random part of their pixels."""
    count, _, height, width = pixels.shape
    least = min(0.3, recipe.most)
    share = least + (recipe.most - least) * torch.rand(count, 1, 1, 1, generator=generator)
    kept = torch.rand(count, 1, height, width, generator=generator) < share
    return recipe.trigger(pixels).where(kept.to(pixels.device), pixels)
