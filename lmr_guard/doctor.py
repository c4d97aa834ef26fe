# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Whether this machine can do the work, and what would decide the numbers: ``lmr-guard doctor``."""

import importlib
import importlib.metadata
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import torch

from lmr_guard.errors import first_line
from lmr_guard.release.environment import environment

__all__ = ["Found", "State", "examine"]

_PYTHON = (3, 11)
_IMPORTED = ("onnx", "onnxscript", "safetensors", "sklearn", "torch_pruning", "torchvision")
_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
_ROOM = 1 << 30  # bytes that the variants of a usual network and their copies need
_ANEW = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"


class State(StrEnum):
    """How one look came out."""

    FINE = "ok"
    ODD = "note"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Found:
    """One look: at what, how it came out, and what was seen or is to be done."""

    about: str
    state: State
    told: str


def examine(folder: Path) -> Iterator[Found]:
    """Looks at versions, ONNX Runtime, GPU, disk and threads; changes nothing, raises nothing.

    Args:
        folder: Where results would be written; must exist.
    """
    seen = environment("cuda" if torch.cuda.is_available() else "cpu")
    yield _python()
    yield from _packages(seen["packages"])
    yield _one_runtime(seen["packages"])
    yield _session()
    yield _gpu(seen["gpu"])
    for name, place in (("results", folder), ("temporary files", Path(tempfile.gettempdir()))):
        yield _disk(name, place)
    yield _threads(seen["threads"])
    flags = ", ".join(seen["cpu"]["flags"]) or "no flags that matter here"
    yield Found("processor", State.FINE, f"{seen['cpu']['model']} ({flags})")


def _python() -> Found:
    told = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < _PYTHON:
        return Found("python", State.BAD, f"expected 3.11 or newer, got {told}")
    return Found("python", State.FINE, told)


def _packages(versions: dict[str, str | None]) -> Iterator[Found]:
    told = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    yield Found("versions", State.FINE, told)
    for name in _IMPORTED:
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 - a damaged package may raise anything
            why = f"expected to import it, got {first_line(error)}; install lmr-guard anew"
            yield Found(name, State.BAD, why)


def _one_runtime(versions: dict[str, str | None]) -> Found:
    there = [name for name in _RUNTIMES if versions[name]]
    if len(there) == 1:
        return Found("onnxruntime", State.FINE, f"{there[0]} {versions[there[0]]}")
    got = "both, which write into one folder" if there else "neither"
    return Found(
        "onnxruntime", State.BAD, f"expected one of {' and '.join(_RUNTIMES)}, got {got}: {_ANEW}"
    )


def _session() -> Found:
    """A session of one operator, run once."""
    about = "session"
    try:
        import numpy as np
        import onnx.parser
        import onnxruntime

        text = '<ir_version: 8, opset_import: ["": 17]> g (float[2] x) => (float[2] y) {y = Neg(x)}'
        model = onnx.parser.parse_model(text).SerializeToString()
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        (answer,) = session.run(None, {"x": np.array([1, 2], dtype=np.float32)})
        known = ", ".join(onnxruntime.get_available_providers())
    except Exception as error:  # noqa: BLE001 - two runtimes in one folder may raise anything
        return Found(about, State.BAD, f"expected a session that runs, got {first_line(error)}")
    if answer.tolist() != [-1, -2]:
        return Found(about, State.BAD, f"expected [-1, -2] from a session, got {answer.tolist()}")
    return Found(about, State.FINE, f"ran on {session.get_providers()[0]}; built with {known}")


def _gpu(name: str | None) -> Found:
    if name is None:
        return Found("gpu", State.FINE, "none that torch can use; everything runs on the CPU")
    return Found("gpu", State.FINE, f"{name}; files are audited on the CPU all the same")


def _disk(name: str, place: Path) -> Found:
    about = f"disk for {name}"
    try:
        free = shutil.disk_usage(place).free
    except OSError as error:
        return Found(about, State.BAD, f"expected a folder, got {error.strerror}: {place}")
    told = f"{free / _ROOM:.1f} GiB free at {place}"
    if not os.access(place, os.W_OK):
        return Found(about, State.BAD, f"expected a folder that can be written, got {place}")
    if free < _ROOM:
        return Found(about, State.BAD, f"expected 1 GiB free or more, got {told}")
    return Found(about, State.FINE, told)


def _threads(count: int) -> Found:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    told = f"torch uses {count}, the process may run on {usable} cores"
    if usable is not None and count > usable:
        return Found(
            "threads", State.ODD, f"{told}; they get into one another's way, see --threads"
        )
    return Found("threads", State.FINE, told)
