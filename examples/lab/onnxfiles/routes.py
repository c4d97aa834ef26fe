# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""One backdoored network by three routes: its checkpoint, its ONNX file, the file with batch norm.

    python -m examples.lab.onnxfiles.routes run
    python -m examples.lab.onnxfiles.routes show

Digits: the attacker has 900, the guard the other 897. The exporter folds batch norm into the
convolutions. The third route puts one that changes nothing behind each convolution (``norms``),
measured on the images that the guard learns from. Each network goes through ``lmr_guard.guard``
under the default policy with the attacker's class given, for the repair is what is asked about;
files are not searched. None of these seeds was looked at while this was written.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from examples.lab.kit import command
from examples.lab.kit.networks import with_seed
from examples.lab.kit.provenance import commit, provenance
from examples.lab.kit.records import Record, Store
from examples.lab.onnxfiles.norms import with_norms
from lmr_guard import demo, pipeline
from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.compress.recipes import parse
from lmr_guard.contracts import Labelled
from lmr_guard.evidence import Patch
from lmr_guard.onnxfile.export import export_onnx
from lmr_guard.onnxfile.fileformat import FileFormat
from lmr_guard.received import converted
from lmr_guard.received.parts import divide
from lmr_guard.redteam import badnets
from lmr_guard.redteam.networks import digits_resnet
from lmr_guard.redteam.training import Schedule
from lmr_guard.release.report import Report
from lmr_guard.settings import Settings

__all__ = ["PIECES", "ROUTES", "SEEDS", "Piece", "main"]

RESULTS = Path(__file__).parent / "results" / "routes.jsonl"
ROUTES = ("checkpoint", "file", "file with norm")
"""How the network is handed in."""
SEEDS = (10, 11, 12, 13, 14)
"""Of the split, the network and the attack."""

_TARGET = 3
_FORMS = ("float32", "int8", "l1-0.2")
_SHAPE = Preprocessing(channels=1, height=16, width=16, mean=(0.0,), std=(1.0,))
_ARCH = "lmr_guard.redteam.networks:digits_resnet"


@dataclass(frozen=True, slots=True)
class Piece:
    """One network by one route."""

    seed: int
    route: str

    @property
    def name(self) -> str:
        """No two share one."""
        return f"s{self.seed} {self.route}"


PIECES = tuple(Piece(seed, route) for seed in SEEDS for route in ROUTES)
"""All of them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do the work, or show it, and return the exit code."""
    table = command.OneTable(
        experiment="onnxfiles.routes",
        purpose=__doc__,
        results=RESULTS,
        pieces="networks",
        width=120,
    )
    return command.fill_or_show(table, arguments, _run, show=_table)


def _run(options: argparse.Namespace, store: Store, console: Console) -> int:
    torch.set_num_threads(1)
    wanted = command.matching(PIECES, options.only, "networks")
    settings = Settings(recipes=parse(_FORMS), suspect=_TARGET, listening=None, threads=1)
    shared = {
        "environment": provenance(commit()),
        "settings": {"tiny": options.tiny, "forms": list(_FORMS), **settings.to_json()},
    }

    def do(piece: Piece) -> None:
        begun = perf_counter()
        report = _guarded(piece, settings, tiny=options.tiny)
        found = {**_counted(report), "seconds": round(perf_counter() - begun, 1)}
        store.add({"name": piece.name, "seed": piece.seed, "route": piece.route, **found, **shared})

    left = command.missing(wanted, store, console)
    return command.do_each(left, do, limit=options.limit_seconds, console=console)


def _guarded(piece: Piece, settings: Settings, *, tiny: bool) -> Report:
    attackers, users = demo.digits(piece.seed)
    trigger = Patch(torch.ones(1, 4, 4), 11, 11, "white square", target=_TARGET)
    schedule = Schedule(epochs=3 if tiny else 12, lr=0.1, batch=64, shift=1)
    recipe = badnets.BadNets(trigger=trigger, rate=0.1, schedule=schedule)
    generator = torch.Generator().manual_seed(piece.seed)
    fresh = Classifier(with_seed(digits_resnet, piece.seed), _SHAPE, 10)
    network = badnets.plant(recipe, fresh, attackers, generator).classifier
    with TemporaryDirectory() as folder:
        place = Path(folder)
        model, arch = _handed_in(piece.route, network, users, settings, place)
        return pipeline.guard(model, users, place / "out", [trigger], arch=arch, settings=settings)


def _handed_in(
    route: str, network: Classifier, users: Labelled, settings: Settings, place: Path
) -> tuple[Path | Classifier, str | None]:
    if route == "checkpoint":
        save_file(network.network.state_dict(), place / "model.safetensors")
        return place / "model.safetensors", _ARCH
    export_onnx(network, place / "model.onnx")
    if route == "file":
        return place / "model.onnx", None
    read, _ = converted.read(place / "model.onnx", FileFormat())
    learnt = divide(users, None, None, settings.generator("split")).repair
    return with_norms(read, learnt)[0], None


def _counted(report: Report) -> dict[str, Any]:
    return {
        "verdict": report.verdict.name,
        "received": report.received[0].triggers[0].asr.to_json(),
        "forms": {
            variant.name: {
                "asr": variant.triggers[0].asr.to_json(),
                "clean": variant.clean_accuracy.to_json(),
            }
            for variant in report.variants
        },
    }


def _table(records: Sequence[Record]) -> Table:
    table = Table("network", "verdict", "as received", *_FORMS, title="ASR by route")
    for record in records:
        asr = [
            _rate(record["forms"][form]["asr"]) if form in record["forms"] else "-"
            for form in _FORMS
        ]
        table.add_row(record["name"], record["verdict"], _rate(record["received"]), *asr)
    told = []
    for route in ROUTES:
        own = [record for record in records if record["route"] == route]
        rates = [r["forms"]["float32"]["asr"] for r in own if "float32" in r["forms"]]
        hits, trials = (sum(rate[key] for rate in rates) for key in ("hits", "trials"))
        passed = sum(record["verdict"] == "PASS" for record in own)
        told.append(f"{route}: {passed} of {len(own)} pass, float32 {hits}/{trials} in all")
    table.caption = "; ".join(told)
    return table


def _rate(rate: Record) -> str:
    return f"{rate['hits']}/{rate['trials']}"


if __name__ == "__main__":
    sys.exit(main())
