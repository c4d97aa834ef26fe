# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What INT8 does to a network as it was received, by each way to round its weights.

And what becomes of it elsewhere, on other grids: as it was received, and settled.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import process_time
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from examples.lab.kit.measuring import both, rates
from examples.lab.kit.planting import Trained
from lmr_guard.classifier import Classifier
from lmr_guard.compress.quantize import quantize
from lmr_guard.compress.recipes import Int8
from lmr_guard.compress.rounding import rounded_alike
from lmr_guard.contracts import Clean
from lmr_guard.onnxfile.export import export_onnx
from lmr_guard.onnxfile.predictor import OnnxPredictor

__all__ = ["FILES", "GRIDS", "rounded", "table_of_grids", "table_of_roundings"]

FILES = ("float32", "nearest", "layers")
"""Files in ONNX Runtime: in float; INT8, each weight to the nearest; INT8, layer by layer."""


def _symmetric(weight: Tensor, top: float, *, channels: bool) -> Tensor:
    peak = weight.flatten(1).abs().amax(dim=1) if channels else weight.abs().max()[None]
    step = (peak / top).view(-1, *[1] * (weight.ndim - 1))
    return (weight / step).round() * step


def _asymmetric(weight: Tensor) -> Tensor:
    low, high = weight.min().clamp(max=0), weight.max().clamp(min=0)
    step = (high - low) / 255
    zero = (-low / step).round()
    return ((weight / step + zero).round().clamp(0, 255) - zero) * step


GRIDS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "none": lambda weight: weight,
    "channel / 127": lambda weight: _symmetric(weight, 127, channels=True),
    "channel / 127.5": lambda weight: _symmetric(weight, 127.5, channels=True),
    "channel / 128": lambda weight: _symmetric(weight, 128, channels=True),
    "tensor / 127": lambda weight: _symmetric(weight, 127, channels=False),
    "tensor, asymmetric": _asymmetric,
    "channel / 63": lambda weight: _symmetric(weight, 63, channels=True),
    "bfloat16": lambda weight: weight.bfloat16().to(weight.dtype),
}
"""Weights to the nearest, as tools round them: by channel or tensor, and by what the largest is."""


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
    grids = {
        name: {
            state: rates(_on_grid(start, grid), clean.report, trained.trigger)
            for state, start in (("received", model), ("settled", alike))
        }
        for name, grid in GRIDS.items()
    }
    return {"images": len(clean.repair), "seconds": seconds, "files": found, "grids": grids}


@torch.no_grad()
def _on_grid(classifier: Classifier, grid: Callable[[Tensor], Tensor]) -> Classifier:
    model = classifier.clone()
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.weight.copy_(grid(layer.weight))
    return model


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


def table_of_grids(records: Sequence[Mapping[str, Any]]) -> Table:
    """CA and ASR of each grid elsewhere, of the network as received and of the settled one."""
    title = "Rounded elsewhere, CA / ASR (upper bound), per cent"
    table = Table("network", "grid", "received", "settled", title=title, box=None)
    for record in records:
        for name, states in record.get("grids", {}).items():
            cells = (both(each["ca"], each.get("asr")) for each in states.values())
            table.add_row(record["name"], name, *cells)
    return table
