# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""A classifier written as one self-contained ONNX file, checked against torch."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lmr_guard.classifier import Classifier
from lmr_guard.errors import StageError, first_line
from lmr_guard.files import Artifact, atomic
from lmr_guard.onnxfile.inspect import branches, listed
from lmr_guard.onnxfile.predictor import OnnxPredictor

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["export_onnx", "require_parity", "write_module"]

_TOLERANCE = 1e-4


def export_onnx(
    classifier: Classifier,
    path: Path,
    *,
    shown: Tensor | None = None,
    tolerance: float = _TOLERANCE,
) -> Artifact:
    """Writes a classifier as one self-contained ONNX file and checks it against torch.

    The file takes ``pixels`` (batch, C, H, W) in [0, 1] with any batch, normalises them itself
    and yields what the received network does (batch, K): ``logits``, or ``probabilities`` where it
    ends in a softmax or in sigmoids. Nothing of the exporting machine is left in it: the
    exporter's stack traces are removed, which also makes the bytes reproducible.

    Args:
        classifier: In eval mode; left as it is.
        path: Written only when everything below holds.
        shown: Pixels (N, C, H, W) to compare on too, each alone and all together.
        tolerance: Largest difference between torch and ONNX Runtime (CPU), as a share of the
            largest output, on uniform random pixels in batches of 1, 2 and 5.

    Raises:
        StageError: Train mode, a network that cannot be exported, a graph that decides by what
            the image shows, outputs that differ or are not finite, or a full disk.
    """
    if any(module.training for module in classifier.modules()):
        raise StageError("expected a classifier in eval mode, got train mode; call .eval() first")
    model = classifier.as_received().cpu()
    likely = classifier.ending.kind in {"probabilities", "sigmoids"}
    _write(_trace(model, "probabilities" if likely else "logits"), path)
    try:
        predictor = _compared(model, path, shown, tolerance)
    except BaseException:
        path.unlink()
        raise
    return Artifact(path, predictor.sha256, predictor.bytes)


def require_parity(
    classifier: Classifier, path: Path, shown: Tensor, tolerance: float = _TOLERANCE
) -> None:
    """Refuses a network that no longer computes what its file does.

    The user's own code may answer by how often it was called, or by the time; what a search finds
    on it says nothing about the file then.

    Args:
        classifier: In eval mode; left as it is.
        path: Of the file that ``export_onnx`` wrote.
        shown: See ``export_onnx``.
        tolerance: See ``export_onnx``.

    Raises:
        StageError: Outputs differ.
    """
    _compared(classifier.as_received().cpu(), path, shown, tolerance)


def _compared(
    model: Classifier, path: Path, shown: Tensor | None, tolerance: float
) -> OnnxPredictor:
    predictor = OnnxPredictor(path)
    generator = torch.Generator().manual_seed(0)
    for batch in (1, 2, 5):
        pixels = torch.rand(model.example(batch).shape, generator=generator)
        _require_alike(model, predictor, pixels, tolerance)
    if shown is not None:
        for pixels in (*shown.split(1), shown):
            _require_alike(model, predictor, pixels, tolerance)
    return predictor


def write_module(model: nn.Module, example: Tensor, path: Path, output: str) -> None:
    """Writes a module as one ONNX file that takes ``pixels`` in any batch; nothing is compared.

    Args:
        model: On the CPU.
        example: What it takes, a batch of 2: one of 1 would be frozen in by older exporters.
        path: Written complete or not at all.
        output: What the file calls its answer.

    Raises:
        StageError: See ``export_onnx``.
    """
    _write(_exported(model, example, output), path)


def _write(proto: "ModelProto", path: Path) -> None:
    found = branches(proto)
    if found:
        raise StageError(
            f"expected a graph that runs the same for every image, got {listed(found)}; "
            "a branch on the input, or chance, can hide a backdoor from every measurement"
        )
    with atomic(path) as file:
        file.write(proto.SerializeToString(deterministic=True))


def _trace(model: Classifier, output: str) -> "ModelProto":
    return _exported(model, model.example(2), output)


def _exported(model: nn.Module, example: Tensor, output: str) -> "ModelProto":
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model,
                (example,),
                input_names=["pixels"],
                output_names=[output],
                dynamic_shapes=({0: "batch"},),
                external_data=False,
                verbose=False,
            )
    except RuntimeError as error:
        raise StageError(
            f"expected a network that exports to ONNX, got {first_line(error)}"
        ) from error
    if program is None:
        raise StageError("expected an ONNX program from the exporter, got none")
    proto: ModelProto = program.model_proto
    _forget_origin(proto)
    return proto


def _forget_origin(proto: "ModelProto") -> None:
    graph = proto.graph
    for described in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        del described.metadata_props[:]
    for tensor in graph.initializer:
        del tensor.metadata_props[:]
    del proto.metadata_props[:]


def _require_alike(
    model: Classifier, predictor: OnnxPredictor, pixels: Tensor, tolerance: float
) -> None:
    with torch.no_grad():
        expected = model(pixels)
    difference = float((predictor(pixels) - expected).abs().max())
    scale = max(float(expected.abs().max()), 1e-6)
    # Written so that a NaN on either side does not pass.
    if not difference <= tolerance * scale:
        raise StageError(
            f"expected ONNX Runtime within {tolerance:g} of torch at batch {len(pixels)}, got "
            f"a difference of {difference:.3g} at outputs up to {scale:.3g}"
        )
