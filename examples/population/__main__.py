# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Plant a population of networks, score localize on it, show the counts.

::

    python -m examples.population plant --data DIR --cache DIR
    python -m examples.population score --data DIR --cache DIR
    python -m examples.population show

What the audit says of the files that these networks would ship as::

    python -m examples.population audit --data DIR --cache DIR
    python -m examples.population show-audit

And, to see what other scores would have been worth::

    python -m examples.population candidates --data DIR --cache DIR
    python -m examples.population compare
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import NoReturn

import torch
from rich.console import Console

from examples.population import compare, heard, records, show
from examples.population.audited import audited
from examples.population.candidates import gathered
from examples.population.images import Images
from examples.population.nursery import Nursery
from examples.population.plan import ROUNDS, Member, population
from examples.population.score import scored
from examples.reproduce.cells import commit
from lmr_guard.errors import ConfigError, ExitCode, GuardError
from lmr_guard.release.policy import Policy

__all__ = ["AUDITED", "CANDIDATES", "RESULTS", "main"]

_WIDE = 160
_INTERRUPTED = 130
RESULTS = Path(__file__).parent / "results"
AUDITED = Path(__file__).parent / "results_audit"
CANDIDATES = Path(__file__).parent / "results_candidates"


class _Parser(argparse.ArgumentParser):
    """Complains in one line, as everything else here does."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see python -m examples.population --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Plant, score or show, and return the exit code."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = _WIDE
    try:
        options = _parser().parse_args(arguments)
        code: int = options.run(options, console)
    except GuardError as error:
        print(f"error: {error}", file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted; finished networks are kept", file=sys.stderr)
        return _INTERRUPTED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m examples.population", description=_first_line(__doc__))
    commands = parser.add_subparsers(required=True)
    plant = commands.add_parser("plant", help="train the networks that are missing")
    plant.set_defaults(run=_plant)
    score = commands.add_parser("score", help="localise in those that are there")
    score.set_defaults(run=_score)
    candidates = commands.add_parser("candidates", help="ask other scores about those there")
    candidates.set_defaults(run=_candidates)
    audit = commands.add_parser("audit", help="audit the files that those there would ship as")
    audit.set_defaults(run=_audit)
    for command in (plant, score, candidates, audit):
        command.add_argument("--data", type=Path, help="holds fashion and cifar10")
        command.add_argument("--cache", type=Path, required=True, help="keeps trained networks")
        command.add_argument("--only", default="", help="networks whose name holds this text")
        command.add_argument("--rounds", type=int, default=ROUNDS, help=f"default: {ROUNDS}")
        command.add_argument("--tiny", action="store_true", help="too short to work, but quick")
        command.add_argument(
            "--limit-seconds", type=float, default=float("inf"), help="begin none after that time"
        )
    for command in (score, candidates, audit):
        command.add_argument("--commit", help="recorded where there is no git repository")
    shown = commands.add_parser("show", help="print the counts")
    shown.set_defaults(run=_show)
    shown.add_argument("--by", choices=tuple(show.KEYS), default="family")
    compared = commands.add_parser("compare", help="print what each score is worth")
    compared.set_defaults(run=_compare)
    compared.add_argument("--scored", type=Path, default=RESULTS, help="what score has written")
    told = commands.add_parser("show-audit", help="print what the audit refused and passed")
    told.set_defaults(run=_show_audit)
    told.add_argument("--limit", type=float, default=Policy().max_strangeness)
    told.add_argument("--roc", type=Path, help="also draw the ROC into this file (.svg, .png)")
    for command in (shown, told):
        command.add_argument("--round", type=int, help="only networks of this round, from 1")
    kept = {
        score: RESULTS,
        shown: RESULTS,
        candidates: CANDIDATES,
        compared: CANDIDATES,
        audit: AUDITED,
        told: AUDITED,
    }
    for command, folder in kept.items():
        command.add_argument("--out", type=Path, default=folder, help="results folder")
    return parser


def _first_line(text: str | None) -> str:
    return (text or "").splitlines()[0]


def _plant(options: argparse.Namespace, console: Console) -> int:
    images = Images(options.data)
    nursery = Nursery(options.cache, tiny=options.tiny)
    wanted = [member for member in _wanted(options) if images.present(member.dataset)]
    missing = [member for member in wanted if not nursery.has(member)]
    console.print(f"{len(missing)} of {len(wanted)} networks to plant")

    def plant(member: Member) -> None:
        nursery.grow(member, images.held(member.dataset, member.seed))

    return _each(missing, plant, options.limit_seconds, console)


def _score(options: argparse.Namespace, console: Console) -> int:
    return _recorded(options, console, scored)


def _candidates(options: argparse.Namespace, console: Console) -> int:
    return _recorded(options, console, gathered)


def _audit(options: argparse.Namespace, console: Console) -> int:
    return _recorded(options, console, audited)


def _recorded(
    options: argparse.Namespace, console: Console, ask: Callable[..., records.Record]
) -> int:
    """Ask about each planted network that has no record yet."""
    if options.tiny and options.out in (RESULTS, CANDIDATES, AUDITED):
        raise ConfigError("expected --out beside --tiny, got none; its records are no results")
    images = Images(options.data)
    nursery = Nursery(options.cache, tiny=options.tiny)
    wanted = [member for member in _wanted(options) if nursery.has(member)]
    missing = [member for member in wanted if not records.path(options.out, member).exists()]
    console.print(f"{len(missing)} of {len(wanted)} planted networks to score")
    code = options.commit or commit()

    def record(member: Member) -> None:
        held = images.held(member.dataset, member.seed)
        grown = nursery.take(member, held)
        found = ask(member, held, grown, commit=code, tiny=options.tiny)
        records.write(options.out, member, found)

    return _each(missing, record, options.limit_seconds, console)


def _show(options: argparse.Namespace, console: Console) -> int:
    found = _of_round(options)
    if not found:
        print(f"expected records, got none in {options.out}; score first", file=sys.stderr)
        return ExitCode.INCOMPLETE
    for part in show.rendered(found, options.by):
        console.print(part)
    return ExitCode.PASSED


def _compare(options: argparse.Namespace, console: Console) -> int:
    found = records.read(options.out)
    if not found:
        print(f"expected records, got none in {options.out}; ask candidates", file=sys.stderr)
        return ExitCode.INCOMPLETE
    for part in compare.rendered(found, records.read(options.scored)):
        console.print(part)
    return ExitCode.PASSED


def _show_audit(options: argparse.Namespace, console: Console) -> int:
    found = _of_round(options)
    if not found:
        print(f"expected records, got none in {options.out}; audit some first", file=sys.stderr)
        return ExitCode.INCOMPLETE
    for part in heard.rendered(found, options.limit):
        console.print(part)
    if options.roc is not None:
        heard.draw(found, options.roc)
    return ExitCode.PASSED


def _of_round(options: argparse.Namespace) -> list[records.Record]:
    found = records.read(options.out)
    return found if options.round is None else show.of_round(found, options.round - 1)


def _wanted(options: argparse.Namespace) -> list[Member]:
    torch.set_num_threads(1)
    wanted = [member for member in population(options.rounds) if options.only in member.name]
    if not wanted:
        raise ConfigError(f"expected networks with {options.only!r} in their name, got none")
    return wanted


def _each(
    members: Sequence[Member], do: Callable[[Member], None], limit: float, console: Console
) -> int:
    """One after another; one that fails is told and does not stop the others."""
    begun, failed = perf_counter(), 0
    for number, member in enumerate(members, start=1):
        if perf_counter() - begun > limit:
            console.print(f"stopped after {limit:g} s, before {member.name}")
            break
        start, place = perf_counter(), f"[{number}/{len(members)}] {member.name}"
        try:
            do(member)
        except Exception as error:  # noqa: BLE001 - hours of other networks may follow
            failed += 1
            told = str(error) if isinstance(error, GuardError) else repr(error)
            console.print(f"{place}: failed: {told}", markup=False)
            continue
        console.print(f"{place}: {perf_counter() - start:.1f} s", markup=False)
    return ExitCode.FAILED if failed else ExitCode.PASSED


if __name__ == "__main__":
    sys.exit(main())
