# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What INT8 does to a network as it was received, by each way to round its weights."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import process_time
from typing import Any

import torch
from rich.table import Table

from examples.lab.kit.measuring import both, rates
from examples.lab.kit.planting import Trained
from lmr_guard.classifier import Classifier
from lmr_guard.compress.quantize import quantize
from lmr_guard.compress.recipes import Int8
from lmr_guard.compress.rounding import rounded_alike
from lmr_guard.contracts import Clean
from lmr_guard.onnxfile.export import export_onnx
from lmr_guard.onnxfile.predictor import OnnxPredictor

__all__ = ["FILES", "rounded", "table_of_roundings"]

FILES = ("float32", "nearest", "layers")
"""Files in ONNX Runtime: in float; INT8, each weight to the nearest; INT8, layer by layer."""


def rounded(trained: Trained, clean: Clean) -> dict[str, Any]:
    """CA and ASR of the files of one network, and what the rounding took.

    Nobody is suspected and nothing is repaired; the rounding sees no trigger.

    Args:
        trained: The network and its trigger.
        clean: ``repair`` is rounded and calibrated on, ``report`` counted on.

    Raises:
        StageError: It cannot be exported or quantised.
    """
    model, start = trained.classifier, process_time()
    alike = rounded_alike(model, clean.repair, torch.Generator().manual_seed(0))
    seconds = round(process_time() - start, 1)
    with tempfile.TemporaryDirectory() as folder:
        files = {
            "float32": _exported(model, Path(folder) / "float32.onnx"),
            "nearest": _quantised(model, clean, Path(folder) / "nearest.onnx"),
            "layers": _quantised(alike, clean, Path(folder) / "layers.onnx"),
        }
        found = {
            name: rates(OnnxPredictor(file), clean.report, trained.trigger)
            for name, file in files.items()
        }
    return {"images": len(clean.repair), "seconds": seconds, "files": found}


def _exported(model: Classifier, path: Path) -> Path:
    return export_onnx(model, path).path


def _quantised(model: Classifier, clean: Clean, path: Path) -> Path:
    source = _exported(model, path.with_suffix(".float32.onnx"))
    quantize(source, path, clean.repair, Int8())
    return path


def table_of_roundings(records: Sequence[Mapping[str, Any]]) -> Table:
    """CA and ASR of each file."""
    table = Table("network", *FILES, "CPU s", title="CA / ASR (upper bound), per cent", box=None)
    for record in records:
        files = (record["files"][name] for name in FILES)
        cells = (both(each["ca"], each.get("asr")) for each in files)
        table.add_row(record["name"], *cells, f"{record['seconds']:.0f}")
    return table
