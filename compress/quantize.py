# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Static INT8 of an ONNX file by ONNX Runtime, and its weight rounding in torch."""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lmr_guard.classifier import Classifier
from lmr_guard.compress.recipes import Int8
from lmr_guard.compress.twins import RoundedTwin
from lmr_guard.contracts import Labelled
from lmr_guard.errors import ConfigError, StageError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import GraphProto, ModelProto

__all__ = ["quantize", "require_bits", "rounded"]

_LIKELY = frozenset({"Softmax", "LogSoftmax", "Sigmoid"})
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def quantize(source: Path, destination: Path, calibration: Labelled, recipe: Int8) -> None:
    """Writes the INT8 form of an ONNX classifier: QDQ, symmetric, a weight scale per channel.

    Weights are rounded to scale = absmax / 127 of each output channel, activations by the
    smallest and largest value seen on the calibration images (MinMax), which run on the CPU.
    A softmax or sigmoid at the end stays in float.
    Nothing is cached: ONNX Runtime would take another model's ranges without a word.

    Args:
        source: Float ONNX file with one input, pixels (batch, C, H, W) in [0, 1].
        destination: Written whole or not at all, as one file.
        calibration: Clean ``repair`` images; as many as the recipe says, evenly spaced, because
            stored images are often sorted by class.
        recipe: How many images, and whether weights get 7 bits.

    Raises:
        ConfigError: No calibration images.
        StageError: ONNX Runtime cannot quantise the file, or left a weight in float.
    """
    if not len(calibration):
        raise ConfigError("expected clean images to calibrate int8, got none; give some")
    try:
        with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".int8-") as folder:
            prepared, written = Path(folder) / "prepared.onnx", Path(folder) / "int8.onnx"
            with _silenced_root_logger():
                _prepare(source, prepared)
                _quantize_static(prepared, written, calibration, recipe)
            _require_int8(prepared, written)
            written.replace(destination)
    except StageError:
        raise
    except Exception as error:  # ONNX, protobuf and ONNX Runtime each raise kinds of their own.
        raise StageError(
            f"expected ONNX Runtime to quantise {source.name}, got {error}; "
            "leave int8 out for this architecture, or free disk space"
        ) from error


def require_bits(bits: int) -> None:
    """Refuses a grid of other than 2 to 16 bits.

    Args:
        bits: Of its signed integers.

    Raises:
        ConfigError: Other bits.
    """
    if not 2 <= bits <= 16:
        raise ConfigError(f"expected 2 to 16 bits, got {bits}")


def rounded(classifier: Classifier, bits: int = 8) -> Classifier:
    """A copy whose convolution and linear weights stand where INT8 puts them.

    ``w -> s * round(w / s)`` with ``s = absmax / (2^(bits-1) - 1)`` of each output channel,
    halves to even. Activations stay in float, and so do attention's packed projections. Folding
    a batch norm into its convolution scales a whole channel and moves no weight to another
    integer, so this holds for the folded file as well.

    Args:
        classifier: Left as it is.
        bits: 2 to 16.

    Raises:
        ConfigError: Other bits.
    """
    require_bits(bits)
    model = classifier.clone()
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in RoundedTwin.of(model, bits)(weights, torch.Generator()).items():
            weights[name].copy_(value)
    return model


class _Reader:
    """Feeds calibration images to ONNX Runtime, once."""

    def __init__(self, name: str, images: Labelled) -> None:
        self._feeds = self._read(name, images)

    @staticmethod
    def _read(name: str, images: Labelled) -> Iterator[dict[str, "NDArray[Any]"]]:
        for pixels, _ in images.batches(32):
            yield {name: pixels.numpy()}

    def get_next(self) -> dict[str, "NDArray[Any]"] | None:
        """The next feed, or None at the end."""
        return next(self._feeds, None)


@contextmanager
def _silenced_root_logger() -> Iterator[None]:
    """ONNX Runtime warns through the root logger, which would install a handler on it."""
    root, handler = logging.getLogger(), logging.NullHandler()

    def drop(record: logging.LogRecord) -> bool:
        del record
        return False

    root.addHandler(handler)
    root.addFilter(drop)
    try:
        yield
    finally:
        root.removeFilter(drop)
        root.removeHandler(handler)


def _prepare(source: Path, prepared: Path) -> None:
    from onnxruntime.quantization.shape_inference import quant_pre_process

    try:
        quant_pre_process(source, prepared)
    except Exception:  # noqa: BLE001 - a TypeError, where a reshape follows a ReduceMax
        # ONNX's own shape inference, which runs all the same, knows more operators.
        quant_pre_process(source, prepared, skip_symbolic_shape=True)


def _quantize_static(prepared: Path, written: Path, calibration: Labelled, recipe: Int8) -> None:
    import onnx
    from onnxruntime.quantization import (
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    count = min(len(calibration), recipe.calibration_images)
    images = calibration.subset(torch.arange(count) * len(calibration) // count)
    graph = onnx.load(prepared, load_external_data=False).graph
    quantize_static(
        prepared,
        written,
        _Reader(graph.input[0].name, images),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=recipe.reduce_range,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        calibration_providers=["CPUExecutionProvider"],
        nodes_to_exclude=_likelihoods(graph),
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
    )


def _likelihoods(graph: "GraphProto") -> list[str]:
    """Names of the nodes that turn logits into probabilities at the very end.

    In steps of 1/128 many a class would lead together with another.
    """
    ends = {value.name for value in graph.output}
    return [n.name for n in graph.node if n.op_type in _LIKELY and ends & set(n.output)]


def _require_int8(prepared: Path, written: Path) -> None:
    """Fails closed: every operator that had constant weights must read int8 ones now."""
    import onnx

    before, after = _weights(onnx.load(prepared)), _weights(onnx.load(written))
    floats = sorted(name for name, kind in after if kind != onnx.TensorProto.INT8)
    if floats or len(after) != len(before) or not after:
        raise StageError(
            f"expected {len(before)} int8 weights, got {len(after) - len(floats)} and these in "
            f"float: {floats}; leave int8 out for this architecture"
        )


def _weights(model: "ModelProto") -> list[tuple[str, int]]:
    """Names and data types of the constants that weighted operators read."""
    constants = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    dequantized = {
        node.output[0]: node.input[0]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear"
    }
    inputs = (
        dequantized.get(name, name)
        for node in model.graph.node
        if node.op_type in _WEIGHTED
        for name in node.input[:2]
    )
    return [(name, constants[name]) for name in inputs if name in constants]
