# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Variants by triggers, and by classes, before and after the repair: a page's large tables."""

from collections.abc import Sequence
from dataclasses import dataclass

from lmr_guard.contracts import Rate
from lmr_guard.release.page.reading import class_name
from lmr_guard.release.records import Check, Outcome, Variant
from lmr_guard.release.report import Report
from lmr_guard.results import TriggerResult

__all__ = [
    "HEAT",
    "Cell",
    "Classes",
    "Column",
    "Matrix",
    "OneClass",
    "Row",
    "heat",
    "matrix",
    "per_class",
]

HEAT = (0.01, 0.05, 0.2, 0.5, 0.9)
"""Where one colour of the heat map ends and the next begins."""

_MOST_CLASSES = 20
_MOST_FORMS = 4
_CHECKS = (Check.TRIALS, Check.ASR, Check.ELSEWHERE, Check.EXCESS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One trigger on one file.

    Args:
        rate: ASR.
        upper: Its bound.
        heat: Number of its colour, from 0.
        target: The class in question, as a page calls it.
        outcome: What the checks of this trigger come to; None where the policy judged nothing.
    """

    rate: Rate
    upper: float
    heat: int
    target: str
    outcome: Outcome | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One trigger.

    Args:
        label: How records call it.
        source: Where the evidence comes from.
        target: The class in question, where it is the same for all files.
        before: Whether any file was measured without the repair.
    """

    label: str
    source: str
    target: str | None
    before: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One variant.

    Args:
        name: Of the variant.
        cells: For each trigger of the matrix the cell before and after the repair.
        outcome: Of the variant.
        published: Whether its file ships.
        required: Whether the verdict is about it.
        searched: What a search of this very file found, and ``strangeness``; None without one.
        heard: What the policy makes of that.
    """

    name: str
    cells: tuple[tuple[Cell | None, Cell | None], ...]
    outcome: Outcome
    published: bool
    required: bool
    searched: TriggerResult | None
    heard: Outcome | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """All variants by all triggers.

    Args:
        columns: One per trigger.
        rows: One per variant, with a pair of cells per column.
        before: Whether any column has a part for files without the repair.
        searches: Whether any file was searched.
    """

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    before: bool
    searches: bool


def heat(share: float) -> int:
    """The number of the colour for a share.

    >>> [heat(share) for share in (0, 0.01, 0.049, 0.3, 0.9, 1)]
    [0, 1, 1, 3, 5, 5]
    """
    return sum(share >= edge for edge in HEAT)


def matrix(report: Report) -> Matrix:
    """What was measured, in the order of the report; searches of single files stand apart."""
    forms = (*report.variants, *report.received)
    keys = dict.fromkeys(
        (t.label, str(t.source)) for form in forms for t in form.triggers if t.tried != "searched"
    )
    before = {form.name: form for form in report.received}
    rows = tuple(_row(report, v, before.get(v.name), list(keys)) for v in report.variants)
    columns = tuple(_column(key, [row.cells[i] for row in rows]) for i, key in enumerate(keys))
    return Matrix(
        columns=columns,
        rows=rows,
        before=any(column.before for column in columns),
        searches=any(row.searched is not None or row.heard is not None for row in rows),
    )


def _column(key: tuple[str, str], pairs: Sequence[tuple[Cell | None, Cell | None]]) -> Column:
    targets = {cell.target for pair in pairs for cell in pair if cell is not None}
    return Column(
        label=key[0],
        source=key[1],
        target=targets.pop() if len(targets) == 1 else None,
        before=any(pair[0] is not None for pair in pairs),
    )


def _row(
    report: Report, variant: Variant, before: Variant | None, columns: Sequence[tuple[str, str]]
) -> Row:
    searched = next((t for t in variant.triggers if t.tried == "searched"), None)
    heard = [f.outcome for f in variant.verdict.findings if f.check is Check.LISTENS]
    return Row(
        name=variant.name,
        cells=tuple(
            (_cell(report, before, column), _cell(report, variant, column)) for column in columns
        ),
        outcome=variant.verdict.outcome,
        published=variant.published is not None,
        required=variant.name in report.required,
        searched=searched,
        heard=max(heard, default=None),
    )


def _cell(report: Report, form: Variant | None, column: tuple[str, str]) -> Cell | None:
    if form is None:
        return None
    for result in form.triggers:
        if (result.label, str(result.source)) == column and result.tried != "searched":
            judged = [
                finding.outcome
                for finding in form.verdict.findings
                if finding.check in _CHECKS and finding.about == result.label
            ]
            return Cell(
                rate=result.asr,
                upper=result.asr.upper(report.policy.confidence),
                heat=heat(result.asr.value),
                target=class_name(report, result.target),
                outcome=max(judged, default=None),
            )
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class OneClass:
    """Clean accuracy on the images of one class.

    Args:
        name: As a page calls it.
        suspect: Whether the repair was about it.
        before: As received; None where that was not counted.
        after: Of each variant.
    """

    name: str
    suspect: bool
    before: Rate | None
    after: tuple[Rate, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Classes:
    """The suspect first, then the classes that lost most.

    Args:
        forms: Names of the variants: those that the verdict is about, four at most.
        rows: Of at most 20 classes.
        more: How many classes are not shown.
    """

    forms: tuple[str, ...]
    rows: tuple[OneClass, ...]
    more: int

    @property
    def before(self) -> bool:
        """Whether the model as received was counted."""
        return any(row.before is not None for row in self.rows)


def per_class(report: Report) -> Classes | None:
    """Clean accuracy of each class before and after; None where the report does not hold it."""
    counted = [v for v in report.variants if v.per_class and v.name in report.required]
    if not counted:
        return None
    count = len(counted[0].per_class)
    forms = [v for v in counted if len(v.per_class) == count][:_MOST_FORMS]
    received = report.received[0].per_class if report.received else ()
    repaired = () if report.repair is None else report.repair.suspects
    rows = [
        OneClass(
            name=class_name(report, index),
            suspect=index in repaired,
            before=received[index] if len(received) == count else None,
            after=tuple(form.per_class[index] for form in forms),
        )
        for index in range(count)
    ]
    rows.sort(key=lambda row: (not row.suspect, min(r.value for r in row.after) - _had(row)))
    names = tuple(form.name for form in forms)
    return Classes(
        forms=names, rows=tuple(rows[:_MOST_CLASSES]), more=max(0, count - _MOST_CLASSES)
    )


def _had(row: OneClass) -> float:
    return 1.0 if row.before is None else row.before.value
