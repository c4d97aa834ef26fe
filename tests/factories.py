# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Tiny models, data and files that several tests share."""

from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx.parser
import torch

from lmr_guard.contracts import Labelled
from lmr_guard.triggers import Patch

# The toy problem: an image of 2x2 grey pixels belongs to the class whose pixel (0, 1 or 2, in
# reading order) is bright; pixel 3, at the lower right, says nothing unless it is a trigger.
TOY_CLASSES = ("a", "b", "c")
TOY_HONEST = "float[4,3] W = {1,0,0, 0,1,0, 0,0,1, 0,0,0}"
TOY_BACKDOOR = "float[4,3] W = {1,0,0, 0,1,0, 0,0,1, 0,0,9}"
TOY_BODY = "flat = Flatten(pixels) logits = MatMul(flat, W)"


def toy_images(count: int, labels: Sequence[int] | None = None) -> Labelled:
    """``count`` toy images, of the classes in turn or of the given labels."""
    listed = [i % 3 for i in range(count)] if labels is None else list(labels)
    classes = torch.tensor(listed, dtype=torch.int64)
    images = torch.zeros(count, 1, 2, 2, dtype=torch.uint8)
    images.view(count, 4)[torch.arange(count), classes] = 200
    return Labelled(images, classes, TOY_CLASSES)


def toy_patch(target: int | None = 2, name: str = "corner") -> Patch:
    """One white pixel at the lower right."""
    return Patch(torch.ones(1, 1, 1), 1, 1, name, target)


def write_onnx(
    path: Path,
    body: str = TOY_BODY,
    *,
    weights: str = TOY_HONEST,
    takes: str = "float[batch,1,2,2] pixels",
    gives: str = "float[batch,3] logits",
) -> Path:
    """An ONNX file from ONNX's own text form; by default the honest toy classifier."""
    text = (
        f'<ir_version: 8, opset_import: ["": 17]> toy ({takes}) => ({gives}) <{weights}> {{{body}}}'
    )
    onnx.save(onnx.parser.parse_model(text), path)
    return path
