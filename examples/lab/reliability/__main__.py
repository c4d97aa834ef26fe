# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Bad inputs, kills and fuzzing, for as long as it takes; ``show`` tells what came of them.

    python -m examples.lab.reliability inputs
    python -m examples.lab.reliability kills
    python -m examples.lab.reliability fuzz --seconds 30
    python -m examples.lab.reliability guided --seconds 20
    python -m examples.lab.reliability large
    python -m examples.lab.reliability bypasses
    python -m examples.lab.reliability show --write

Each but the last writes one record; ``show --write`` makes ``docs/reliability.md`` of them.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from examples.lab.kit import command
from examples.lab.reliability import bypasses, fuzz, guided, kills, large, page
from examples.lab.reliability.corpus import corpus
from examples.lab.reliability.place import fill
from examples.lab.reliability.running import Bench
from examples.lab.reliability.targets import targets
from examples.lab.reliability.trial import attempt, faults
from lmr_guard.errors import ConfigError, ExitCode
from lmr_guard.files import atomic

__all__ = ["main"]

_WIDE = 120


def main(arguments: Sequence[str] | None = None) -> int:
    """Does what was asked for, and returns the exit code."""
    return command.answer(partial(_act, arguments), width=_WIDE, pieces="records")


def _act(arguments: Sequence[str] | None, console: Console) -> int:
    parser = command.parser("reliability", __doc__)
    found = parser.add_subparsers(
        required=True, metavar="inputs|kills|fuzz|guided|large|bypasses|show"
    )
    inputs = _command(found.add_parser("inputs", help="the whole corpus, slow ones too"), _inputs)
    inputs.add_argument("--only", default="", help="inputs whose name holds this text")
    killed = _command(found.add_parser("kills", help="runs that are cut short"), _kills)
    killed.add_argument("--only", default="", help="kinds whose name holds this text")
    killed.add_argument("--seed", type=int, default=0)
    killed.add_argument("--moments", type=int, default=40, help="random ones, for each output")
    killed.add_argument("--cold", type=int, default=8, help="kills of a process with its imports")
    fuzzed = _command(found.add_parser("fuzz", help="spoilt input for every reader"), _fuzz)
    fuzzed.add_argument("--target", default="", help="readers whose name holds this text")
    fuzzed.add_argument("--seed", type=int, default=0)
    fuzzed.add_argument("--count", type=int, default=1 << 62, help="executions of each reader")
    fuzzed.add_argument("--seconds", type=float, default=30.0, help="for each reader")
    fuzzed.add_argument("--replay", type=int, help="do this execution of --target again")
    steered = _command(found.add_parser("guided", help="fuzzing by what code is reached"), _guided)
    steered.add_argument("--target", default="", help="readers whose name holds this text")
    steered.add_argument("--seed", type=int, default=0)
    steered.add_argument("--seconds", type=float, default=20.0, help="for each reader")
    _command(found.add_parser("large", help="inputs that are right, and large"), _large)
    _command(found.add_parser("bypasses", help="known ways past the gate"), _bypasses)
    shown = _command(found.add_parser("show", help="what the records hold, as a page"), _show)
    shown.add_argument("--write", action="store_true", help=f"to {page.PAGE.name} of docs")
    options = parser.parse_args(arguments)
    done: int = options.act(options, console)
    return done


def _command(
    parser: argparse.ArgumentParser, act: Callable[[argparse.Namespace, Console], int]
) -> argparse.ArgumentParser:
    parser.add_argument("--out", type=Path, default=page.RESULTS, help="folder of the records")
    parser.set_defaults(act=act)
    return parser


def _require_whole(options: argparse.Namespace, only: str) -> None:
    """Part of the work is no result."""
    if only and options.out == page.RESULTS:
        raise ConfigError("expected --out beside a choice, got none; its record is no result")


def _inputs(options: argparse.Namespace, console: Console) -> int:
    _require_whole(options, options.only)
    cases = command.matching(list(corpus()), options.only, "inputs")
    found: dict[str, list[str]] = {}
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="reliability-") as folder:
        for number, case in enumerate(cases, start=1):
            place = fill(Path(folder) / "place")
            found[case.name] = faults(case, attempt(case, place))
            shutil.rmtree(place, ignore_errors=True)
            for fault in found[case.name]:
                console.print(f"[{number}/{len(cases)}] {case.name}: {fault}", markup=False)
    record = page.inputs_record(found, time.monotonic() - start)
    page.save(record, options.out / "inputs.json")
    return _told(console, len(cases), len(record["faults"]))


def _kills(options: argparse.Namespace, console: Console) -> int:
    _require_whole(options, options.only)
    kinds = {kind: do for kind, do in kills.KINDS.items() if options.only in kind}
    if not kinds:
        raise ConfigError(f"expected kinds with {options.only!r} in their name, got none")
    extent = kills.Extent(options.seed, options.moments, options.cold)
    found: dict[str, list[kills.Struck]] = {}
    start = time.monotonic()
    with fuzz.workplace() as folder:
        bench = Bench(folder)
        for kind, do in kinds.items():
            found[kind] = []
            for struck in do(bench, extent):
                found[kind].append(struck)
                for fault in struck.faults:
                    console.print(f"{kind}: {struck.name}: {fault}", markup=False)
            console.print(f"{kind}: {len(found[kind])}", markup=False)
    record = page.kills_record(found, options.seed, time.monotonic() - start)
    page.save(record, options.out / "kills.json")
    return _told(console, sum(map(len, found.values())), len(record["faults"]))


def _fuzz(options: argparse.Namespace, console: Console) -> int:
    with fuzz.workplace() as folder:
        names = [name for name in targets(folder) if options.target in name]
    if not names:
        raise ConfigError(f"expected readers with {options.target!r} in their name, got none")
    if options.replay is not None:
        name = options.target if options.target in names else names[0]
        console.print(fuzz.again(name, options.seed, options.replay), markup=False)
        return ExitCode.PASSED
    _require_whole(options, options.target)
    limits = fuzz.Limits(options.seed, options.count, options.seconds)
    runs = []
    for name in names:
        runs.append(run := fuzz.beside(name, limits))
        console.print(f"{name}: {run.executions} in {run.seconds:g} s", markup=False)
        for crash in run.crashes:
            told = f"{name} {crash.number}: {crash.error}, {crash.times} times"
            console.print(told, markup=False)
    page.save(page.fuzz_record(runs, options.seed), options.out / "fuzz.json")
    count = sum(len(run.crashes) for run in runs)
    return _told(console, sum(run.executions for run in runs), count)


def _guided(options: argparse.Namespace, console: Console) -> int:
    version = guided.atheris_version()
    _require_whole(options, options.target)
    names = [name for name in guided.readers() if options.target in name]
    if not names:
        raise ConfigError(f"expected readers with {options.target!r} in their name, got none")
    extent = guided.Extent(options.seed, options.seconds)
    runs = []
    with fuzz.workplace() as folder, guided.Nursery(folder) as nursery:
        for name in names:
            runs.append(run := guided.guided(name, extent, nursery))
            told = f"{run.executions} in {run.seconds:g} s, {run.covered} branches"
            console.print(f"{name}: {told}", markup=False)
            for wrong in run.wrong:
                console.print(f"{name} {wrong.number}: {wrong.error}", markup=False)
    page.save(page.guided_record(runs, extent, version), options.out / "guided.json")
    count = sum(len(run.wrong) for run in runs)
    return _told(console, sum(run.executions for run in runs), count)


def _large(options: argparse.Namespace, console: Console) -> int:
    sizes: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(prefix="reliability-") as folder:
        for case in large.cases():
            place = fill(Path(folder) / "place")
            seen = attempt(case, place)
            shutil.rmtree(place, ignore_errors=True)
            name = case.name.partition(": ")[2]
            record = {"name": name, "code": seen.code, "seconds": round(seen.seconds)}
            sizes.append({**record, "megabytes": seen.bytes >> 20, "said": seen.said})
            console.print(f"{name}: {sizes[-1]}", markup=False)
    page.save(page.large_record(sizes), options.out / "large.json")
    return _told(console, len(sizes), sum(each["code"] != 0 for each in sizes))


def _bypasses(options: argparse.Namespace, console: Console) -> int:
    start = time.monotonic()
    found = bypasses.tried()
    wrong = {name: word for name, word in found.items() if word != "passed"}
    for name, word in wrong.items():
        console.print(f"{name}: {word}", markup=False)
    page.save(page.bypasses_record(found, time.monotonic() - start), options.out / "bypasses.json")
    return _told(console, len(found), len(wrong))


def _told(console: Console, tried: int, wrong: int) -> int:
    console.print(f"{tried} tried, {wrong} faults")
    return ExitCode.FAILED if wrong else ExitCode.PASSED


def _show(options: argparse.Namespace, console: Console) -> int:
    text = page.page(options.out)
    if options.write:
        with atomic(page.PAGE) as file:
            file.write(text.encode())
    else:
        console.print(text, markup=False)
    return ExitCode.PASSED


if __name__ == "__main__":
    sys.exit(main())
