# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The formulas once more, number by number, as slow and as plain as can be."""

from collections.abc import Sequence
from math import exp, floor, log

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
