# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Logit-Margin Repulsion: push the suspect class away, cut what moved, recover.

Source: "Logit-Margin Repulsion for Backdoor Defense", CVPR 2026. Phase 1 trains all parameters
on samples outside the suspect class with ``SCE + alpha DSC + beta CM``. Phase 2 cuts the input
columns of the head whose weight to the suspect class moved most in phase 1, holds them at zero
and trains on all clean images with cross-entropy. What the paper leaves open (optimiser, rates,
batch, share of columns, batch norm) is in ``RepelSettings``; docs/methods/tried.md says why.

Five things are added to the paper, and ``PAPER`` is without them:

* *Twins*. A backdoor that sleeps in full precision is out of the reach of losses on the
  full-precision logits, so every step also takes the same loss on one compressed form of the
  current weights.
* *Lures*. Clean images meet the margin losses long before the backdoor is gone. The images outside
  the suspect class carry universal changes, found on the received model, that draw images to that
  class (``lmr_guard.repel.lures``); their labels stay. They come from the model alone.
* *A teacher*. In each step the received model says what other, clean images are, mixed and varied,
  and the model keeps to it: what its clean accuracy rests on needs no labels. Some of them are of
  the suspect class from the first step on, for what a repair costs is mostly that class.
* *A stride*. Of the way from the received weights to the repaired ones no more is gone than it
  takes (``lmr_guard.repel.stride``).
* *An adjustment*. The suspect's logit is lowered by a little in the end
  (``lmr_guard.repel.adjust``).
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor

from lmr_guard.classifier import Classifier, find_head
from lmr_guard.contracts import Clean, Labelled, Progress, Rate, Twin, silent
from lmr_guard.errors import ConfigError, StageError
from lmr_guard.measure import accuracy, predict
from lmr_guard.repel.adjust import lowered
from lmr_guard.repel.losses import suspect_margin
from lmr_guard.repel.lures import Lures
from lmr_guard.repel.settings import RepelSettings
from lmr_guard.repel.stride import Probe, Stride, probe, shortest
from lmr_guard.repel.trainer import (
    Augmentation,
    Diverged,
    Trainer,
    lures_for,
    phase1_loss,
    tolerated,
)
from lmr_guard.results import Repair

__all__ = ["head_columns", "repel"]

# How far below the clean accuracy that is asked a learning rate may be after a quarter of phase 2
# before it is given up.
_HOPELESS = 0.1


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
    clean: Clean,
    *,
    settings: RepelSettings,
    generator: torch.Generator,
    twins: Sequence[Twin] = (),
    observe: Callable[[int, Classifier], None] | None = None,
    progress: Progress = silent,
) -> tuple[Classifier, Repair]:
    """A repaired copy of a classifier whose suspect class is known or suspected.

    Args:
        classifier: As received; not touched.
        suspect: The class ``c`` to repel, in [0, K).
        clean: ``repair`` is learnt from, ``select`` is what the checkpoint is chosen on,
            ``report`` is not looked at.
        settings: See ``RepelSettings``.
        generator: CPU generator for the order of the images and the choice of twins.
        twins: Compressed forms to repel in as well; in each step one, drawn at random.
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
    outside = clean.repair.subset(clean.repair.labels != suspect)
    if len(outside) < 2:
        raise StageError(
            f"expected at least two repair images outside the suspect class, got {len(outside)}"
        )
    before = accuracy(classifier.clone(), clean.select)
    unseen = probe(
        classifier,
        (clean.repair, clean.select),
        suspect,
        settings,
        twins=tuple(twins),
        generator=generator,
    )
    task = _Task(
        classifier=classifier,
        suspect=suspect,
        clean=clean,
        outside=outside,
        settings=settings,
        generator=generator,
        twins=tuple(twins),
        augmentation=tolerated(classifier, clean.select, settings, generator),
        lures=lures_for(
            classifier, outside, suspect, settings, twins=tuple(twins), generator=generator
        ),
        least=before.value - settings.tolerance,
        probe=unseen,
        observe=observe or _unobserved,
        progress=progress,
    )
    best, history = _best_attempt(task)
    return _lowered(task, replace(best, record=replace(best.record, history=history)), before)


def _unobserved(phase: int, model: Classifier) -> None:
    del phase, model


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Task:
    """What all attempts of one repair share; see ``repel``.

    Args:
        outside: The repair images of other classes than the suspect.
        augmentation: How images are varied.
        lures: Found on the model as received; None where settings ask for none.
        least: Clean accuracy on ``select`` at which no other learning rate is tried.
        probe: Lures that no attempt sees; None where the way is always gone to its end.
    """

    classifier: Classifier
    suspect: int
    clean: Clean
    outside: Labelled
    settings: RepelSettings
    generator: torch.Generator
    twins: tuple[Twin, ...]
    augmentation: Augmentation
    lures: Lures | None
    least: float
    probe: Probe | None
    observe: Callable[[int, Classifier], None]
    progress: Progress


@dataclass(frozen=True, slots=True)
class _Attempt:
    """What one learning rate came to.

    Args:
        left: Share of images that unseen lures still carry off; 0 where it suppresses.
    """

    model: Classifier
    record: Repair
    left: float

    @property
    def worth(self) -> float:
        """Images that are carried off count as much as those that are lost."""
        return self.record.clean_after.value - self.left


def _best_attempt(task: _Task) -> tuple[_Attempt, tuple[dict[str, object], ...]]:
    """The first learning rate that suppresses and keeps the clean accuracy, else the best.

    A rate that did not suppress is followed by higher ones, one that cost too much by lower ones.

    Returns:
        The attempt, and what was measured in all of them.
    """
    best: _Attempt | None = None
    history: list[dict[str, object]] = [asdict(task.augmentation)]
    above, below = 0.0, inf
    for lr in task.settings.learning_rates:
        if not above < lr < below:
            continue
        try:
            attempt = _attempt(task, lr)
        except Diverged as error:
            history.append({"lr": lr, "diverged": str(error)})
            below = lr
            continue
        history += attempt.record.history
        if best is None or attempt.worth > best.worth:
            best = attempt
        if attempt.left:
            above = lr
        elif attempt.record.clean_after.value >= task.least:
            break
        else:
            below = lr
    if best is None:
        raise StageError(
            f"expected finite losses at one of the learning rates {task.settings.learning_rates}, "
            "got none; lower the learning rate of the repair"
        )
    return best, tuple(history)


def _lowered(task: _Task, best: _Attempt, before: Rate) -> tuple[Classifier, Repair]:
    """The best attempt with the suspect's logit lowered, and the record of the whole repair."""
    model, by = lowered(best.model, task.suspect, task.clean, task.settings.adjustment)
    after = accuracy(model, task.clean.select)
    told: dict[str, object] = {
        "adjusted": by,
        "select_hits": after.hits,
        "select_trials": after.trials,
    }
    history = (*best.record.history, told)
    return model, replace(best.record, clean_before=before, clean_after=after, history=history)


def _attempt(task: _Task, lr: float) -> _Attempt:
    """Both phases at one learning rate. Raises Diverged."""
    model, settings = task.classifier.clone(), task.settings
    _, head = find_head(model, model.example(), model.num_classes)
    before = head.weight.detach().clone()
    trainer = Trainer(
        model,
        task.suspect,
        settings,
        task.generator,
        clean=task.clean.repair,
        augmentation=task.augmentation,
        twins=task.twins,
        lures=task.lures,
    )
    history: list[dict[str, object]] = []
    limit = _repulsion(task, trainer, lr, history) + settings.slack
    phase1_steps = trainer.steps
    columns = head_columns(before, head.weight.detach(), task.suspect, settings.columns)
    trainer.freeze_columns(head, columns)
    best = _recovery(task, trainer, lr, limit, history)
    model.load_state_dict(best.state)
    task.observe(2, model.clone())
    points, suppresses = shortest(
        task.classifier, model.eval(), task.clean.select, settings, task.probe
    )
    history += [_point(lr, point) for point in points]
    taken = points[-1]
    record = Repair(
        suspect=task.suspect,
        clean_before=taken.clean,
        clean_after=taken.clean,
        pruned_columns=columns,
        phase1_steps=phase1_steps,
        phase2_steps=trainer.steps - phase1_steps,
        history=tuple(history),
    )
    if task.probe is None:
        left = float(best.repulsion > limit)
    else:
        left = 0.0 if suppresses else taken.pull
    return _Attempt(taken.model, record, left)


def _repulsion(task: _Task, trainer: Trainer, lr: float, history: list[dict[str, object]]) -> float:
    """Phase 1, in place; the repulsion loss on ``select`` at its end."""
    settings, step, total = task.settings, *_steps(task, lr)
    loss = partial(phase1_loss, suspect=task.suspect, settings=settings)
    for epoch in range(settings.phase1_epochs):
        trainer.epoch(task.outside, loss, lr)
        checkpoint = _measure(trainer, task.clean.select, task.suspect)
        history.append(_line(lr, 1, trainer.steps, checkpoint))
        task.progress(step, epoch + 1, total)
        enough = epoch + 1 >= settings.phase1_minimum
        if enough and _forgotten(trainer.model, task.clean.repair, task.suspect):
            break
    task.observe(1, trainer.model.clone())
    return checkpoint.repulsion


def _recovery(
    task: _Task, trainer: Trainer, lr: float, limit: float, history: list[dict[str, object]]
) -> _Checkpoint:
    """Phase 2, in place; the best checkpoint on the way."""
    settings, step, total = task.settings, *_steps(task, lr)
    weight = torch.ones(trainer.model.num_classes, device=trainer.model.device)
    weight[task.suspect] = settings.suspect_weight
    loss, epochs = partial(F.cross_entropy, weight=weight), settings.phase2_epochs
    best = None
    for epoch in range(epochs):
        falling = lr * settings.recovery * (1 - epoch / epochs)
        trainer.epoch(task.clean.repair, loss, falling)
        checkpoint = _measure(trainer, task.clean.select, task.suspect)
        history.append(_line(lr, 2, trainer.steps, checkpoint))
        best = _better(best, checkpoint, limit)
        if epoch == epochs // 4 and best.clean.value < task.least - _HOPELESS:
            break
        task.progress(step, settings.phase1_epochs + epoch + 1, total)
    task.progress(step, total, total)
    assert best is not None  # noqa: S101 - phase2_epochs > 0
    return best


def _steps(task: _Task, lr: float) -> tuple[str, int]:
    """What the progress of an attempt is called, and of how many epochs it is."""
    return f"repel at {lr:g}", task.settings.phase1_epochs + task.settings.phase2_epochs


def _measure(trainer: Trainer, select: Labelled, suspect: int) -> _Checkpoint:
    model, settings = trainer.model, trainer.settings
    logits = predict(model, select)
    if not bool(logits.isfinite().all()):
        raise Diverged("logits", trainer.steps)
    outside = suspect_margin(logits[select.labels != suspect], suspect)
    return _Checkpoint(
        clean=Rate(int((logits.argmax(dim=1) == select.labels).sum()), len(select)),
        repulsion=float(F.relu(outside + settings.m1).mean()) if len(outside) else 0.0,
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


def _point(lr: float, stride: Stride) -> dict[str, object]:
    return {
        "lr": lr,
        "stride": stride.share,
        "pull": round(stride.pull, 4),
        "select_hits": stride.clean.hits,
        "select_trials": stride.clean.trials,
    }


def _line(lr: float, phase: int, step: int, checkpoint: _Checkpoint) -> dict[str, object]:
    return {
        "lr": lr,
        "phase": phase,
        "step": step,
        "select_hits": checkpoint.clean.hits,
        "select_trials": checkpoint.clean.trials,
        "repulsion": round(checkpoint.repulsion, 4),
    }
