# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Inputs that are right, and large."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from examples.lab.reliability.onnxfiles import verify
from examples.lab.reliability.place import CLASSES, SIDE, thirds
from examples.lab.reliability.trial import Case

__all__ = ["IMAGES", "cases"]

IMAGES = 100_000
_WIDE, _LAYERS = 4096, 16  # of 64 MB each


def _many_images(folder: Path) -> list[str]:
    for label in range(CLASSES):
        home = folder / "clean" / f"class{label}"
        present = sorted(home.iterdir())
        for number in range(IMAGES // CLASSES + 1 - len(present)):
            shutil.copyfile(present[number % len(present)], home / f"more{number:06d}.png")
    return verify(folder)


def _large_model(folder: Path) -> list[str]:
    """The usual classifier behind a tower of square layers that pass on what they get."""
    first = np.zeros((SIDE * SIDE, _WIDE), np.float32)
    first[:, : SIDE * SIDE] = np.eye(SIDE * SIDE)
    last = np.zeros((_WIDE, CLASSES), np.float32)
    last[: SIDE * SIDE] = thirds()
    names = ["first", *(f"square{n}" for n in range(_LAYERS)), "last"]
    nodes = [helper.make_node("Flatten", ["pixels"], ["x0"])]
    for number, name in enumerate(names):
        made = "logits" if name == "last" else f"x{number + 1}"
        nodes.append(helper.make_node("MatMul", [f"x{number}", name], [made]))
    squares = (numpy_helper.from_array(np.eye(_WIDE, dtype=np.float32), n) for n in names[1:-1])
    ends = (numpy_helper.from_array(first, "first"), numpy_helper.from_array(last, "last"))
    model = onnx.load(folder / "model.onnx")
    graph = helper.make_graph(
        nodes, "large", model.graph.input, model.graph.output, [*ends, *squares]
    )
    made = helper.make_model(graph, opset_imports=model.opset_import, ir_version=10)
    (folder / "large.onnx").write_bytes(made.SerializeToString())
    return verify(folder, folder / "large.onnx")


def cases() -> Iterator[Case]:
    """A folder of 100,000 images; a model of 1 GB."""
    yield Case("large: a folder of 100,000 images", _many_images, (0,), slow=True)
    yield Case("large: a model of 1 GB", _large_model, (0,), slow=True)
