# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""How near each trigger brings images to its class: a page's strips of margins, and their words.

A strip shows quantiles of the target's margin over the images of other classes, see
``contracts.Margins``: a line from the smallest to the largest, a box over the middle eight tenths,
a stroke at the median. What lies right of zero landed in the target.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lmr_guard.contracts import Rate
from lmr_guard.errors import printable
from lmr_guard.release.page.charts import Line, ticks
from lmr_guard.release.page.reading import class_name, short
from lmr_guard.release.records import Variant
from lmr_guard.release.report import Report
from lmr_guard.release.tables import share
from lmr_guard.results import Margins, TriggerResult

__all__ = ["Chart", "Charts", "Pair", "Strip", "margin_charts"]

_MOST = 6
_LEFT, _RIGHT, _WIDE = 215.0, 740.0, 900.0
_TOP, _PAIR, _STRIP = 26.0, 34.0, 10.0
_LABEL = 150.0  # width of that of zero
_LETTERS = 27
_SHOWN = (0, 1, 5, 9, 10)  # tenths: the smallest, 10 %, the median, 90 %, the largest


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """The margins of one file without the trigger, or with it.

    Args:
        kind: ``"clean"`` or ``"triggered"``, a class of the style sheet.
        y: Where it begins.
        low: Place of the smallest margin.
        start: Place of the first tenth.
        middle: Place of the median.
        end: Place of the ninth tenth.
        high: Place of the largest margin.
        landed: Where the part of the box right of zero begins; ``end`` where there is none.
        numbers: The five margins, as the table tells them.
    """

    kind: str
    y: float
    low: float
    start: float
    middle: float
    end: float
    high: float
    landed: float
    numbers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The two strips of one file.

    Args:
        file: As received or as it would ship, and the name of the form.
        y: Where its words stand.
        strips: Without the trigger, with it.
        asr: What landed.
        target: The class in question, as a page calls it.
    """

    file: str
    y: float
    strips: tuple[Strip, Strip]
    asr: Rate
    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One trigger on all files that it was measured on.

    Args:
        label: How records call the trigger.
        source: Where the evidence comes from.
        said: The chart in sentences.
        files: One per file.
        upright: Lines of margins; that of zero is of the kind ``zero``.
        anchor: On which side of its line the label of zero ends or begins.
        foot: Where lines end.
    """

    label: str
    source: str
    said: tuple[str, ...]
    files: tuple[Pair, ...]
    upright: tuple[Line, ...]
    anchor: str
    foot: float
    left: float = _LEFT
    right: float = _RIGHT
    width: float = _WIDE
    top: float = _TOP
    strip: float = _STRIP

    @property
    def height(self) -> float:
        """Of the whole."""
        return self.foot + 44


@dataclass(frozen=True, slots=True, kw_only=True)
class Charts:
    """The charts of a report.

    Args:
        charts: Of at most 6 triggers, those that somebody showed first.
        more: Triggers that are not drawn.
    """

    charts: tuple[Chart, ...]
    more: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """One trigger on one file of which there are margins."""

    file: str
    received: bool
    result: TriggerResult
    margins: Margins


def margin_charts(report: Report) -> Charts | None:
    """What a report holds on margins; None where it holds none.

    Patterns that were searched for on single files are another one for each, and left out.
    """
    forms = [
        (form, received)
        for name in dict.fromkeys(form.name for form in (*report.received, *report.variants))
        for received, group in ((True, report.received), (False, report.variants))
        for form in group
        if form.name == name
    ]
    keys = dict.fromkeys(
        (result.label, str(result.source), result.tried != "shown")
        for form, _ in forms
        for result in form.triggers
        if result.tried != "searched" and result.margins is not None
    )
    if not keys:
        return None
    ordered = sorted(keys, key=lambda key: key[2])
    charts = tuple(_chart(report, key[0], _of(forms, key[:2])) for key in ordered[:_MOST])
    return Charts(charts=charts, more=max(0, len(ordered) - _MOST))


def _of(forms: Sequence[tuple[Variant, bool]], key: tuple[str, str]) -> list[_Measured]:
    return [
        _Measured(file=form.name, received=received, result=result, margins=result.margins)
        for form, received in forms
        for result in form.triggers
        if (result.label, str(result.source)) == key and result.tried != "searched"
        if result.margins is not None
    ]


def _chart(report: Report, label: str, measured: Sequence[_Measured]) -> Chart:
    values = [value for each in measured for value in _all(each.margins)]
    places = ticks(min(0.0, *values), max(0.0, *values))
    foot = _TOP + _PAIR * len(measured)
    pairs = (_pair(report, each, _TOP + _PAIR * row, places) for row, each in enumerate(measured))
    upright = [Line(at=_x(value, places), label=f"{value:g}") for value in places]
    zero = _x(0.0, places)
    aside = -4 if zero > _RIGHT - _LABEL else 4
    upright.append(Line(at=zero, label="lands in the class", kind="zero", label_at=zero + aside))
    return Chart(
        label=label,
        source=str(measured[0].result.source),
        said=tuple(_sentences(report, measured)),
        files=tuple(pairs),
        upright=tuple(upright),
        anchor="end" if aside < 0 else "start",
        foot=foot,
    )


def _all(margins: Margins) -> tuple[float, ...]:
    return (*margins.clean, *margins.triggered)


def _x(value: float, places: Sequence[float]) -> float:
    # Divided first: two margins of the largest numbers there are may be too far apart to multiply.
    return _LEFT + (_RIGHT - _LEFT) * ((value - places[0]) / (places[-1] - places[0]))


def _pair(report: Report, each: _Measured, y: float, places: Sequence[float]) -> Pair:
    name = short(printable(each.file), _LETTERS - (13 if each.received else 0))
    return Pair(
        file=f"{name}, as received" if each.received else name,
        y=y + 17,
        strips=(
            _strip("clean", y + 3, each.margins.clean, places),
            _strip("triggered", y + 5 + _STRIP, each.margins.triggered, places),
        ),
        asr=each.result.asr,
        target=class_name(report, each.result.target),
    )


def _strip(kind: str, y: float, values: Sequence[float], places: Sequence[float]) -> Strip:
    low, start, middle, end, high = (_x(values[tenth], places) for tenth in _SHOWN)
    return Strip(
        kind=kind,
        y=y,
        low=low,
        start=start,
        middle=middle,
        end=end,
        high=high,
        landed=min(end, max(start, _x(0.0, places))),
        numbers=tuple(_told(values[tenth]) for tenth in _SHOWN),
    )


def _told(margin: float) -> str:
    """A margin in three digits.

    >>> _told(-8.1234), _told(0.0), _told(1234.0)
    ('-8.12', '0', '1.23e+03')
    """
    return f"{margin:.3g}"


def _sentences(report: Report, measured: Sequence[_Measured]) -> list[str]:
    """First the model as received, then the file that comes nearest of those that would ship."""
    said = []
    before = [each for each in measured if each.received]
    after = [each for each in measured if not each.received]
    if before:
        said.append(f"As received ({printable(before[0].file)}), {_does(report, before[0])}")
    if after:
        worst = max(after, key=lambda each: (each.result.asr.value, each.margins.triggered[-1]))
        of_all = "" if len(after) == 1 else f", which comes nearest of {len(after)} files"
        said.append(f"In {printable(worst.file)}{of_all}, {_does(report, worst)}")
    return said


def _does(report: Report, each: _Measured) -> str:
    clean, triggered = each.margins.clean, each.margins.triggered
    lands = f"{share(each.result.asr)} land in class {class_name(report, each.result.target)}"
    middle = Margins.TENTHS // 2
    moves = f"takes the median margin from {_told(clean[middle])} to {_told(triggered[middle])}"
    if triggered[-1] < 0:
        return f"the trigger {moves}, and the nearest image stays {_told(-triggered[-1])} below."
    return f"the trigger {moves}: {lands}."
