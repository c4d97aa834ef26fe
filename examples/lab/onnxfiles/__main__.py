# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Which ONNX files come back to torch, can be written again and be cut, and what the rest are told.

    python -m examples.lab.onnxfiles run
    python -m examples.lab.onnxfiles show

``run`` writes each file and takes it as ``lmr-guard run`` does before any repair: read back,
compared with the file on 16 images, written as ONNX again, its channels traced. Nothing is
repaired here. ``verify`` says whether ``lmr-guard verify`` can open the file.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from examples.lab.kit import command
from examples.lab.kit.provenance import commit, provenance
from examples.lab.kit.records import Record, Store
from examples.lab.onnxfiles.subjects import SUBJECTS, Subject, shown
from lmr_guard.compress.groups import Groups
from lmr_guard.errors import GuardError
from lmr_guard.onnxfile.export import export_onnx
from lmr_guard.onnxfile.fileformat import FileFormat
from lmr_guard.onnxfile.predictor import OnnxPredictor
from lmr_guard.received import converted

__all__ = ["main"]

RESULTS = Path(__file__).parent / "results" / "files.jsonl"


def main(arguments: Sequence[str] | None = None) -> int:
    """Do the work, or show it, and return the exit code."""
    table = command.OneTable(
        experiment="onnxfiles", purpose=__doc__, results=RESULTS, pieces="files", width=160
    )
    return command.fill_or_show(table, arguments, _run, show=_table)


def _run(options: argparse.Namespace, store: Store, console: Console) -> int:
    torch.set_num_threads(1)
    wanted = command.matching(SUBJECTS, options.only, "files")
    versions = {name: version(name) for name in ("onnx2torch", "timm", "torchvision")}
    shared = {
        "environment": {**provenance(commit()), "exporters": versions},
        "settings": {"tiny": options.tiny, "images": len(shown())},
    }

    def do(subject: Subject) -> None:
        with TemporaryDirectory() as folder:
            store.add({"name": subject.name, **_tried(subject, Path(folder)), **shared})

    left = command.missing(wanted, store, console)
    return command.do_each(left, do, limit=options.limit_seconds, console=console)


def _tried(subject: Subject, folder: Path) -> dict[str, Any]:
    path = folder / "model.onnx"
    subject.write(path)
    found: dict[str, Any] = {"verify": "opens", "run": "yes", "groups": None, "compared": None}
    try:
        if branches := OnnxPredictor(path).branches:
            found["verify"] = f"graph named: {', '.join(sorted(branches))}"
    except GuardError as error:
        found["verify"] = _line(error, folder)
    try:
        model, origin = converted.read(path, FileFormat())
        found["compared"] = origin.compared(model, shown())
        export_onnx(model, folder / "again.onnx")
    except GuardError as error:
        return {**found, "run": _line(error, folder)}
    try:
        found["groups"] = len(Groups(model).all)
    except GuardError as error:
        found["groups"] = _line(error, folder)
    return found


def _line(error: GuardError, folder: Path) -> str:
    return f"exit {int(error.exit_code)}: {error}".replace(f"{folder}/", "")


def _table(records: Sequence[Record]) -> Table:
    table = Table("file", "verify", "run", "groups that can be cut", title="ONNX files")
    for record in records:
        groups = record["groups"]
        cut = str(groups) if isinstance(groups, int) else "-" if groups is None else "none"
        table.add_row(record["name"], record["verify"], record["run"], cut)
    run = sum(record["run"] == "yes" for record in records)
    audited = sum(record["run"] != "yes" and record["verify"] == "opens" for record in records)
    table.caption = (
        f"{len(records)} files: {run} come back, {audited} are audited only, "
        f"{len(records) - run - audited} are told why neither"
    )
    return table


if __name__ == "__main__":
    sys.exit(main())
