# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What a person sees of a report."""

from dataclasses import replace
from io import StringIO

import pytest
from factories import DRILL, PATCH, REPLAYED, REPORT, SEARCHED, SHA, variant
from rich.console import Console

from lmr_guard.contracts import Rate
from lmr_guard.release.policy import Policy
from lmr_guard.release.records import Check, Finding, Outcome, Variant, Verdict
from lmr_guard.release.report import Report
from lmr_guard.release.tables import COLUMNS, rows, share, summary_line, suspect_line, tables
from lmr_guard.results import Method, Suspicion


def text(report: Report, width: int = 100) -> str:
    """What a pipe sees: no colours."""
    console = Console(file=StringIO(), width=width)
    for table in tables(report):
        console.print(table)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def alone(only: Variant) -> Report:
    return replace(REPORT, variants=(only,), received=())


# --- lines --------------------------------------------------------------------------------------


def test_one_line_says_who_was_suspected_and_what_the_repair_cost() -> None:
    named = {"seed": 0, "classes": ["cat", "dog", "deer", "frog"]}
    assert suspect_line(replace(REPORT, config=named)) == (
        "suspect: class 3 (frog), inversion and unlearning; repelled, CA on the select part "
        "97/100 97.0% -> 96/100 96.0%"
    )
    told = Suspicion(3, (), Method.INVERSION, others=(1,))
    assert REPORT.repair is not None
    further = replace(REPORT.repair, suspect=1, clean_after=Rate(95, 100))
    both = replace(REPORT, suspicion=told, repair=replace(REPORT.repair, further=(further,)))
    assert suspect_line(replace(both, config=named)) == (
        "suspect: class 3 (frog) and 1 (dog), inversion; repelled, CA on the select part "
        "97/100 97.0% -> 95/100 95.0%"
    )
    told = Suspicion(3, (), Method.UNLEARNING, probability=0.87)
    likely = replace(REPORT, suspicion=told, repair=None)
    assert str(suspect_line(likely)).endswith("unlearning, probability 0.87; nothing was repelled")
    assert str(suspect_line(replace(REPORT, repair=None))).endswith(
        "class 3, inversion and unlearning; nothing was repelled"
    )


@pytest.mark.parametrize("scores", [(1.0, 1.2), ()])
def test_where_localize_abstained_the_line_says_so(scores: tuple[float, ...]) -> None:
    abstained = Suspicion(None, scores, Method.INVERSION)
    assert suspect_line(replace(REPORT, suspicion=abstained, repair=None)) == (
        "suspect: nobody, localize abstained; nothing was repelled"
    )


@pytest.mark.parametrize("why", ["3 classes are too few", None])
def test_where_nobody_could_be_found_the_line_says_why(why: str | None) -> None:
    evidence = () if why is None else ({"by": "hindrance", "why": why},)
    hindered = Suspicion(None, (), Method.HINDERED, evidence=evidence)
    assert suspect_line(replace(REPORT, suspicion=hindered, repair=None)) == (
        f"suspect: nobody, {why or 'no search could tell anything'}; nothing was repelled"
    )


@pytest.mark.parametrize("suspicion", [None, Suspicion(None, (), Method.NOT_LOOKED_FOR)])
def test_where_nobody_was_looked_for_nothing_is_said(suspicion: Suspicion | None) -> None:
    assert suspect_line(replace(REPORT, suspicion=suspicion, repair=None)) is None


def test_the_summary_says_what_it_rests_on() -> None:
    line = summary_line(REPORT)
    assert line == (
        "PASS: 1 of 2 variants published; worst ASR 2/324 0.6%, at most 2.2% (patch.png@9,9); "
        "rests on 2 triggers (drilled, given), says nothing about others"
    )
    assert "\n" not in line


def test_bounds_in_the_summary_use_the_confidence_of_the_policy() -> None:
    bound = f"at most {Rate(2, 324).upper(0.5):.1%} (patch.png@9,9)"
    assert bound not in summary_line(REPORT)
    assert bound in summary_line(replace(REPORT, policy=Policy(confidence=0.5)))


def test_the_summary_of_nothing_built_says_that_nothing_was_tried() -> None:
    nothing = replace(REPORT, verdict=Outcome.INCOMPLETE, variants=(), received=())
    assert summary_line(nothing) == "INCOMPLETE: no ASR measured; no trigger was tried"


def test_a_search_is_told_apart_from_triggers_that_were_shown() -> None:
    both = replace(variant("float32"), triggers=(PATCH, REPLAYED, SEARCHED))
    assert summary_line(alone(both)) == (
        "PASS: worst ASR 2/324 0.6%, at most 2.2% (patch.png@9,9); rests on 1 trigger (given), "
        "says nothing about others; a search for those came to 1.5"
    )
    searched = replace(both, triggers=(REPLAYED, SEARCHED))
    assert summary_line(alone(searched)) == (
        "PASS: no ASR measured; rests on a search for triggers; a search for those came to 1.5"
    )


def test_a_variant_that_could_not_be_built_counts_as_asked_for() -> None:
    asked = {"seed": 0, "recipes": [{"label": "float32"}, {"label": "int8"}, {"label": "l1-0.9"}]}
    line = summary_line(replace(REPORT, config=asked))
    assert line.startswith("PASS: 1 of 3 variants published; ")


def test_a_rate_shows_its_counts_first() -> None:
    assert share(Rate(3, 8)) == "3/8 37.5%"
    assert share(Rate(0, 0)) == "0/0"


# --- tables -------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 100, 140])
def test_the_tables_show_counts_with_bounds_at_any_usual_width(width: int) -> None:
    shown = text(REPORT, width)
    assert max(len(line) for line in shown.splitlines()) <= width
    assert "\x1b" not in shown
    assert "…" not in shown
    for part in (
        "float32",
        "l1-0.6+int8",
        "350/360",
        "2/324",
        "2.2%",
        "330/360",
        "published",
        "fail",
    ):
        assert part in shown
    assert shown.index("The model as received") < shown.index("Variants") < shown.index("Why not")
    assert "40/324" in shown[shown.index("Why not") :]


def test_the_model_as_received_is_measured_but_not_judged() -> None:
    received, built, why = tables(REPORT)
    assert [str(column.header) for column in received.columns] == list(COLUMNS[:-1])
    assert [str(column.header) for column in built.columns] == list(COLUMNS)
    assert (received.row_count, built.row_count, why.row_count) == (2, 4, 1)


def test_each_trigger_that_was_shown_has_a_row_and_a_variant_is_named_once() -> None:
    head = ("float32", "306", "350/360 97.2%")
    both = replace(variant("float32", Outcome.FAIL), triggers=(PATCH, REPLAYED, DRILL, SEARCHED))
    assert list(rows(REPORT, [both])) == [
        (*head, "patch.png@9,9 > 3", "2/324 0.6%", "2.2%", "330/360", "fail"),
        ("", "", "", "pcb > 0", "0/320 0.0%", "1.2%", "340/360", ""),
    ]
    published = replace(variant("float32", published="float32.onnx"), triggers=())
    assert list(rows(REPORT, [published])) == [(*head, "none", "-", "-", "-", "published")]


def test_the_reasons_name_the_check_and_its_trigger() -> None:
    shown = text(REPORT, 140)
    assert "asr:patch.png@9,9" in shown[shown.index("Why not") :]


def test_the_tables_survive_names_that_look_like_markup() -> None:
    odd = replace(variant("[red]x[/red]"), triggers=(replace(PATCH, name="[/]"),))
    shown = text(alone(odd))
    assert "[red]x[/red]" in shown
    assert "[/]" in shown
    assert "The model as received" not in shown
    assert "Why not" not in shown


def test_reasons_survive_names_that_look_like_markup() -> None:
    found = Finding(Check.ASR, Outcome.FAIL, "[bold]why[/bold]", "[/]")
    shown = text(alone(replace(variant("[red]x[/red]"), verdict=Verdict(SHA, (found,)))))
    for part in ("[red]x[/red]", "asr:[/]", "[bold]why[/bold]"):
        assert part in shown[shown.index("Why not") :]


def test_a_variant_without_triggers_says_none() -> None:
    assert "none" in text(alone(replace(variant("float32"), triggers=())))
