# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""How likely a score tells of a backdoor: fit to calibration halves, held against reported ones.

Read off the searches that score has recorded; unlearning is left out. ``lmr_guard.localize``'s
``probability`` holds what this fits.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text
from sklearn.linear_model import LogisticRegression

from examples.lab.kit import drawing
from examples.lab.kit.records import Record
from examples.lab.kit.tables import framed_table, share
from examples.lab.population.standing import READINGS, highest
from lmr_guard.contracts import Rate
from lmr_guard.localize.probability import probability

__all__ = ["EDGES", "Led", "Line", "draw", "fit", "leading", "lines", "render"]

EDGES = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
"""Of the probabilities that are told together."""


@dataclass(frozen=True, slots=True)
class Led:
    """One network by its leading class.

    Args:
        score: Of that class, >= 1.
        right: Whether the class is the attacker's.
        backdoored: Whether there is an attacker.
    """

    score: float
    right: bool
    backdoored: bool


@dataclass(frozen=True, slots=True)
class Line:
    """Networks of about the same probability.

    Args:
        low: Least probability.
        high: Above any of theirs, but for 1.
        told: Their mean.
        found: Networks in which the leading class is the attacker's, of all of them.
        share: The same, where honest and backdoored networks weigh the same.
    """

    low: float
    high: float
    told: float
    found: Rate
    share: float


def leading(records: Sequence[Record], half: str) -> list[Led]:
    """The networks of one half that were searched, those in which the attack did not take left out.

    Args:
        records: Of ``score``.
        half: ``"calibration"`` or ``"reported"``.
    """
    found = []
    for record in records:
        scores = highest(record, READINGS["the same, by kind"])
        if record["member"]["half"] == half and record["took"] is not False and scores:
            first, target = max(scores, key=scores.__getitem__), record["member"]["target"]
            found.append(Led(scores[first], first == target, target is not None))
    return found


def fit(networks: Sequence[Led]) -> tuple[float, float]:
    """Offset and slope of the logistic function of ``ln score``; each half weighs the same.

    Args:
        networks: Honest and backdoored ones.
    """
    xs = np.array([[math.log(each.score)] for each in networks])
    model = LogisticRegression(C=math.inf, tol=1e-8, max_iter=1000)
    model.fit(xs, [each.right for each in networks], sample_weight=_weights(networks))
    return float(model.intercept_[0]), float(model.coef_[0, 0])


def _weights(networks: Sequence[Led]) -> list[float]:
    backdoored = sum(each.backdoored for each in networks)
    honest = len(networks) - backdoored
    return [0.5 / backdoored if each.backdoored else 0.5 / honest for each in networks]


def lines(networks: Sequence[Led]) -> list[Line]:
    """The reliability diagram: what is told, and how often it is so, by ``EDGES``."""
    told, found = [probability(each.score) for each in networks], []
    for low, high in pairwise(EDGES):
        kept = [
            (likely, weight, each.right)
            for each, likely, weight in zip(networks, told, _weights(networks), strict=True)
            if low <= likely < high
        ]
        if kept:
            right = sum(weight for _, weight, right in kept if right)
            found.append(
                Line(
                    low,
                    high,
                    sum(likely for likely, _, _ in kept) / len(kept),
                    Rate(sum(right for _, _, right in kept), len(kept)),
                    right / sum(weight for _, weight, _ in kept),
                )
            )
    return found


def render(calibration: Sequence[Led], reported: Sequence[Led]) -> Iterator[RenderableType]:
    """The fit, and what it told of the networks that it was fit to and of the others."""
    offset, slope = fit(calibration)
    yield Text(f"offset {offset:.2f}, slope {slope:.2f}, fit to {_counted(calibration)}.")
    yield _table("calibration halves", calibration)
    yield _table("reported halves", reported)
    yield Text(f"Reported: {_counted(reported)}. Unlearning is left out.")


def _counted(networks: Sequence[Led]) -> str:
    backdoored = sum(each.backdoored for each in networks)
    return f"{len(networks) - backdoored} honest and {backdoored} backdoored networks"


def _table(title: str, networks: Sequence[Led]) -> Table:
    columns = ("class is the attacker's", "where every second has a backdoor")
    table = framed_table(title, ["probability"], ("told, mean", *columns))
    for line in lines(networks):
        found = line.found
        cells = (
            f"{line.told:.2f}",
            share(found.hits, found.trials, out_of=True),
            f"{line.share:.2f}",
        )
        table.add_row(f"{line.low:g} to {line.high:g}", *cells)
    return table


def draw(reported: Sequence[Led], place: Path) -> None:
    """The reliability diagram of networks that the function was not fit to.

    Args:
        reported: Of the reported halves.
        place: Ends in ``.png`` or ``.svg``.

    Raises:
        ConfigError: Another ending, or matplotlib is missing.
        StageError: The file system refused.
    """
    figure = drawing.blank(place, 4.6, 4.2)
    axes = figure.subplots()
    told = lines(reported)
    axes.plot([0, 1], [0, 1], linewidth=1, color="0.6")
    axes.plot([line.told for line in told], [line.share for line in told], marker="o")
    for line in told:
        count, at = f"{line.found.trials}", (line.told, line.share)
        axes.annotate(count, at, (6, -10), textcoords="offset points", fontsize=8)
    axes.set(xlabel="probability told", ylabel="share in which the class is the attacker's")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), title="reported halves")
    drawing.save(figure, place, "probability")
