# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""A report as tables and lines for a terminal."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lmr_guard.contracts import Rate
from lmr_guard.errors import printable
from lmr_guard.release.records import Outcome, Variant
from lmr_guard.release.report import Report
from lmr_guard.results import TriggerResult

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["COLUMNS", "rows", "share", "summary_line", "suspect_line", "table", "tables"]

COLUMNS = ("variant", "KiB", "CA", "trigger", "ASR", "at most", "TA", "outcome")
"""Of a table of variants."""

_PUBLISHED = "published"
_STYLES = {
    _PUBLISHED: "bold green",
    Outcome.PASS.word: "green",
    Outcome.INCOMPLETE.word: "yellow",
    Outcome.FAIL.word: "red",
}


def summary_line(report: Report) -> str:
    """The whole report in one line: verdict, what may ship, the worst ASR, what that rests on."""
    measured = report.published or report.variants
    results = [result for variant in measured for result in variant.shown]
    if results:
        confidence = report.policy.confidence
        worst = max(results, key=lambda result: result.asr.upper(confidence))
        asr = (
            f"worst ASR {share(worst.asr)}, at most {worst.asr.upper(confidence):.1%} "
            f"({printable(worst.name)})"
        )
        kinds = ", ".join(sorted({result.source for result in results}))
        tried = len({result.name for result in results})
        rests = f"rests on {tried} trigger{'s' * (tried != 1)} ({kinds}), says nothing about others"
    else:
        asr = "no ASR measured"
        rests = "rests on a search for triggers" if report.sources else "no trigger was tried"
    strange = [v.strangeness for v in measured if v.strangeness is not None]
    if strange:
        rests += f"; a search for those came to {max(strange):.1f}"
    asked = len(report.config.get("recipes", report.variants))
    # Where nothing was received, as in an audit of one file, nothing could have been published.
    count = f"{len(report.published)} of {asked} variants published; " if report.received else ""
    return f"{report.verdict.name}: {count}{asr}; {rests}"


def suspect_line(report: Report) -> str | None:
    """Who was suspected and what the repair cost; None where nobody was looked for."""
    suspicion, repair = report.suspicion, report.repair
    if suspicion is None or (suspicion.target is None and not suspicion.abstained):
        return None
    target = suspicion.target
    if target is None:
        why = "localize abstained" if suspicion.hindrance is None else suspicion.hindrance
        return f"suspect: nobody, {why}; nothing was repelled"
    classes = report.config.get("classes", ())
    named = (f"{k} ({classes[k]})" if k < len(classes) else f"{k}" for k in suspicion.suspects)
    found = f"suspect: class {' and '.join(named)}, {suspicion.method}"
    if suspicion.probability is not None:
        found += f", probability {suspicion.probability:.2f}"
    if repair is None:
        return f"{found}; nothing was repelled"
    before, after = share(repair.clean_before), share(repair.clean_at_last)
    return f"{found}; {repair.done}, CA on the select part {before} -> {after}"


def tables(report: Report) -> "list[Table]":
    """Tables for a terminal of 100 columns: as received, the variants, what did not pass."""
    found = []
    if report.received:
        judged = COLUMNS[:-1]
        found.append(_measured("The model as received", report, report.received, judged))
    found.append(_measured("Variants", report, report.variants, COLUMNS))
    reasons = list(_reasons(report.variants))
    if reasons:
        why = table("Why not", ("variant", "check", "outcome", "reason"))
        for row in reasons:
            why.add_row(*row)
        found.append(why)
    return found


def rows(report: Report, variants: Sequence[Variant]) -> Iterator[tuple[str, ...]]:
    """Cells of ``COLUMNS`` in plain text, a row per trigger that was shown to a variant."""
    for variant in variants:
        outcome = _PUBLISHED if variant.published else variant.verdict.outcome.word
        head: tuple[str, ...] = (
            printable(variant.name),
            f"{variant.bytes / 1024:.0f}",
            share(variant.clean_accuracy),
        )
        for result in variant.shown or (None,):
            yield (*head, *_cells(result, report.policy.confidence), outcome)
            head, outcome = ("", "", ""), ""


def _cells(result: TriggerResult | None, confidence: float) -> tuple[str, str, str, str]:
    if result is None:
        return "none", "-", "-", "-"
    # Of TA its counts alone: with its rate the table would not fit into 80 columns.
    name, true = (
        f"{printable(result.name)} > {result.target}",
        f"{result.ta.hits}/{result.ta.trials}",
    )
    return name, share(result.asr), f"{result.asr.upper(confidence):.1%}", true


def _measured(
    title: str, report: Report, variants: Sequence[Variant], columns: Sequence[str]
) -> "Table":
    measured = table(title, columns)
    for *cells, outcome in rows(report, variants):
        shown = (*map(_escape, cells), _coloured(outcome))
        measured.add_row(*shown[: len(columns)])
    return measured


def _reasons(variants: Sequence[Variant]) -> Iterator[tuple[str, str, str, str]]:
    for variant in variants:
        name = _escape(printable(variant.name))
        for finding in variant.verdict.findings:
            if finding.outcome is not Outcome.PASS:
                outcome = _coloured(finding.outcome.word)
                yield (
                    name,
                    _escape(printable(finding.label)),
                    outcome,
                    _escape(printable(finding.reason)),
                )
                name = ""


def table(title: str, columns: Sequence[str]) -> "Table":
    """An empty table for a terminal; columns of counts stand to the right."""
    from rich import box
    from rich.table import Table

    empty = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    for column in columns:
        numeric = column in ("KiB", "CA", "ASR", "at most", "TA", "unrepaired", "repaired")
        empty.add_column(
            column,
            justify="right" if numeric else "left",
            overflow="fold",
            no_wrap=column not in ("CA", "trigger", "ASR", "check", "reason"),
        )
    return empty


def share(rate: Rate) -> str:
    """Counts first: a reader of a rate must see what it rests on."""
    return f"{rate.hits}/{rate.trials} {rate.value:.1%}" if rate.trials else "0/0"


def _coloured(outcome: str) -> str:
    return f"[{_STYLES[outcome]}]{outcome}[/]" if outcome else ""


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
