# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The formulas once more, number by number, as slow and as plain as can be."""

from collections.abc import Sequence
from math import exp, floor, inf, log

Rows = Sequence[Sequence[float]]


def margin(row: Sequence[float], own: int) -> float:
    """``z_c - max_{j != c} z_j``."""
    return row[own] - max(value for j, value in enumerate(row) if j != own)


def repulsion(rows: Rows, suspect: int, m1: float) -> float:
    """DSC: mean of ``max(0, m_c(x) + m_1)``."""
    return sum(max(0.0, margin(row, suspect) + m1) for row in rows) / len(rows)


def confidence(rows: Rows, labels: Sequence[int], m2: float) -> float:
    """CM: mean of ``max(0, max_{j != y} z_j - z_y + m_2)``."""
    hinges = [max(0.0, m2 - margin(row, y)) for row, y in zip(rows, labels, strict=True)]
    return sum(hinges) / len(hinges)


def cross_entropy(rows: Rows, labels: Sequence[int]) -> float:
    """Mean of ``-log softmax_y(z)``."""
    total = 0.0
    for row, y in zip(rows, labels, strict=True):
        highest = max(row)
        total += highest + log(sum(exp(value - highest) for value in row)) - row[y]
    return total / len(rows)


def head_columns(before: Rows, after: Rows, suspect: int, percent: int) -> set[int]:
    """The ``floor(percent / 100 D)`` columns with the largest ``|W1[c, j] - W0[c, j]|``."""
    moved = [abs(a - b) for a, b in zip(after[suspect], before[suspect], strict=True)]
    count = floor(percent * len(moved) / 100)
    return set(sorted(range(len(moved)), key=lambda j: -moved[j])[:count])


def rounded(channel: Sequence[float], bits: int) -> list[int]:
    """The integers of one output channel: ``round(w / s)``, ``s = max |w| / (2^(bits-1) - 1)``."""
    peak = max(abs(value) for value in channel)
    levels = 2 ** (bits - 1) - 1
    return [round(value * levels / peak) if peak else 0 for value in channel]


def shifted(image: Rows, down: int, right: int) -> list[list[float]]:
    """The window that lies that much lower and more to the right; the border goes on for ever."""
    height, width = len(image), len(image[0])

    def at(y: int, x: int) -> float:
        return image[min(max(y, 0), height - 1)][min(max(x, 0), width - 1)]

    return [[at(y + down, x + right) for x in range(width)] for y in range(height)]


def outputs(weight: Rows, bias: Sequence[float], features: Sequence[float]) -> list[float]:
    """Logits of a linear head."""
    return [
        sum(w * h for w, h in zip(row, features, strict=True)) + b
        for row, b in zip(weight, bias, strict=True)
    ]


def flip_share(
    head: tuple[Rows, Sequence[float]],
    features: Sequence[float],
    shift: Sequence[float],
    suspect: int,
    *,
    farthest: float,
) -> tuple[float, float]:
    """t* by search up to ``farthest``, inf where not found; and the highest margin on the way.

    The margin is concave along the way: thirds lead to its top, halves back to where it is 0.
    """

    def at(t: float) -> float:
        point = [h + t * v for h, v in zip(features, shift, strict=True)]
        return margin(outputs(*head, point), suspect)

    low, high = 0.0, farthest
    for _ in range(120):
        left, right = (2 * low + high) / 3, (low + 2 * high) / 3
        low, high = (low, right) if at(left) >= at(right) else (left, high)
    low, high, top = 0.0, low, at(low)
    if at(0.0) >= 0 or top < 0:
        return (0.0 if at(0.0) >= 0 else inf), top
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (low, middle) if at(middle) >= 0 else (middle, high)
    return high, top
