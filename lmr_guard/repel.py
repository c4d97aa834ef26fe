# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Logit-Margin Repulsion: push the suspect class away, cut what moved, recover.

Source: "Logit-Margin Repulsion for Backdoor Defense", CVPR 2026. Phase 1 trains all parameters
on samples outside the suspect class with ``SCE + alpha DSC + beta CM``. Phase 2 cuts the input
columns of the head whose weight to the suspect class moved most in phase 1, holds them at zero
and trains on all clean images with cross-entropy. What the paper leaves open (optimiser, rates,
batch, share of columns, batch norm) is in ``Config``; docs/methods/repel.md says what was tried.

Two things are added to the paper, and ``PAPER`` is without them:

* *Twins*. A backdoor that sleeps in full precision is out of the reach of losses on the
  full-precision logits, so every step also takes the same loss on one compressed form of the
  current weights.
* *Lures*. Clean images meet the margin losses long before the backdoor is gone. Half of the images
  of a step carry a universal pattern that, at that moment, draws images to the suspect class
  (``lmr_guard.lures``); their labels stay. The patterns come from the model alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from lmr_guard.augmentation import mirrored, shifted
from lmr_guard.classifier import Classifier, find_head
from lmr_guard.contracts import Labelled, Progress, Rate, Repair, Twin, silent
from lmr_guard.errors import ConfigError, StageError
from lmr_guard.lures import Lures
from lmr_guard.margins import lmr_loss, suspect_margin
from lmr_guard.measure import accuracy, predict
from lmr_guard.randomness import private_randomness

__all__ = ["AFTER_PRUNING", "PAPER", "Config", "head_columns", "repel"]

# Clean accuracy that an augmentation may cost the received model, and how far below what is
# asked a learning rate may be after a quarter of phase 2 before it is given up.
_MINDED = 0.02
_HOPELESS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """How the model is repaired; see the module docstring for what the paper fixes.

    Args:
        alpha: Weight of the repulsion (paper: 1).
        beta: Weight of the confidence margin (paper: 0.25).
        m1: Repulsion margin in logits (paper: 3).
        m2: Confidence margin in logits (paper: 0.5).
        learning_rates: Of SGD in phase 1, tried from the first to the last until one keeps the
            clean accuracy. Strong repulsion comes first: how strong it may be depends on the
            scale of the weights and on how well the network generalises.
        recovery: Learning rate at the start of phase 2, in multiples of that of phase 1; it falls
            linearly to 0.
        tolerance: Clean accuracy on ``select`` that a learning rate may cost, a fraction.
        lures: Universal patterns that are kept up to date; 0 for none.
        lure_share: Share of the images outside the suspect class that carry one.
        lure_area: Largest share of an image that one may cover.
        lure_rate: Step size of the patterns.
        lure_steps: Steps that the patterns take before the repair begins.
        twin_weight: Weight of the loss on a twin.
        suspect_weight: Weight of the suspect class in phase 2, which phase 1 has left out.
        momentum: Of SGD.
        weight_decay: Of SGD.
        batch: Images a step.
        shifts: Random translations in pixels that may be used, largest first. The first that
            leaves the received model's accuracy on ``select`` as it is (within 2 points) is taken.
        flip: Whether images may be mirrored at random; they are where the received model minds
            it no more than that.
        phase1_epochs: Step budget of phase 1, in passes over the repair images.
        phase2_epochs: Passes of the recovery.
        phase1_minimum: Passes of phase 1 before its stop rule is looked at.
        columns: Share of the head's input columns that phase 2 cuts, in [0, 1).
        train_bn: Whether batch norm uses and updates batch statistics.
        slack: How much the mean repulsion loss on ``select`` may exceed its value after phase 1,
            in logits, for a checkpoint to count as keeping the margin.
    """

    alpha: float = 1.0
    beta: float = 0.25
    m1: float = 3.0
    m2: float = 0.5
    learning_rates: tuple[float, ...] = (0.05, 0.02, 0.01, 0.003, 0.001)
    recovery: float = 2.0
    tolerance: float = 0.02
    lures: int = 8
    lure_share: float = 0.5
    lure_area: float = 0.05
    lure_rate: float = 0.05
    lure_steps: int = 50
    twin_weight: float = 0.3
    suspect_weight: float = 2.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch: int = 64
    shifts: tuple[int, ...] = (4, 2, 1)
    flip: bool = True
    phase1_epochs: int = 6
    phase2_epochs: int = 24
    phase1_minimum: int = 3
    columns: float = 0.1
    train_bn: bool = True
    slack: float = 0.3

    def __post_init__(self) -> None:
        """Raises ConfigError where a value is out of range."""
        if not 0 <= self.columns < 1:
            raise ConfigError(f"expected columns in [0, 1), got {self.columns}")
        if self.lures < 0 or self.lure_steps < 0 or self.lure_rate <= 0:
            raise ConfigError(
                "expected lures and lure_steps >= 0 and lure_rate > 0, got "
                f"{self.lures}, {self.lure_steps}, {self.lure_rate}"
            )
        if not (0 < self.lure_area <= 1 and 0 <= self.lure_share <= 1):
            raise ConfigError(
                "expected lure_area in (0, 1] and lure_share in [0, 1], got "
                f"{self.lure_area}, {self.lure_share}"
            )
        if self.twin_weight < 0 or self.suspect_weight <= 0:
            raise ConfigError(
                "expected twin_weight >= 0 and suspect_weight > 0, got "
                f"{self.twin_weight}, {self.suspect_weight}"
            )
        if not self.learning_rates or min(self.learning_rates) <= 0:
            raise ConfigError(f"expected learning rates above 0, got {self.learning_rates}")
        if min(self.recovery, self.phase1_epochs, self.phase2_epochs) <= 0 or self.batch < 2:
            raise ConfigError(
                "expected recovery, phase1_epochs and phase2_epochs above 0 and a batch of 2 or "
                f"more, got {self.recovery}, {self.phase1_epochs}, {self.phase2_epochs}, "
                f"{self.batch}"
            )


PAPER = Config(
    lures=0,
    twin_weight=0.0,
    suspect_weight=1.0,
    learning_rates=(0.01,),
    recovery=1.0,
    phase1_epochs=8,
    phase1_minimum=1,
    phase2_epochs=22,
)
"""The paper's losses and phases with nothing added; pass no twins. Its rates are not published."""


AFTER_PRUNING = Config(phase1_epochs=3, phase1_minimum=2, phase2_epochs=12)
"""Half of the passes, for a pruned form of a model that was repaired already. Not in the paper."""


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    """A state worth going back to, with what was measured on ``select``."""

    clean: Rate
    repulsion: float
    state: dict[str, Tensor]


def head_columns(before: Tensor, after: Tensor, suspect: int, share: float) -> tuple[int, ...]:
    """Delta pruning: the input columns whose weight to the suspect class moved most.

    Score of column j: ``|W1[c, j] - W0[c, j]|``; the ``floor(share * D)`` largest are named.

    Args:
        before: Head weight ``W0``, shape (K, D) or (K, D, 1, 1).
        after: Head weight ``W1``, same shape.
        suspect: ``c``.
        share: Share of the D columns, in [0, 1).
    """
    moved = (after[suspect] - before[suspect]).abs().flatten()
    # The tiny term: 0.29 * 100 is a little less than 29.
    count = int(share * len(moved) + 1e-9)
    return tuple(sorted(moved.topk(count).indices.tolist()))


def repel(
    classifier: Classifier,
    suspect: int,
    repair: Labelled,
    select: Labelled,
    *,
    config: Config,
    generator: torch.Generator,
    twins: Sequence[Twin] = (),
    observe: Callable[[int, Classifier], None] | None = None,
    progress: Progress = silent,
) -> tuple[Classifier, Repair]:
    """A repaired copy of a classifier whose suspect class is known or suspected.

    Args:
        classifier: As received; not touched.
        suspect: The class ``c`` to repel, in [0, K).
        repair: Clean images to learn from.
        select: Clean images to choose the checkpoint on.
        config: See ``Config``.
        generator: CPU generator for the order of the images and the choice of twins.
        twins: Compressed forms to repel in as well; one, drawn at random, a step.
        observe: Shown a copy of the model after phase 1 and after phase 2 of each learning rate
            that is tried, with the number of the phase.
        progress: Told after each epoch.

    Returns:
        The repaired classifier in eval mode, and the record.

    Raises:
        ConfigError: ``suspect`` is no class of the model.
        InputError: No head was found.
        StageError: Fewer than two samples outside the suspect class, or training diverged.
    """
    if not 0 <= suspect < classifier.num_classes:
        raise ConfigError(
            f"expected a suspect class in [0, {classifier.num_classes}), got {suspect}"
        )
    outside = repair.subset(repair.labels != suspect)
    if len(outside) < 2:
        raise StageError(
            f"expected at least two repair images outside the suspect class, got {len(outside)}"
        )
    before = accuracy(classifier.clone(), select)
    least = before.value - config.tolerance
    best: _Attempt | None = None
    augmentation = _tolerated(classifier.clone(), select, config, generator)
    history: list[dict[str, object]] = [asdict(augmentation)]
    for lr in config.learning_rates:
        try:
            attempt = _attempt(
                classifier,
                suspect,
                repair,
                select,
                lr=lr,
                config=config,
                generator=generator,
                twins=tuple(twins),
                augmentation=augmentation,
                least=least,
                observe=observe,
                progress=progress,
            )
        except _Diverged as error:
            history.append({"lr": lr, "diverged": str(error)})
            continue
        history += attempt.record.history
        if best is None or attempt.rank > best.rank:
            best = attempt
        if best.record.clean_after.value >= least:
            break
    if best is None:
        raise StageError(
            f"expected finite losses at one of the learning rates {config.learning_rates}, got "
            "none; lower the learning rate of the repair"
        )
    return best.model, replace(best.record, clean_before=before, history=tuple(history))


@dataclass(frozen=True, slots=True)
class _Attempt:
    """What one learning rate came to."""

    model: Classifier
    record: Repair
    keeps_margin: bool

    @property
    def rank(self) -> tuple[bool, int]:
        """Higher is better: what keeps the margin first, then clean accuracy."""
        return self.keeps_margin, self.record.clean_after.hits


def _attempt(
    classifier: Classifier,
    suspect: int,
    repair: Labelled,
    select: Labelled,
    *,
    lr: float,
    config: Config,
    generator: torch.Generator,
    twins: tuple[Twin, ...],
    augmentation: "_Augmentation",
    least: float,
    observe: Callable[[int, Classifier], None] | None,
    progress: Progress,
) -> _Attempt:
    """Both phases at one learning rate. Raises _Diverged."""
    model = classifier.clone()
    _, head = find_head(model, model.example(), model.num_classes)
    outside = repair.subset(repair.labels != suspect)
    before = head.weight.detach().clone()
    trainer = _Trainer(model, suspect, config, generator, twins=twins, augmentation=augmentation)
    trainer.search(outside)
    history: list[dict[str, object]] = []
    step, total = f"repel at {lr:g}", config.phase1_epochs + config.phase2_epochs

    for epoch in range(config.phase1_epochs):
        trainer.epoch(outside, lambda z, y: _phase1_loss(z, y, suspect, config), lr)
        checkpoint = _measure(trainer, select, suspect)
        history.append(_line(lr, 1, trainer.steps, checkpoint))
        progress(step, epoch + 1, total)
        if epoch + 1 >= config.phase1_minimum and _forgotten(model, repair, suspect):
            break
    if observe is not None:
        observe(1, model.clone())
    phase1_steps, limit = trainer.steps, checkpoint.repulsion + config.slack

    columns = head_columns(before, head.weight.detach(), suspect, config.columns)
    trainer.freeze_columns(head, columns)
    weight = torch.ones(model.num_classes, device=model.device)
    weight[suspect] = config.suspect_weight
    best = None
    for epoch in range(config.phase2_epochs):
        falling = lr * config.recovery * (1 - epoch / config.phase2_epochs)
        trainer.epoch(repair, partial(F.cross_entropy, weight=weight), falling)
        checkpoint = _measure(trainer, select, suspect)
        history.append(_line(lr, 2, trainer.steps, checkpoint))
        best = _better(best, checkpoint, limit)
        if epoch == config.phase2_epochs // 4 and best.clean.value < least - _HOPELESS:
            break
        progress(step, config.phase1_epochs + epoch + 1, total)
    progress(step, total, total)
    assert best is not None  # noqa: S101 - phase2_epochs > 0
    model.load_state_dict(best.state)
    if observe is not None:
        observe(2, model.clone())
    record = Repair(
        suspect=suspect,
        clean_before=best.clean,
        clean_after=best.clean,
        pruned_columns=columns,
        phase1_steps=phase1_steps,
        phase2_steps=trainer.steps - phase1_steps,
        history=tuple(history),
    )
    return _Attempt(model.eval(), record, best.repulsion <= limit)


@dataclass(frozen=True, slots=True)
class _Augmentation:
    """How the repair images are varied."""

    shift: int
    flip: bool

    def __call__(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Another version of each image."""
        if self.flip:
            pixels = mirrored(pixels, generator)
        return shifted(pixels, self.shift, generator)


def _tolerated(
    model: Classifier, select: Labelled, config: Config, generator: torch.Generator
) -> _Augmentation:
    """What the received model was evidently trained to tolerate; digits, say, do not mirror."""
    pixels, labels = select.pixels.to(model.device), select.labels.to(model.device)

    def hits(changed: Tensor) -> int:
        with torch.no_grad():
            return sum(
                int((model(part).argmax(dim=1) == own).sum())
                for part, own in zip(changed.split(256), labels.split(256), strict=True)
            )

    least = hits(pixels) - _MINDED * len(select)
    shift = next((s for s in config.shifts if hits(shifted(pixels, s, generator)) >= least), 0)
    return _Augmentation(shift, config.flip and hits(pixels.flip(3)) >= least)


class _Diverged(StageError):
    """The training left the finite numbers; a lower learning rate may keep to them."""

    def __init__(self, what: str, step: int) -> None:
        super().__init__(f"expected finite {what}, got others at step {step} of the repair")


class _Trainer:
    """Steps over a model and its twins, with head columns that can be held at zero."""

    def __init__(
        self,
        model: Classifier,
        suspect: int,
        config: Config,
        generator: torch.Generator,
        *,
        twins: tuple[Twin, ...],
        augmentation: "_Augmentation",
    ) -> None:
        self.model = model
        self.suspect = suspect
        self.augmentation = augmentation
        self.config = config
        self.generator = generator
        self.twins = twins
        self.steps = 0
        self.frozen: tuple[nn.Linear | nn.Conv2d, tuple[int, ...]] | None = None
        self.optimiser = torch.optim.SGD(
            model.parameters(),
            lr=config.learning_rates[0],
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        shape = model.preprocessing
        self.lures = Lures(
            config.lures,
            (shape.channels, shape.height, shape.width),
            area=config.lure_area,
            rate=config.lure_rate,
            generator=generator,
            device=model.device,
        )

    def search(self, outside: Labelled) -> None:
        """Lets the lures find what draws images of other classes, on the model and its twins."""
        if not self.config.lures:
            return
        self.model.train(self.config.train_bn)
        with private_randomness(self.generator, self.model.device):
            for _ in range(self.config.lure_steps):
                size = min(self.config.batch, len(outside))
                chosen = torch.randperm(len(outside), generator=self.generator)[:size]
                pixels = outside.images[chosen].to(self.model.device).float() / 255
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
        """One pass over ``data`` in random order. Raises _Diverged where the loss is no number."""
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self.model.train(self.config.train_bn)
        with private_randomness(self.generator, self.model.device):
            for index in _batches(len(data), self.config.batch, self.generator):
                self._step(data.subset(index), loss)
        self.model.eval()

    def _step(self, data: Labelled, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        pixels = data.images.to(self.model.device).float() / 255
        pixels = self.augmentation(pixels, self.generator)
        labels = data.labels.to(self.model.device)
        lured = self._drawn(labels)
        if lured.any():
            pixels = pixels.index_put((lured,), self.lures(pixels[lured]))
        outputs = [self.model(pixels)]
        value = loss(outputs[0], labels)
        if self.twins:
            outputs.append(self._through(self._twin(), pixels))
            value = value + self.config.twin_weight * loss(outputs[1], labels)
        if not bool(value.isfinite()):
            raise _Diverged("loss", self.steps)
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
        share = self.config.lure_share if self.config.lures else 0.0
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


def _phase1_loss(logits: Tensor, labels: Tensor, suspect: int, config: Config) -> Tensor:
    return lmr_loss(
        logits,
        labels,
        suspect,
        alpha=config.alpha,
        beta=config.beta,
        m1=config.m1,
        m2=config.m2,
    )


def _measure(trainer: _Trainer, select: Labelled, suspect: int) -> _Checkpoint:
    model, config = trainer.model, trainer.config
    logits = predict(model, select)
    if not bool(logits.isfinite().all()):
        raise _Diverged("logits", trainer.steps)
    outside = suspect_margin(logits[select.labels != suspect], suspect)
    return _Checkpoint(
        clean=Rate(int((logits.argmax(dim=1) == select.labels).sum()), len(select)),
        repulsion=float(F.relu(outside + config.m1).mean()) if len(outside) else 0.0,
        state={name: value.detach().clone() for name, value in model.state_dict().items()},
    )


def _forgotten(model: Classifier, repair: Labelled, suspect: int) -> bool:
    """Stop rule of phase 1: the suspect class is recognised no better than by chance."""
    own = repair.subset(repair.labels == suspect)
    return len(own) > 0 and accuracy(model, own).value <= 1 / model.num_classes


def _better(best: _Checkpoint | None, new: _Checkpoint, limit: float) -> _Checkpoint:
    """The higher clean accuracy among those that keep the margin; else the wider margin."""
    if best is None:
        return new
    if (new.repulsion <= limit) != (best.repulsion <= limit):
        return new if new.repulsion <= limit else best
    if new.repulsion <= limit:
        return new if new.clean.hits >= best.clean.hits else best
    return new if new.repulsion <= best.repulsion else best


def _line(lr: float, phase: int, step: int, checkpoint: _Checkpoint) -> dict[str, object]:
    return {
        "lr": lr,
        "phase": phase,
        "step": step,
        "select_hits": checkpoint.clean.hits,
        "select_trials": checkpoint.clean.trials,
        "repulsion": round(checkpoint.repulsion, 4),
    }
