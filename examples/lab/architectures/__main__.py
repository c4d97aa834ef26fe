# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""How architectures of torchvision and timm go through the guard: loaded, written, cut, searched.

    python -m examples.lab.architectures run
    python -m examples.lab.architectures show
    python -m examples.lab.architectures page

``run`` writes a checkpoint of each, reads it back as ``lmr-guard run`` does, and builds, measures
and searches the variants float32, int8 and l1-0.3, whose channels are cut evenly. Nothing is
repaired, for nothing is backdoored. The search has two steps: it runs, and can tell nothing. A run
that was stopped goes on where it was. ``page`` prints the table of ``docs/architectures.md``.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from examples.lab.architectures.subjects import SUBJECTS, Subject, write
from examples.lab.kit import command
from examples.lab.kit.provenance import commit, provenance
from examples.lab.kit.records import Record, Store
from examples.lab.kit.tables import framed_table
from lmr_guard import pipeline
from lmr_guard.compress.recipes import parse
from lmr_guard.contracts import silent
from lmr_guard.evidence import Patch
from lmr_guard.localize.inversion import InversionSettings
from lmr_guard.localize.listening import ListeningSettings
from lmr_guard.measure import accuracy
from lmr_guard.received import inputs
from lmr_guard.release.policy import Policy
from lmr_guard.release.records import Check, Outcome, Variant
from lmr_guard.settings import Settings
from lmr_guard.workshop import Structure, Workshop

__all__ = ["main"]

RESULTS = Path(__file__).parent / "results" / "networks.jsonl"
_CUT = "l1-0.3"
_EACH, _EACH_TINY = 16, 12  # images of each class


def main(arguments: Sequence[str] | None = None) -> int:
    """Do the work, or show it, and return the exit code."""
    table = command.OneTable(
        experiment="architectures", purpose=__doc__, results=RESULTS, pieces="networks", width=200
    )
    return command.fill_or_show(table, arguments, _run, show=_table, page=_markdown)


def _run(options: argparse.Namespace, store: Store, console: Console) -> int:
    torch.set_num_threads(1)
    wanted = command.matching(SUBJECTS, options.only, "networks")
    each = _EACH_TINY if options.tiny else _EACH
    versions = {name: version(name) for name in ("timm", "torch-pruning", "torchvision")}
    shared = {
        "environment": {**provenance(commit()), "libraries": versions},
        "settings": {"tiny": options.tiny, "images": each, "variants": ["float32", "int8", _CUT]},
    }

    def do(subject: Subject) -> None:
        with TemporaryDirectory() as folder:
            store.add({"name": subject.name, **_tried(subject, Path(folder), each), **shared})

    left = command.missing(wanted, store, console)
    return command.do_each(left, do, limit=options.limit_seconds, console=console)


def _settings(classes: Sequence[str]) -> Settings:
    brief = (InversionSettings(steps=2, batch=2),)
    plain, eight, cut = parse(["float32", "int8", _CUT], refit="none")
    assert cut.prune is not None
    uniform = replace(cut, prune=replace(cut.prune, shares="uniform"))
    return Settings(
        listening=ListeningSettings(look=brief, deep=brief, images=16, refused=True),
        policy=Policy(min_trials=5),
        recipes=(plain, eight, uniform),
        repair=False,
        classes=tuple(classes),
        precision="float32",
        threads=1,
    )


def _tried(subject: Subject, folder: Path, each: int) -> dict[str, Any]:
    """One network; what is no line of a stage is raised: that would be a fault of the guard."""
    checkpoint = folder / "model.safetensors"
    clean = write(subject, checkpoint, each)
    settings = _settings(clean.classes)
    began = process_time()
    received = pipeline.read_model(checkpoint, subject.architecture, clean, settings)
    parts = pipeline.read_clean(received, clean, settings)
    model = inputs.understood(received, parts).classifier
    patch = Patch(torch.ones(3, 4, 4), x=1, y=1, target=0)
    workshop = Workshop(Structure(model), parts, [patch], settings, folder, silent)
    reference = accuracy(model, parts.report)
    variants = workshop.variants(model, reference, suspects=(), replays=())
    return {
        "side": model.preprocessing.height,
        "parameters": sum(value.numel() for value in model.parameters()),
        "variants": {variant.name: _told(variant) for variant in variants},
        "notes": workshop.notes,
        "seconds": round(process_time() - began, 1),
    }


def _told(variant: Variant) -> dict[str, Any]:
    """What is kept of a variant; ``achieved`` and ``listens`` as the report has them."""
    told: dict[str, Any] = {
        "right": [variant.clean_accuracy.hits, variant.clean_accuracy.trials],
        "bytes": variant.bytes,
        "channels": variant.achieved.channel_sparsity,
        "weights": variant.achieved.parameter_sparsity,
    }
    for finding in variant.verdict.findings:
        if finding.check in {Check.ACHIEVED, Check.LISTENS}:
            told[str(finding.check)] = [finding.outcome.name, finding.reason]
    return told


_WORDS = ("network", "l1-0.3", "why not")
_NUMBERS = ("pixels", "float32", "int8", "channels gone", "weights gone", "s")


def _row(record: Record) -> tuple[str, ...]:
    made = record["variants"]
    cut = made.get(_CUT)
    outcome, reason = ("not built", _unbuilt(record)) if cut is None else cut[Check.ACHIEVED]
    reached = outcome == Outcome.PASS.name
    return (
        record["name"],
        "reached" if reached else outcome,
        "" if reached else _short(reason),
        str(record["side"]),
        *(_right(made.get(name)) for name in ("float32", "int8")),
        *("-" if cut is None else f"{cut[key]:.1%}" for key in ("channels", "weights")),
        f"{record['seconds']:.0f}",
    )


def _summed_up(rows: Sequence[tuple[str, ...]], records: Sequence[Record]) -> str:
    outcomes = Counter(row[1] for row in rows)
    seconds = sum(record["seconds"] for record in records)
    told = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
    return f"{len(rows)} networks: {told}; {seconds:.0f} s of processor time in all"


def _table(records: Sequence[Record]) -> Table:
    table, rows = framed_table("Architectures", _WORDS, _NUMBERS), [_row(r) for r in records]
    for row in rows:
        table.add_row(*row)
    table.caption = _summed_up(rows, records)
    return table


def _markdown(records: Sequence[Record]) -> Text:
    rows = [_row(record) for record in records]
    heads = (*_WORDS, *_NUMBERS)
    lines = [f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *rows)]
    return Text("\n".join([*lines, "", f"{_summed_up(rows, records)}."]))


def _unbuilt(record: Record) -> str:
    notes: list[str] = record["notes"]
    return next((note for note in notes if _CUT in note), notes[0])


def _right(variant: Record | None) -> str:
    return "-" if variant is None else "{}/{}".format(*variant["right"])


def _short(reason: str) -> str:
    return reason.partition("; ")[2] or reason


if __name__ == "__main__":
    sys.exit(main())
