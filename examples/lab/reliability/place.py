# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""A tiny user's folder: images, a checkpoint, an ONNX file and a patch that all go together."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

__all__ = ["ARCHITECTURE", "BODY", "CLASSES", "SIDE", "fill", "network", "weights", "write_onnx"]

CLASSES = 3
SIDE = 6
ARCHITECTURE = "examples.lab.reliability.place:network"
BODY = "flat = Flatten(pixels) logits = MatMul(flat, W)"
_PER_CLASS = 60


class _Third(nn.Module):
    """The class is the third of the image that is brightest."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 1)
        self.head = nn.Linear(4 * SIDE * SIDE, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(torch.relu(self.conv(x)).flatten(1))
        return logits


def network() -> nn.Module:
    """The architecture of the checkpoint; it says itself what it takes."""
    made = _Third()
    said = {"input_size": (1, SIDE, SIDE), "mean": (0.0,), "std": (1.0,)}
    object.__setattr__(made, "default_cfg", said)
    return made


def thirds() -> np.ndarray:
    """Pixels (36,) to classes (3,): each column of the image belongs to one."""
    columns = np.repeat(np.arange(CLASSES), SIDE // CLASSES)
    return np.eye(CLASSES, dtype=np.float32)[np.tile(columns, SIDE)]


def weights() -> dict[str, torch.Tensor]:
    """Such that the network tells the classes apart."""
    head = torch.from_numpy(thirds()).T
    return {
        "conv.weight": torch.ones(4, 1, 1, 1),
        "conv.bias": torch.zeros(4),
        "head.weight": head.repeat(1, 4).contiguous(),
        "head.bias": torch.zeros(CLASSES),
    }


def write_onnx(
    path: Path, body: str = BODY, more: str = "", shape: str = f"N,1,{SIDE},{SIDE}"
) -> Path:
    """A classifier in ONNX's own text form: ``W`` are the weights, ``more`` other initialisers."""
    import onnx

    cells = ",".join(f"{value:g}" for value in thirds().ravel())
    held = f"float[{SIDE * SIDE},{CLASSES}] W = {{{cells}}}" + (f", {more}" if more else "")
    text = f"""
        <ir_version: 10, opset_import: ["" : 20]>
        toy (float[{shape}] pixels) => (float[N,{CLASSES}] logits) <{held}> {{ {body} }}"""
    onnx.save(onnx.parser.parse_model(text), path)
    return path


def fill(folder: Path) -> Path:
    """Writes all of it; returns ``folder``."""
    generator = np.random.default_rng(0)
    for label in range(CLASSES):
        home = folder / "clean" / f"class{label}"
        home.mkdir(parents=True)
        for number in range(_PER_CLASS):
            pixels = generator.integers(0, 60, (SIDE, SIDE), dtype=np.uint8)
            pixels[:, 2 * label : 2 * label + 2] += 120
            Image.fromarray(pixels).save(home / f"{number:03d}.png")
    save_file(weights(), folder / "model.safetensors")
    write_onnx(folder / "model.onnx")
    Image.new("L", (1, 1), 255).save(folder / "patch.png")
    return folder
