# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Clean images -> three disjoint parts, and whether the model recognises them at all."""

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lmr_guard.contracts import Clean, Labelled, Rate
from lmr_guard.errors import ConfigError, InputError
from lmr_guard.measure import right
from lmr_guard.received.found import listed

__all__ = ["check_agreement", "check_order", "divide", "split"]

# Of all clean images, and how many at most.
_REPAIR = (0.4, 2000)
_SELECT = (0.2, 500)

_MOST = 0.5  # of a class's images, taken for another class, are no mere mistakes
_ROUNDING = 1e-6  # of float32
_ABSENT = 0.01  # chance that all images of a class are wrong
_CHANCE = 0.05  # of another order of the classes where the given one is right


# --- the parts ----------------------------------------------------------------------------------


def divide(
    images: Labelled, repair: int | None, select: int | None, generator: torch.Generator
) -> Clean:
    """Three disjoint parts; see ``split``.

    Args:
        images: All clean images.
        repair: Images to learn from; None takes 40 % of the images, at most 2000.
        select: Images to choose on; None takes 20 %, at most 500.
        generator: Decides which images go where.
    """
    k = len(images.classes)
    if repair is None:
        repair = _default_size(len(images), *_REPAIR, least=k, spare=2 * k)
    if select is None:
        select = _default_size(len(images), *_SELECT, least=k, spare=repair + k)
    return split(images, repair=repair, select=select, generator=generator)


def _default_size(count: int, share: float, most: int, *, least: int, spare: int) -> int:
    """A share of the images, but not so many that the other parts would lack a class."""
    return max(least, min(most, int(share * count), count - spare))


def split(data: Labelled, *, repair: int, select: int, generator: torch.Generator) -> Clean:
    """Three disjoint parts with the classes in the proportions of the whole, in random order.

    Images that are the same byte for byte stay together, so that no part holds an image of
    another part; such an image under two labels counts to the class where it comes first. A part
    is smaller than asked where a group does not fit into what is left of it, and larger where
    that is a class's only way to be in it.

    Args:
        data: All clean images.
        repair: Images to learn from, at least one per class.
        select: Images to choose on, at least one per class; what remains is to report on.
        generator: Decides which images go where.

    Raises:
        ConfigError: The parts ask for more images than there are, or for fewer than K.
        InputError: A class has fewer than three images that differ.
    """
    total, k = len(data), len(data.classes)
    if min(repair, select) < k or repair + select > total - k:
        raise ConfigError(
            f"expected repair and select of at least {k} images each, one per class, that leave "
            f"{k} of the {total} images to report on, got repair {repair} and select {select}"
        )
    groups = _groups(data, generator)
    counts = [sum(map(len, of_class)) for of_class in groups]
    first = _quotas(counts, repair, [count - 2 for count in counts])
    left = [count - quota for count, quota in zip(counts, first, strict=True)]
    second = _quotas(counts, select, [count - 1 for count in left])
    parts: list[list[int]] = [[], [], []]
    for of_class, *quotas in zip(groups, first, second, strict=True):
        for part, taken in zip(parts, _dealt(of_class, quotas), strict=True):
            part.extend(taken)
    return Clean(*(data.subset(torch.tensor(_shuffled(part, generator))) for part in parts))


def _groups(data: Labelled, generator: torch.Generator) -> list[list[list[int]]]:
    """For each class, in random order, the positions of its images; equal images in one list."""
    same: dict[bytes, list[int]] = defaultdict(list)
    for i, image in enumerate(data.images):
        same[hashlib.sha256(image.numpy().tobytes()).digest()].append(i)
    of_class: list[list[list[int]]] = [[] for _ in data.classes]
    for positions in same.values():
        of_class[int(data.labels[positions[0]])].append(positions)
    few = [f"{c}: {len(g)}" for c, g in zip(data.classes, of_class, strict=True) if len(g) < 3]
    if few:
        raise InputError(
            "expected at least 3 images that differ in every class, one for each part, got "
            + listed(few)
        )
    return [[g[i] for i in _shuffled(range(len(g)), generator)] for g in of_class]


def _quotas(counts: Sequence[int], total: int, most: Sequence[int]) -> list[int]:
    """Whole numbers near the proportions of ``counts`` that add up, from 1 to ``most`` each."""
    ideal = [total * count / sum(counts) for count in counts]
    quotas = [min(max(1, int(share)), top) for share, top in zip(ideal, most, strict=True)]
    while missing := total - sum(quotas):
        step = 1 if missing > 0 else -1
        free = [i for i, quota in enumerate(quotas) if 1 <= quota + step <= most[i]]
        quotas[max(free, key=lambda i: step * (ideal[i] - quotas[i]))] += step
    return quotas


def _dealt(groups: Sequence[list[int]], quotas: Sequence[int]) -> list[list[int]]:
    """Positions for each quota, and the rest; at least one group goes to each of them."""
    left, parts = list(groups), []
    for reserved, quota in zip(range(len(quotas), 0, -1), quotas, strict=True):
        part: list[int] = []
        rest: list[list[int]] = []
        for at, group in enumerate(left):
            spare = len(rest) + len(left) - at > reserved
            if spare and len(part) + len(group) <= quota:
                part.extend(group)
            else:
                rest.append(group)
        if not part:
            smallest = min(rest, key=len)
            rest.remove(smallest)
            part.extend(smallest)
        parts.append(part)
        left = rest
    return [*parts, [i for group in left for i in group]]


def _shuffled(positions: Sequence[int], generator: torch.Generator) -> list[int]:
    order = torch.randperm(len(positions), generator=generator).tolist()
    return [positions[i] for i in order]


def check_agreement(logits: Tensor, data: Labelled) -> None:
    """Refuse images that the model does not recognise: other classes, or another order of them.

    Args:
        logits: Of the model as received for ``data``, shape (N, K).
        data: Clean images.

    Raises:
        InputError: There are more or fewer classes than logits; or the lower Wilson bound of CA is
            not above 1/K, what guessing would reach; or that of the mean over the classes is not,
            as where one class is the answer to nearly everything; or some classes stand for one
            another in a circle, each by the lower bound of more than half of its images; or see
            ``check_order``.
    """
    clean_accuracy, num_classes = right(logits, data), len(data.classes)
    if logits.shape[1] != num_classes:
        raise InputError(
            f"expected {num_classes} logits, one for each class of the clean images, got "
            f"{logits.shape[1]}; use a folder with the model's classes"
        )
    if clean_accuracy.lower() <= 1 / num_classes:
        raise InputError(
            "expected the folders to be the model's classes in its order, got clean accuracy "
            f"{clean_accuracy}, no better than chance 1/{num_classes}; pass the class order, and "
            "check size and normalisation"
        )
    if _mean_over_classes(logits.argmax(dim=1), data) <= 1 / num_classes + _ROUNDING:
        raise InputError(
            "expected the folders to be the model's classes in its order, got clean accuracy "
            f"{clean_accuracy}, but over the classes no better than one answer to everything; "
            "check size and normalisation"
        )
    if mixed := _mixed_up(logits.argmax(dim=1), data):
        names = [data.classes[c] for c in mixed]
        told = ", ".join(f"{a} as {b}" for a, b in zip(names, names[1:] + names[:1], strict=True))
        raise InputError(
            f"expected the folders to be the model's classes in its order, got {told} for most of "
            "their images; pass the class order"
        )
    check_order(logits, data)


def check_order(logits: Tensor, data: Labelled) -> None:
    """Refuse images whose classes stand in another order than the model's, told from all together.

    The permutation of the classes that the predictions fit best is taken as one hypothesis. It
    must beat the given order in two ways. Of the images of moved classes that either order would
    have right, more must be right by the permutation than by a model that cannot tell those classes
    apart: a sign test at 5 %, for as many choices as there are of so many circles of classes among
    those that cannot be told apart, by what is wrong of the classes that stay. And it must be
    likelier than the given order by more than there are ways to move so many classes, where a model
    that is wrong lands anywhere.

    Args:
        logits: Of the model as received for ``data``, shape (N, K).
        data: Clean images; a few in each class suffice.

    Raises:
        InputError: The permutation beats the given order.
    """
    k, landed = len(data.classes), logits.argmax(dim=1)
    table = torch.bincount(data.labels * k + landed, minlength=k * k).view(k, k)
    circles = _circles(table)
    moved = {c: to for circle in circles for c, to in circle.items()}
    stay = sum(int(table[c, c]) for c in moved)
    move = sum(int(table[c, to]) for c, to in moved.items())
    right_now = int(table.diagonal().sum())
    right_then = right_now - stay + move
    share = (right_then + 1) / (len(data) + 2)
    likelier = (move - stay) * math.log(max(share * (k - 1) / (1 - share), 1))
    rest = len(data) - int(table.sum(dim=1)[list(moved)].sum())
    alike = round(k * (rest - right_now + stay) / max(rest, 1))
    choices = math.comb(max(alike, len(circles)), len(circles)) * 2 ** len(circles)
    chance = _at_least(move, move + stay) * choices
    if chance < _CHANCE and likelier > len(moved) * math.log(k) - math.log(_CHANCE):
        names = {data.classes[c]: data.classes[to] for c, to in moved.items()}
        told = listed([f"{a} as {b}" for a, b in names.items()])
        raise InputError(
            f"expected the folders to be the model's classes in its order, got {right_then} of "
            f"{len(data)} images right with {told}, and {right_now} as they are; pass the "
            "class order"
        )


def _circles(table: Tensor) -> list[dict[int, int]]:
    """Classes that move under the best permutation, circle by circle, where none rather stays."""
    from scipy.optimize import linear_sum_assignment

    # Of permutations that are equally good the one that moves least.
    gain = 2 * table.numpy() + np.eye(len(table), dtype=np.int64)
    best = dict(enumerate(linear_sum_assignment(gain, maximize=True)[1].tolist()))
    wrong = 1 - (sum(int(table[c, to]) for c, to in best.items()) + 1) / (int(table.sum()) + 2)
    found, seen = [], set()
    for start in best:
        circle, at = {}, start
        while at not in seen:
            seen.add(at)
            circle[at] = best[at]
            at = best[at]
        # Where a class would not be there by the permutation either, there is another reason.
        fits = (
            table[c, to] >= table[c, c]
            and (table[c, to] > 0 or wrong ** int(table[c].sum()) > _ABSENT / len(circle))
            for c, to in circle.items()
        )
        if len(circle) > 1 and all(fits):
            found.append(circle)
    return found


def _at_least(hits: int, trials: int) -> float:
    """How likely a fair coin falls on one side so often."""
    return float(sum(math.comb(trials, i) for i in range(hits, trials + 1)) / 2**trials)


def _mean_over_classes(landed: Tensor, data: Labelled) -> float:
    """Lower normal bound (95 %) of the mean share that is right of each class there is."""
    totals = data.labels.bincount(minlength=len(data.classes))
    hits = data.labels[landed == data.labels].bincount(minlength=len(data.classes))
    shares = (hits / totals)[totals > 0]
    variance = (shares * (1 - shares) / totals[totals > 0]).sum() / len(shares) ** 2
    return float(shares.mean() - 1.96 * variance.sqrt())


def _mixed_up(landed: Tensor, data: Labelled) -> list[int]:
    """Classes that the model takes for one another in a circle; empty where there are none."""
    k = len(data.classes)
    table = torch.bincount(data.labels * k + landed, minlength=k * k).view(k, k)
    (hits, most), total = table.max(dim=1), table.sum(dim=1)
    taken_for = {
        c: int(most[c])
        for c in range(k)
        if int(most[c]) != c and Rate(int(hits[c]), int(total[c])).lower() > _MOST
    }
    for start, first in taken_for.items():
        path, at = [start], first
        while at in taken_for and at not in path:
            path.append(at)
            at = taken_for[at]
        if at == start:
            return path
    return []
