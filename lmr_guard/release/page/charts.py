# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Where the marks of a page's charts stand, in the units of an SVG; the template draws them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lmr_guard.contracts import Rate
from lmr_guard.release.page.reading import class_name, limit, short
from lmr_guard.release.records import Outcome
from lmr_guard.release.report import Report
from lmr_guard.release.tables import share

__all__ = ["Bar", "Bars", "Line", "Plot", "Point", "accuracy_by_size", "class_scores", "ticks"]

_MOST_BARS = 20
_ROW = 22.0
_LETTER = 7.0  # width of one, at the size that the style sheet gives labels
_WIDE = 420.0  # that the longest bar may be

_LEFT, _RIGHT, _TOP, _BOTTOM = 62.0, 670.0, 20.0, 300.0
_NARROW = 1e-6  # range, or its share of the numbers, that no chart can show
_LABEL = 15.0  # height of one
_MARK = 7.0  # half the width of a mark


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line across a chart, and what is written at it.

    Args:
        at: Its place on the axis that it crosses.
        label: What is written.
        kind: A class of the style sheet.
        label_at: Where the label stands, on the axis that the line follows.
    """

    at: float
    label: str
    kind: str = "tick"
    label_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One class: where its bar stands, and what is written at it."""

    y: float
    width: float
    label: str
    value: str
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """Scores over classes, the highest first.

    Args:
        bars: Of at most 20 classes.
        lines: 1, which is ordinary, and the limits that the report names.
        left: Where bars begin.
        width: Of the whole.
        height: Of the whole.
        foot: Where lines end.
        more: How many classes are not drawn.
    """

    bars: tuple[Bar, ...]
    lines: tuple[Line, ...]
    left: float
    width: float
    height: float
    foot: float
    more: int


def class_scores(report: Report) -> Bars | None:
    """The scores of a suspicion; None where there are none."""
    suspicion = report.suspicion
    if suspicion is None:
        return None
    scores, target = suspicion.scores, suspicion.target
    told = [k for k in range(len(scores)) if math.isfinite(scores[k]) and scores[k] >= 0]
    if not told:
        return None
    told.sort(key=lambda k: (-scores[k], k))
    shown = told[:_MOST_BARS]
    if target in told[_MOST_BARS:]:
        shown[-1] = int(target or 0)
    limits = [("ordinary", 1.0), ("doubt", limit(report, "doubt")), ("sure", limit(report, "sure"))]
    known = [(name, value) for name, value in limits if value is not None]
    names = {k: short(class_name(report, k)) for k in shown}
    left = 14 + _LETTER * max(map(len, names.values()))
    scale = _WIDE / max(scores[shown[0]], *(value for _, value in known))
    foot = 10 + _ROW * len(shown)
    bars = tuple(
        Bar(
            y=8 + _ROW * row,
            width=max(1.0, scores[k] * scale),
            label=names[k],
            value=f"{scores[k]:.2f}",
            kind="suspect" if k == target else "other",
        )
        for row, k in enumerate(shown)
    )
    lines = tuple(
        Line(
            at=left + value * scale,
            label=f"{name} {value:g}",
            kind=name,
            label_at=foot + _LABEL * (row + 1),
        )
        for row, (name, value) in enumerate(known)
    )
    return Bars(
        bars=bars,
        lines=lines,
        left=left,
        width=left + _WIDE + 60,
        height=foot + _LABEL * (len(lines) + 0.6),
        foot=foot,
        more=len(scores) - len(shown),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One variant: where it stands, how far its bounds reach, and where its name is written."""

    name: str
    x: float
    y: float
    low: float
    high: float
    outcome: Outcome
    label_x: float
    label_y: float
    anchor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """Clean accuracy against size.

    Args:
        points: The variants that images were tried on.
        across: Lines of accuracies.
        upright: Lines of sizes.
        marks: The accuracy as received, and the least that the policy lets pass.
    """

    points: tuple[Point, ...]
    across: tuple[Line, ...]
    upright: tuple[Line, ...]
    marks: tuple[Line, ...]
    left: float = _LEFT
    right: float = _RIGHT
    top: float = _TOP
    bottom: float = _BOTTOM


def accuracy_by_size(report: Report) -> Plot | None:
    """Clean accuracy against size, with the policy's line; None where nothing was measured."""
    variants = [v for v in report.variants if v.clean_accuracy.trials]
    if not variants:
        return None
    confidence = report.policy.confidence
    received = next((v.clean_accuracy for v in report.received[:1]), Rate(0, 0))
    least = received.value - report.policy.max_accuracy_drop
    marked = [received.value, max(0.0, least)] if received.trials else []
    lows = [v.clean_accuracy.lower(confidence) for v in variants]
    highs = [v.clean_accuracy.upper(confidence) for v in variants]
    rows = ticks(min(*lows, *marked, 1.0), max(*highs, *marked, 0.0))
    columns = ticks(0.0, max(v.bytes for v in variants) / 1024)

    def x(kib: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * kib / columns[-1]

    def y(accuracy: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * (accuracy - rows[0]) / (rows[-1] - rows[0])

    places = [(x(v.bytes / 1024), y(v.clean_accuracy.value)) for v in variants]
    labels = _labels([v.name for v in variants], places)
    points = tuple(
        Point(
            name=short(v.name),
            x=place[0],
            y=place[1],
            low=y(v.clean_accuracy.lower(confidence)),
            high=y(v.clean_accuracy.upper(confidence)),
            outcome=v.verdict.outcome,
            label_x=label[0],
            label_y=label[1],
            anchor=label[2],
        )
        for v, place, label in zip(variants, places, labels, strict=True)
    )
    digits = max(0, -math.floor(math.log10((rows[1] - rows[0]) * 100)))
    return Plot(
        points=points,
        across=tuple(Line(at=y(value), label=f"{value:.{digits}%}") for value in rows),
        upright=tuple(Line(at=x(value), label=f"{value:g}") for value in columns),
        marks=_marks(report, received, y) if received.trials else (),
    )


def _marks(report: Report, received: Rate, y: Callable[[float], float]) -> tuple[Line, Line]:
    """The accuracy as received, and the least that the policy lets pass, their labels apart."""
    least = max(0.0, received.value - report.policy.max_accuracy_drop)
    top, low = y(received.value), y(least)
    return (
        Line(
            at=top,
            label=f"as received {share(received)}",
            kind="received",
            label_at=min(top, low) + 2,
        ),
        Line(
            at=low,
            label=f"policy: at least {least:.1%}",
            kind="limit",
            label_at=max(low + 4, top + 2 + _LABEL),
        ),
    )


def _labels(
    names: Sequence[str], places: Sequence[tuple[float, float]]
) -> list[tuple[float, float, str]]:
    """A place for each name beside its mark, over no other and no mark where that can be had."""
    taken = [(x - _MARK, y + 4, 2 * _MARK, _LABEL) for x, y in places]
    found = []
    for name, (x, y) in zip(names, places, strict=True):
        wide = _LETTER * len(short(name))
        tried = []
        for down in (0.0, 1.0, -1.0, 2.0, -2.0, 3.0, -3.0, 4.0):
            for side in (1, -1):
                left = x + 10 if side > 0 else x - 10 - wide
                middle = y + 4 + down * _LABEL
                inside = left >= _LEFT and left + wide <= _RIGHT
                if inside and _TOP - 8 <= middle <= _BOTTOM:
                    tried.append((left, middle, side))
        free = [t for t in tried if not _hits((t[0], t[1], wide, _LABEL), taken)]
        left, middle, side = (free or tried or [(x + 10, y + 4, 1)])[0]
        taken.append((left, middle, wide, _LABEL))
        found.append((left if side > 0 else left + wide, middle, "start" if side > 0 else "end"))
    return found


def _hits(
    box: tuple[float, float, float, float], taken: Sequence[tuple[float, float, float, float]]
) -> bool:
    x, y, wide, high = box
    return any(
        x < left + width and left < x + wide and abs(y - top) < max(high, height) - 1
        for left, top, width, height in taken
    )


def ticks(low: float, high: float, most: int = 6) -> tuple[float, ...]:
    """Round numbers that enclose a range, evenly apart, ``most`` intervals at most, at least one.

    >>> ticks(0.912, 0.987), ticks(0, 313.2), ticks(3, 3)
    ((0.9, 0.92, 0.94, 0.96, 0.98, 1.0), (0.0, 100.0, 200.0, 300.0, 400.0), (3.0, 3.5, 4.0, 4.5))
    """
    span = high - low
    if span <= _NARROW * max(1.0, abs(high)):
        span = abs(high) / 2 if abs(high) > _NARROW else 1.0
        high = low + span
    power = 10.0 ** math.floor(math.log10(span / most))
    for factor in (1, 2, 5, 10, 20):
        step = factor * power
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if last - first <= most:
            break
    return tuple(round(number * step, 12) for number in range(first, last + 1))
