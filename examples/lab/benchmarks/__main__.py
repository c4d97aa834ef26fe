# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""How long the stages take: beside other repairs, beside the bare network, and as inputs grow.

    python -m examples.lab.benchmarks stages --out results/stages.json
    python -m examples.lab.benchmarks whole --out results/whole.json
    python -m examples.lab.benchmarks floor --out results/floor.json
    python -m examples.lab.benchmarks layouts --out results/layouts.json
    python -m examples.lab.benchmarks exports --out results/exports.json
    python -m examples.lab.benchmarks growth --out results/growth.json
    python -m examples.lab.benchmarks fleet --rounds 2 --out results/fleet.json

One thread; processor time counts on the CPU, the clock on a GPU and for fleets.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from rich.console import Console

from examples.lab.benchmarks import exports, fleets, floor, growth, layouts, stages, whole
from examples.lab.kit import command
from examples.lab.kit.provenance import commit, provenance
from lmr_guard.budgets import BUDGETS
from lmr_guard.errors import ExitCode
from lmr_guard.files import atomic

__all__ = ["main"]

_WIDE = 120


def _stages(options: argparse.Namespace) -> dict[str, Any]:
    return {**stages.compare(options), "search by classes": stages.time_by_classes(options)}


_COMMANDS: Mapping[str, Callable[[argparse.Namespace], dict[str, Any]]] = MappingProxyType(
    {
        "stages": _stages,
        "whole": whole.over_rnp,
        "fleet": fleets.spread,
        "floor": floor.above_floor,
        "layouts": layouts.by_layout,
        "exports": exports.traced_and_filled,
        "growth": growth.grow,
        "point": growth.measure,
        "variants": growth.build,
    }
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write what was asked for, and return the exit code."""
    return command.answer(partial(_act, arguments), width=_WIDE, pieces="results")


def _act(arguments: Sequence[str] | None, console: Console) -> int:
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    found = _COMMANDS[options.command](options)
    if options.command not in ("point", "variants"):
        found["environment"] = provenance(commit(), options.device)
    text = json.dumps(found, indent=2)
    console.print(text, markup=False, soft_wrap=True)
    if options.out is not None:
        with atomic(options.out) as file:
            file.write(text.encode() + b"\n")
    return ExitCode.PASSED


def _parser() -> argparse.ArgumentParser:
    parser = command.parser("benchmarks", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in _COMMANDS:
        one = commands.add_parser(name)
        one.add_argument("--out", type=Path, help="also write the result here, as JSON")
        one.add_argument("--width", type=int, default=16, help="channels of the first stage")
        one.add_argument("--rounds", type=int, default=3)
        one.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
        one.add_argument("--tiny", action="store_true", help="all cut short, for the tests")
        if name == "stages":
            one.add_argument("--forms", type=int, default=12, help="how many are audited")
        if name == "whole":
            one.add_argument("--budget", choices=tuple(BUDGETS), action="append", default=[])
        if name in ("growth", "point"):
            one.add_argument("--steps", type=int, default=1, help="of each search")
        if name == "fleet":
            one.add_argument("--units", type=int, default=6, help="of the fleet")
        if name == "variants":
            one.add_argument("count", type=int)
        if name == "point":
            one.add_argument("network")
            for what in ("side", "classes", "images"):
                one.add_argument(what, type=int)
    return parser


if __name__ == "__main__":
    sys.exit(main())
