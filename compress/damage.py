# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""How much a network minds losing channels here or there, and the shares that it minds least.

Of each group of channels, by itself, the weakest units are masked at a few shares, and it is
measured how far that takes what the model says of clean images from what it said before::

    d_g(n) = mean over images of KL(p_uncut || p_without the n weakest units of g)

No label is looked at. Each curve is made convex, and their sum taken for what cutting several
groups does. It is smallest, for a number of channels in all, where at each point that group loses
the next units which minds it least for a channel: Fox, "Discrete optimization via marginal
analysis" (Management Science 1966). Looking at each layer's sensitivity by itself is from Li et
al., "Pruning filters for efficient ConvNets" (ICLR 2017).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

from lmr_guard.classifier import Classifier
from lmr_guard.compress.groups import Groups, masked
from lmr_guard.compress.norms import batch_size, use_batch_statistics
from lmr_guard.contracts import Labelled, Progress, silent

__all__ = ["Damage", "measured"]

_SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
_IMAGES = 128
_WORST = 1e6  # stands for what is no number
_Curve = tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Damage:
    """What cutting does to a classifier, each group by itself.

    Args:
        folds: Channels that a unit of each group has.
        curves: Of each group (units cut, KL divergence in nats), from no unit on; convex.
    """

    folds: tuple[int, ...]
    curves: tuple[_Curve, ...]

    def counts(self, channels: int) -> tuple[int, ...]:
        """Units to cut of each group so that at least so many channels go, at the least damage.

        No group loses more than its curve tells of, which leaves one unit of each.

        >>> soft, hard = ((0, 0.0), (4, 0.1), (8, 0.9)), ((0, 0.0), (8, 0.8))
        >>> Damage((1, 1), (soft, hard)).counts(6)
        (4, 2)
        """
        pieces = sorted(
            ((after - before) / ((last - first) * fold), at, last - first)
            for at, (fold, curve) in enumerate(zip(self.folds, self.curves, strict=True))
            for (first, before), (last, after) in pairwise(curve)
        )
        counts, left = [0] * len(self.curves), channels
        for _, at, units in pieces:
            taken = min(units, max(0, ceil(left / self.folds[at])))
            counts[at] += taken
            left -= taken * self.folds[at]
        return tuple(counts)


@torch.no_grad()
def measured(
    classifier: Classifier,
    groups: Groups,
    images: Labelled,
    *,
    batch_statistics: bool,
    progress: Progress = silent,
) -> Damage:
    """The damage of each group, in five forward passes for each over up to 128 images.

    Args:
        classifier: Uncut, in eval mode; left as it is.
        groups: Its traced structure.
        images: Clean images, at least 2; their labels are not looked at.
        batch_statistics: Whether batch norm goes by what each batch shows: for forms whose
            statistics are taken anew, or whose layers are refit to what they put out.
        progress: Told after each group.
    """
    count = min(len(images), _IMAGES)
    few = images.subset(torch.arange(count) * len(images) // count)
    told = _Told(classifier, few, batch_statistics=batch_statistics)
    state = dict(classifier.named_parameters())
    nothing = told.distance({})
    curves = []
    for at, group in enumerate(groups.all):
        points = {0: nothing}
        for share in _SHARES:
            cut = min(round(group.units * share), group.units - 1)
            if cut not in points:
                counts = [cut if other is group else 0 for other in groups.all]
                points[cut] = told.distance(groups.masks(groups.cuts(state, counts)))
        points.setdefault(group.units - 1, _WORST)
        curves.append(_convex(sorted(points.items())))
        progress("layer shares", at + 1, len(groups.all))
    return Damage(tuple(group.fold for group in groups.all), tuple(curves))


class _Told:
    """What a classifier says of images, and how far its masked forms are from that."""

    def __init__(self, classifier: Classifier, images: Labelled, *, batch_statistics: bool) -> None:
        self._model = classifier.clone()
        self._state = dict(self._model.named_parameters())
        batches = images.batches(batch_size(len(images)))
        self._batches = [pixels.to(self._model.device) for pixels, _ in batches]
        self._wanted = [self._model(pixels).log_softmax(dim=1) for pixels in self._batches]
        if batch_statistics:
            use_batch_statistics(self._model)

    def distance(self, masks: Mapping[str, Tensor]) -> float:
        """Mean KL divergence in nats."""
        own = masked(self._state, masks)
        total = 0.0
        for pixels, wanted in zip(self._batches, self._wanted, strict=True):
            logits = torch.func.functional_call(self._model, own, (pixels,))
            told = logits.log_softmax(dim=1)
            total += float(F.kl_div(told, wanted, reduction="sum", log_target=True))
        mean = total / sum(map(len, self._batches))
        return mean if 0 <= mean < _WORST else (0.0 if mean < 0 else _WORST)


def _convex(points: Sequence[tuple[int, float]]) -> _Curve:
    """The lower hull of points whose heights are first made to rise."""
    hull: list[tuple[int, float]] = []
    highest = 0.0
    for x, height in points:
        highest = max(highest, height)
        while len(hull) > 1 and _is_above(hull[-2], hull[-1], (x, highest)):
            hull.pop()
        hull.append((x, highest))
    return tuple(hull)


def _is_above(left: tuple[int, float], point: tuple[int, float], right: tuple[int, float]) -> bool:
    """Whether a point lies on or above the line between its neighbours."""
    run, rise = right[0] - left[0], right[1] - left[1]
    return (point[1] - left[1]) * run >= rise * (point[0] - left[0])
