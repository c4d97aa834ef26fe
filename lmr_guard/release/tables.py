# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""A report as tables and lines for a terminal."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["share", "summary_line", "suspect_line", "table", "tables"]

_STYLES = {"pass": "green", "incomplete": "yellow", "fail": "red"}


def summary_line(document: Mapping[str, Any]) -> str:
    """The whole report in one line: verdict, what may ship, the worst ASR, what that rests on."""
    variants = document["variants"]
    published = [v for v in variants if v["published"]]
    # Where nothing was received, as in an audit of one file, nothing could have been published.
    received = document["received"]
    rows = [t for v in published or variants for t in _known(v)]
    if rows:
        worst = max(rows, key=lambda t: t["upper"])
        asr = f"worst ASR {share(worst)}, at most {worst['upper']:.1%} ({worst['name']})"
        kinds = ", ".join(sorted({t["source"] for t in rows}))
        tried = len({t["name"] for t in rows})
        rests = f"rests on {tried} trigger{'s' * (tried != 1)} ({kinds}), says nothing about others"
    else:
        asr = "no ASR measured"
        rests = "rests on a search for triggers" if document["evidence"] else "no trigger was tried"
    strange = [
        t["strangeness"] for v in published or variants for t in v["triggers"] if "strangeness" in t
    ]
    if strange:
        rests += f"; a search for those came to {max(strange):.1f}"
    asked = len(document["config"].get("recipes", variants))
    shipped = f"{len(published)} of {asked} variants published; " if received else ""
    return f"{document['verdict'].upper()}: {shipped}{asr}; {rests}"


def suspect_line(document: Mapping[str, Any]) -> str | None:
    """Who was suspected and what the repair cost; None where nobody was looked for."""
    suspicion, repair = document["suspicion"], document["repair"]
    if suspicion is None or (suspicion["target"] is None and not suspicion["scores"]):
        return None
    target = suspicion["target"]
    if target is None:
        return "suspect: nobody, localize abstained; nothing was repaired"
    classes = document["config"].get("classes", ())
    name = f" ({classes[target]})" if target < len(classes) else ""
    found = f"suspect: class {target}{name}, {suspicion['method']}"
    if repair is None:
        return f"{found}; nothing was repaired"
    before, after = (share(repair["clean_accuracy"][when]) for when in ("before", "after"))
    return f"{found}; repaired, CA on the select part {before} -> {after}"


def tables(document: Mapping[str, Any]) -> "list[Table]":
    """Tables for a terminal of 100 columns: as received, the variants, what did not pass."""
    found = []
    if document["received"]:
        found.append(_measured("The model as received", document["received"], judged=False))
    found.append(_measured("Variants", document["variants"], judged=True))
    reasons = list(_reasons(document["variants"]))
    if reasons:
        why = table("Why not", ("variant", "check", "outcome", "reason"))
        for row in reasons:
            why.add_row(*row)
        found.append(why)
    return found


def _measured(title: str, variants: Sequence[Mapping[str, Any]], *, judged: bool) -> "Table":
    judgement = ("outcome",) if judged else ()
    measured = table(title, ("variant", "KiB", "CA", "trigger", "ASR", "at most", "TA", *judgement))
    for variant in variants:
        ends: tuple[str, ...] = (_outcome(variant),) if judged else ()
        head = (
            _escape(variant["name"]),
            f"{variant['bytes'] / 1024:.0f}",
            share(variant["clean_accuracy"]),
        )
        known = _known(variant)
        for trigger in known if known else (None,):
            measured.add_row(*head, *_cells(trigger), *ends)
            head, ends = ("", "", ""), ("",) * len(ends)
    return measured


def _known(variant: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Given and drilled triggers; what inverted ones still reach stands in the findings."""
    return [trigger for trigger in variant["triggers"] if trigger["source"] != "inverted"]


def _outcome(variant: Mapping[str, Any]) -> str:
    return "[bold green]published[/]" if variant["published"] else _coloured(variant["verdict"])


def _cells(trigger: Mapping[str, Any] | None) -> tuple[str, str, str, str]:
    if trigger is None:
        return "none", "-", "-", "-"
    name = f"{_escape(trigger['name'])} > {trigger['target']}"
    # Its counts alone: with its rate the table would not fit into 80 columns.
    true = f"{trigger['ta']['hits']}/{trigger['ta']['trials']}"
    return name, share(trigger), f"{trigger['upper']:.1%}", true


def _reasons(variants: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, str, str]]:
    for variant in variants:
        name = _escape(variant["name"])
        for finding in variant["findings"]:
            if finding["outcome"] != "pass":
                outcome = _coloured(finding["outcome"])
                yield name, _escape(finding["check"]), outcome, _escape(finding["reason"])
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
            no_wrap=column not in ("trigger", "check", "reason"),
        )
    return empty


def share(rate: Mapping[str, Any]) -> str:
    """Counts first: a reader of a rate must see what it rests on."""
    hits, trials = rate["hits"], rate["trials"]
    return f"{hits}/{trials} {hits / trials:.1%}" if trials else "0/0"


def _coloured(outcome: str) -> str:
    return f"[{_STYLES[outcome]}]{outcome}[/]"


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
