# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Plant a population of networks, score localize on it, show the counts.

::

    python -m examples.lab.population plant --data DIR --cache DIR
    python -m examples.lab.population score --data DIR --cache DIR
    python -m examples.lab.population show

What the audit says of the files that these networks would ship as::

    python -m examples.lab.population audit --data DIR --cache DIR
    python -m examples.lab.population show-audit

What wakes in the networks of the calibration half when their weights are rounded::

    python -m examples.lab.population waking

What short and long starts of a search show of every compressed form::

    python -m examples.lab.population starts --everyday --data DIR --cache DIR
    python -m examples.lab.population show-starts --everyday

What it is worth to take off what the next class of a search shows too::

    python -m examples.lab.population standing

What a quick and a thorough search name beside the standard one::

    python -m examples.lab.population score --everyday --budget quick --out DIR
    python -m examples.lab.population show-budgets --everyday

How likely a score tells of a backdoor, and how often that is right::

    python -m examples.lab.population probability

What it would change to take off what a student of the model shows as well::

    python -m examples.lab.population students --data DIR --cache DIR
    python -m examples.lab.population show-students

What patterns drawn at random do to the files that they would ship as::

    python -m examples.lab.population chance --data DIR --cache DIR
    python -m examples.lab.population show-chance

Whether these files do under patterns of a search what the networks do::

    python -m examples.lab.population agree --data DIR --cache DIR
    python -m examples.lab.population show-agree

What a repair costs and leaves, the attacker's class given::

    python -m examples.lab.population repair --data DIR --cache DIR
    python -m examples.lab.population show-repair

What the whole guard publishes of them, and why not the rest::

    python -m examples.lab.population ship --data DIR --cache DIR
    python -m examples.lab.population show-ship

What a cut costs them, and each way to make up for it gives back::

    python -m examples.lab.population cut --data DIR --cache DIR
    python -m examples.lab.population show-cuts

And, to see what other scores would have been worth::

    python -m examples.lab.population candidates --data DIR --cache DIR
    python -m examples.lab.population compare
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from rich.console import Console, RenderableType

from examples.lab.kit import command, cuts
from examples.lab.kit.provenance import commit
from examples.lab.kit.records import Record, Store
from examples.lab.population import (
    agreeing,
    budgets,
    chance,
    compare,
    cut_chance,
    probability,
    repairs,
    shipments,
    show,
    show_audit,
    standing,
    starts,
    students,
    subjects,
    waking,
)
from examples.lab.population.audit_files import audit_files
from examples.lab.population.candidates import ask_candidates
from examples.lab.population.cutting import ask_cuts
from examples.lab.population.everyday import EVERYDAY
from examples.lab.population.images import Images
from examples.lab.population.plan import ROUNDS, Member, population
from examples.lab.population.planting import Planter
from examples.lab.population.score import score
from examples.lab.population.subjects import Subject
from lmr_guard.budgets import BUDGETS
from lmr_guard.errors import ConfigError, ExitCode
from lmr_guard.release.policy import Policy

__all__ = ["RESULTS", "main"]

_WIDE = 160
_SCORED = ("scored.jsonl", "everyday-scored.jsonl")
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class _Question:
    """What one command asks about each network, and the table that the answers stand in."""

    table: str
    ask: Callable[[Subject], Mapping[str, Any]]
    told: str
    of_honest: bool = True
    brief: bool = False


_QUESTIONS: Mapping[str, _Question] = MappingProxyType(
    {
        "score": _Question("scored", score, "localise in those that are there"),
        "candidates": _Question("candidates", ask_candidates, "ask other scores about those there"),
        "audit": _Question("audited", audit_files, "audit the files that they would ship as"),
        "cut": _Question("cuts", ask_cuts, "cut them in several ways"),
        "repair": _Question(
            "repaired", repairs.ask_repair, "repel the attacker's class", of_honest=False
        ),
        "ship": _Question("shipped", shipments.ask_ship, "send them through the whole guard"),
        "chance": _Question(
            "chance", chance.ask_chance, "try random patterns on their files", brief=True
        ),
        "cut-chance": _Question(
            "cut-chance",
            cut_chance.ask_cut_chance,
            "try random patterns on the cut forms that localize looks at",
            brief=True,
        ),
        "agree": _Question(
            "agreed", agreeing.ask_agreement, "compare their files with them", brief=True
        ),
        "students": _Question("students", students.ask_students, "search them and their students"),
        "starts": _Question(
            "starts", starts.ask_starts, "search all forms from every start", brief=True
        ),
    }
)


_TOLD: Mapping[str, tuple[str, Callable[[Sequence[Record]], Iterable[RenderableType]], str]] = (
    MappingProxyType(
        {
            "waking": ("score", waking.render, "print what wakes when weights are rounded"),
            "standing": ("score", standing.render, "print what standing out is worth"),
            "show-students": ("students", students.render, "print what students would change"),
            "show-starts": ("starts", starts.render, "print what starts are worth"),
            "show-chance": ("chance", chance.render, "print what random patterns do"),
            "show-cut-chance": ("cut-chance", cut_chance.render, "print what they do to cut forms"),
            "show-agree": ("agree", agreeing.render, "print how far files are from their networks"),
            "show-repair": ("repair", repairs.render, "print what repairs cost and leave"),
            "show-ship": ("ship", shipments.render, "print what is published"),
        }
    )
)
"""Of each command that only prints: whose records, the tables of them, what it is for."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Plant, score or show, and return the exit code."""
    return command.answer(partial(_act, arguments), width=_WIDE, pieces="networks")


def _act(arguments: Sequence[str] | None, console: Console) -> int:
    options = _parser().parse_args(arguments)
    code: int = options.run(options, console)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = command.parser("population", __doc__)
    commands = parser.add_subparsers(required=True)
    plant = commands.add_parser("plant", help="train the networks that are missing")
    plant.set_defaults(run=_plant)
    asking = {name: commands.add_parser(name, help=q.told) for name, q in _QUESTIONS.items()}
    for name, each in asking.items():
        each.set_defaults(run=partial(_ask, _QUESTIONS[name]))
        each.add_argument("--commit", help="recorded where there is no git repository")
    asking["score"].add_argument("--budget", choices=tuple(BUDGETS), default="standard")
    spent = commands.add_parser("show-budgets", help="print what each budget names")
    spent.set_defaults(run=_show_budgets)
    shown = commands.add_parser("show", help="print the counts")
    shown.set_defaults(run=_show)
    shown.add_argument("--by", choices=tuple(show.KEYS), default="family")
    compared = commands.add_parser("compare", help="print what each score is worth")
    compared.set_defaults(run=_compare)
    compared.add_argument("--scored", type=Path, default=RESULTS, help="where score has written")
    told = commands.add_parser("show-audit", help="print what the audit refused and passed")
    told.set_defaults(run=_show_audit)
    told.add_argument("--limit", type=float, default=Policy().max_strangeness)
    told.add_argument("--roc", type=Path, help="also draw the ROC into this file (.svg, .png)")
    likely = commands.add_parser("probability", help="fit the probability, print how it holds")
    likely.set_defaults(run=_probability)
    likely.add_argument("--out", type=Path, default=RESULTS, help="results folder")
    likely.add_argument("--draw", type=Path, help="also draw it into this file (.svg, .png)")
    cut = commands.add_parser("show-cuts", help="print what cuts cost")
    cut.set_defaults(run=_show_cuts)
    telling = []
    for name, (question, tables, what) in _TOLD.items():
        telling.append(commands.add_parser(name, help=what))
        telling[-1].set_defaults(run=partial(_tell, question, tables))
    showing = (
        *telling,
        spent,
        shown,
        compared,
        told,
        cut,
    )
    for each in (shown, told):
        each.add_argument("--round", type=int, help="only networks of this round, from 1")
    for each in (plant, *asking.values()):
        command.add_work_options(each, "networks")
        each.add_argument("--data", type=Path, help="holds the data sets' folders")
        each.add_argument("--cache", type=Path, required=True, help="keeps trained networks")
        each.add_argument("--rounds", type=int, default=ROUNDS, help=f"default: {ROUNDS}")
    for each in (plant, *asking.values(), *showing):
        each.add_argument("--everyday", action="store_true", help="the third round instead")
    for each in (*asking.values(), *showing):
        each.add_argument("--out", type=Path, default=RESULTS, help="results folder")
    return parser


def _plant(options: argparse.Namespace, console: Console) -> int:
    images = Images(options.data)
    planter = Planter(options.cache, tiny=options.tiny)
    wanted = [member for member in _wanted(options) if images.present(member.dataset)]
    missing = [member for member in wanted if not planter.has(member)]
    console.print(f"{len(missing)} of {len(wanted)} networks to plant")

    def plant(member: Member) -> None:
        planter.plant(member, images.held(member.dataset, member.seed))

    return command.do_each(missing, plant, limit=options.limit_seconds, console=console)


def _ask(question: _Question, options: argparse.Namespace, console: Console) -> int:
    """Ask about each planted network that has no record yet."""
    command.refuse_tiny_results(options.out, RESULTS, tiny=options.tiny)
    images = Images(options.data)
    planter = Planter(options.cache, tiny=options.tiny)
    wanted = [
        member
        for member in _wanted(options)
        if planter.has(member) and (question.of_honest or member.attack is not None)
    ]
    results = _store(options, question.table)
    missing = command.missing(wanted, results, console)
    console.print(f"{len(missing)} of {len(wanted)} planted networks to score")
    code = options.commit or commit()

    def record(member: Member) -> None:
        if member.name in results.names():
            return  # Another process has done it meanwhile.
        held = images.held(member.dataset, member.seed)
        trained = planter.take(member, held)
        subject = subjects.prepare(member, held, trained, tiny=options.tiny, brief=question.brief)
        subject = replace(subject, budget=getattr(options, "budget", subject.budget))
        results.add(subjects.record(subject, question.ask, code))

    return command.do_each(missing, record, limit=options.limit_seconds, console=console)


def _wanted(options: argparse.Namespace) -> list[Member]:
    torch.set_num_threads(1)
    members = EVERYDAY if options.everyday else population(options.rounds)
    return command.matching(members, options.only, "networks")


def _show(options: argparse.Namespace, console: Console) -> int:
    found = _of_round(options, "score")
    return _print(found, "score", show.render(found, options.by), options, console)


def _tell(
    asked: str,
    render: Callable[[Sequence[Record]], Iterable[RenderableType]],
    options: argparse.Namespace,
    console: Console,
) -> int:
    """What is made of the records of one question."""
    found = _records(options, asked)
    return _print(found, asked, render(found), options, console)


def _show_cuts(options: argparse.Namespace, console: Console) -> int:
    found = _records(options, "cut")
    return _print(found, "cut", [cuts.table_of_cuts(found)], options, console)


def _compare(options: argparse.Namespace, console: Console) -> int:
    found = _records(options, "candidates")
    parts = compare.render(found, _records(options, "score", options.scored))
    return _print(found, "candidates", parts, options, console)


def _show_budgets(options: argparse.Namespace, console: Console) -> int:
    """By budget."""
    found = {
        budget: _records(options, "score", options.out / folder)
        for budget, folder in budgets.FOLDERS.items()
    }
    told = [record for each in found.values() for record in each]
    return _print(told, "score --budget", budgets.render(found), options, console)


def _show_audit(options: argparse.Namespace, console: Console) -> int:
    found = _of_round(options, "audit")
    parts = show_audit.render(found, options.limit)
    code = _print(found, "audit", parts, options, console)
    if found and options.roc is not None:
        show_audit.draw(found, options.roc)
    return code


def _probability(options: argparse.Namespace, console: Console) -> int:
    """Fit to both calibration halves as first scored; held against both reported halves."""
    first, third = (Store(options.out / name).read() for name in _SCORED)
    again = Store(options.out / "standing" / _SCORED[1]).read()
    fit = [each for part in (first, third) for each in probability.leading(part, "calibration")]
    held = [each for part in (first, again) for each in probability.leading(part, "reported")]
    code = _print(
        [*first, *third, *again], "score", probability.render(fit, held), options, console
    )
    if options.draw is not None and code == ExitCode.PASSED:
        probability.draw(held, options.draw)
    return code


def _print(
    found: Sequence[Record],
    asked: str,
    parts: Iterable[RenderableType],
    options: argparse.Namespace,
    console: Console,
) -> int:
    """What is made of records, or that there are none."""
    if found:
        return command.print_parts(parts, console)
    print(f"expected records, got none in {options.out}; run {asked} first", file=sys.stderr)
    return ExitCode.INCOMPLETE


def _store(options: argparse.Namespace, table: str, folder: Path | None = None) -> Store:
    name = f"everyday-{table}" if options.everyday else table
    return Store((folder or options.out) / f"{name}.jsonl")


def _records(options: argparse.Namespace, asked: str, folder: Path | None = None) -> list[Record]:
    return _store(options, _QUESTIONS[asked].table, folder).read()


def _of_round(options: argparse.Namespace, asked: str) -> list[Record]:
    if options.everyday and options.round is not None:
        raise ConfigError("expected --round or --everyday, got both; that is a round of its own")
    found = _records(options, asked)
    return found if options.round is None else show.of_round(found, options.round - 1)


if __name__ == "__main__":
    sys.exit(main())
