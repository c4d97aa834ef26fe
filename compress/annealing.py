# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Layer shares by simulated annealing, as NNI's pruner of that name searches for them.

A candidate moves every layer's share, keeps the overall channel rate, and is scored by clean
accuracy through masks; the best one seen is taken. NNI cools by 0.9 per step and moves each share
by up to 0.35 times the heat. Its temperature accepts almost everything; ours is in units of
accuracy.
"""

from math import exp

import torch
from torch import Tensor

from lmr_guard.classifier import Classifier
from lmr_guard.compress.groups import Groups, masked
from lmr_guard.compress.norms import batch_size, use_batch_statistics
from lmr_guard.compress.recipes import PruneL1
from lmr_guard.contracts import Labelled, Progress, silent
from lmr_guard.measure import accuracy

__all__ = ["annealed"]

_COOLING = 0.9
_MAGNITUDE = 0.35
_TEMPERATURE = 0.02


def annealed(
    classifier: Classifier,
    recipe: PruneL1,
    select: Labelled,
    generator: torch.Generator,
    progress: Progress = silent,
    *,
    groups: Groups,
) -> tuple[int, ...]:
    """Units to cut of each group, searched in ``annealing_steps`` from uniform shares on.

    Args:
        classifier: Left as it is.
        recipe: Ratio, length of the search, and how many images score. Where it takes BN statistics
            anew, candidates are scored with those of the batch: scored with the stale ones, the
            search would choose shares that spare the statistics and not the features.
        select: Clean images that score candidates, at least 2.
        generator: Draws the images and the candidates.
        progress: Told after each candidate.
        groups: The traced structure.
    """
    order = torch.randperm(len(select), generator=generator)
    images = select.subset(order[: recipe.calibration_images])
    model = classifier.clone()
    if recipe.reestimate_bn:
        use_batch_statistics(model)
    return _anneal(_Score(model, groups, images), recipe, generator, progress)


class _Score:
    """Clean accuracy of a candidate, through masks."""

    def __init__(self, model: Classifier, groups: Groups, images: Labelled) -> None:
        self.groups = groups
        self._model, self._images = model, images
        self._state = {name: p.detach() for name, p in model.named_parameters()}

    def __call__(self, counts: tuple[int, ...]) -> float:
        own = masked(self._state, self.groups.masks(self.groups.cuts(self._state, counts)))

        def predict(pixels: Tensor) -> Tensor:
            at = (pixels.to(self._model.device),)
            logits: Tensor = torch.func.functional_call(self._model, own, at)
            return logits

        return accuracy(predict, self._images, batch_size(len(self._images))).value


def _anneal(
    score: _Score,
    recipe: PruneL1,
    generator: torch.Generator,
    progress: Progress,
) -> tuple[int, ...]:
    now = best = score.groups.uniform(recipe.ratio)
    now_score = best_score = score(now)
    for step in range(recipe.annealing_steps):
        heat = _COOLING**step
        trial = _neighbour(score.groups, now, recipe.ratio, _MAGNITUDE * heat, generator)
        got = score(trial)
        chance = exp(min(0.0, got - now_score) / (_TEMPERATURE * heat))
        if float(torch.rand((), generator=generator)) < chance:
            now, now_score = trial, got
        if got > best_score:
            best, best_score = trial, got
        progress(f"layer shares at {recipe.ratio:g}", step + 1, recipe.annealing_steps)
    return best


def _neighbour(
    groups: Groups,
    counts: tuple[int, ...],
    ratio: float,
    reach: float,
    generator: torch.Generator,
) -> tuple[int, ...]:
    """Every share moved by up to ``reach``, then all by the least offset that keeps the rate."""
    moves = (2 * torch.rand(len(counts), generator=generator) - 1) * reach
    shares = [
        count / group.units + move
        for group, count, move in zip(groups.all, counts, moves.tolist(), strict=True)
    ]
    low, high = -2.0, 2.0
    for _ in range(40):
        middle = (low + high) / 2
        if _cut_channels(groups, _rounded(groups, shares, middle)) < ratio * groups.channels:
            low = middle
        else:
            high = middle
    return _rounded(groups, shares, high)


def _rounded(groups: Groups, shares: list[float], offset: float) -> tuple[int, ...]:
    return tuple(
        min(max(0, round(group.units * (share + offset))), group.units - 1)
        for group, share in zip(groups.all, shares, strict=True)
    )


def _cut_channels(groups: Groups, counts: tuple[int, ...]) -> int:
    return sum(group.fold * count for group, count in zip(groups.all, counts, strict=True))
