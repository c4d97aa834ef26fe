# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""A classifier written as one self-contained ONNX file, checked against torch."""

import copy
import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lmr_guard.classifier import Classifier
from lmr_guard.errors import StageError
from lmr_guard.files import Artifact, atomic
from lmr_guard.onnxfile.inspect import branches, listed
from lmr_guard.onnxfile.predictor import OnnxPredictor
from lmr_guard.onnxfile.trace import Graph

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["Exporter", "export_onnx", "require_parity", "write_module"]

_TOLERANCE = 1e-4
_TIMES = 2.0  # as far from float64 as torch is in float32, at most over all that is compared


class Exporter:
    """Writes classifiers of one structure as ONNX files; all but the first are not traced anew.

    Every file is checked against its own classifier. Where one that was filled into another's graph
    does not hold, or has other shapes, it is traced by itself.
    """

    def __init__(self) -> None:
        self._graph: Graph | None = None
        self._output = ""

    def write(
        self,
        classifier: Classifier,
        path: Path,
        *,
        shown: Tensor | None = None,
        tolerance: float = _TOLERANCE,
    ) -> Artifact:
        """Writes a classifier as one self-contained ONNX file and checks it against torch.

        The file takes ``pixels`` (batch, C, H, W) in [0, 1] with any batch, normalises them itself
        and yields what the received network does (batch, K): ``logits``, or ``probabilities`` where
        it ends in a softmax or in sigmoids. Nothing of the exporting machine is left in it: the
        exporter's stack traces are removed, which also makes the bytes reproducible.

        Args:
            classifier: In eval mode; left as it is.
            path: Written only when everything below holds.
            shown: Clean pixels (N, C, H, W) to compare on too, each alone and all together.
            tolerance: Largest difference between torch and ONNX Runtime (CPU), as a share of the
                largest output, on uniform random pixels in batches of 1, 2 and 5. ONNX Runtime may
                be further from float64, up to twice as far as torch is at most on what is
                compared, as long as no decision moves.

        Raises:
            StageError: Train mode, a network that cannot be exported or that answers the same
                images in two ways, a graph that decides by what the image shows, outputs that
                differ or are not finite, or a full disk.
        """
        if any(module.training for module in classifier.modules()):
            raise StageError(
                "expected a classifier in eval mode, got train mode; call .eval() first"
            )
        model = classifier.as_received().cpu()
        likely = classifier.ending.kind in {"probabilities", "sigmoids"}
        output = "probabilities" if likely else "logits"
        if self._graph is not None and self._output == output and self._graph.fits(model):
            # A network may have been traced by what its weights were: then it is traced anew.
            with suppress(StageError):
                return _checked(model, self._graph, path, shown, tolerance)
        self._graph, self._output = _trace(model, output), output
        return _checked(model, self._graph, path, shown, tolerance)


def export_onnx(
    classifier: Classifier,
    path: Path,
    *,
    shown: Tensor | None = None,
    tolerance: float = _TOLERANCE,
) -> Artifact:
    """Writes a classifier by itself; see ``Exporter.write``.

    Args:
        classifier: In eval mode; left as it is.
        path: Written only when everything holds.
        shown: Clean pixels (N, C, H, W) to compare on too.
        tolerance: Largest difference between torch and ONNX Runtime (CPU).

    Raises:
        StageError: See ``Exporter.write``.
    """
    return Exporter().write(classifier, path, shown=shown, tolerance=tolerance)


def require_parity(
    classifier: Classifier, path: Path, shown: Tensor, tolerance: float = _TOLERANCE
) -> None:
    """Refuses a network that no longer computes what its file does.

    The user's own code may answer by how often it was called, or by the time; what a search finds
    on it says nothing about the file then.

    Args:
        classifier: In eval mode; left as it is.
        path: Of the file that ``export_onnx`` wrote.
        shown: See ``Exporter.write``.
        tolerance: See ``Exporter.write``.

    Raises:
        StageError: Outputs differ.
    """
    _compared(classifier.as_received().cpu(), path, shown, tolerance)


def _checked(
    model: Classifier, graph: Graph, path: Path, shown: Tensor | None, tolerance: float
) -> Artifact:
    proto = graph.filled(model)
    _require_one_way(proto)
    _require_steady(model, model.example() if shown is None else shown)
    _write(proto, path)
    try:
        predictor = _compared(model, path, shown, tolerance)
    except BaseException:
        path.unlink()
        raise
    return Artifact(path, predictor.sha256, predictor.bytes)


def _compared(
    model: Classifier, path: Path, shown: Tensor | None, tolerance: float
) -> OnnxPredictor:
    predictor = OnnxPredictor(path)
    generator = torch.Generator().manual_seed(0)
    # Noise too: it shows what a network does with pixels that no clean image has.
    batches = [torch.rand(model.example(n).shape, generator=generator) for n in (1, 2, 5)]
    if shown is not None:
        batches += [*shown.split(1), shown]
    _require_alike(model, predictor, batches, tolerance)
    return predictor


def write_module(model: nn.Module, example: Tensor, path: Path, output: str) -> None:
    """Writes a module as one ONNX file that takes ``pixels`` in any batch; nothing is compared.

    Args:
        model: On the CPU.
        example: What it takes, a batch of 2: one of 1 would be frozen in by older exporters.
        path: Written complete or not at all.
        output: What the file calls its answer.

    Raises:
        StageError: See ``Exporter.write``.
    """
    proto = Graph(model, example, output).filled(model)
    _require_one_way(proto)
    _write(proto, path)


def _require_one_way(proto: "ModelProto") -> None:
    found = branches(proto)
    if found:
        raise StageError(
            f"expected a graph that runs the same for every image, got {listed(found)}; "
            "a branch on the input, or chance, can hide a backdoor from every measurement"
        )


def _write(proto: "ModelProto", path: Path) -> None:
    with atomic(path) as file:
        file.write(proto.SerializeToString(deterministic=True))


def _trace(model: Classifier, output: str) -> Graph:
    return Graph(model, model.example(2), output)


@torch.no_grad()
def _require_steady(model: Classifier, pixels: Tensor) -> None:
    """Refuses a network that is random at inference, or that answers by how often it was asked."""
    with torch.random.fork_rng(devices=[]):
        first, second = model(pixels), model(pixels)
    apart = (first - second).abs().max() > _TOLERANCE * first.abs().max()
    if bool(apart):
        raise StageError(
            "expected a network that answers the same images alike, got other outputs when asked "
            "again; it draws at random, or counts, at inference: switch that off"
        )


@torch.no_grad()
def _require_alike(
    model: Classifier, predictor: OnnxPredictor, batches: Sequence[Tensor], tolerance: float
) -> None:
    own = None
    for pixels in batches:
        expected, got = model(pixels), predictor(pixels)
        difference, scale = float((got - expected).abs().max()), _scale(expected)
        # Written so that a NaN on either side does not pass.
        if difference <= tolerance * scale:
            continue
        own = _rounding_error(model, batches) if own is None else own
        theirs = float((_in_float64(model, pixels) - got).abs().max())
        moved = int((got.argmax(dim=1) != expected.argmax(dim=1)).sum())
        if theirs <= _TIMES * own * scale and math.isfinite(own) and not moved:
            continue
        raise StageError(
            f"expected ONNX Runtime within {tolerance:g} of torch at batch {len(pixels)}, got "
            f"a difference of {difference:.3g} at outputs up to {scale:.3g}, where torch itself is "
            f"{own * scale:.3g} from float64; {moved} of {len(pixels)} decisions move"
        )


def _rounding_error(model: Classifier, batches: Sequence[Tensor]) -> float:
    """How far torch in float32 is from float64 at most, as a share of the largest output.

    Over all batches, for a few outputs alone may be close by luck.
    """
    shares = []
    for pixels in batches:
        expected = model(pixels)
        shares.append((expected - _in_float64(model, pixels)).abs().max() / _scale(expected))
    return float(torch.stack(shares).max())


def _in_float64(model: Classifier, pixels: Tensor) -> Tensor:
    exact: Tensor = copy.deepcopy(model).double()(pixels.double())
    return exact


def _scale(outputs: Tensor) -> float:
    return max(float(outputs.abs().max()), 1e-6)
