# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""An ONNX file read back to a network that can be trained and cut, and held against the file.

``onnxfile.plain`` brings its graph into a plain form, ``traced`` that form into torch.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from lmr_guard import extras
from lmr_guard.classifier import Classifier, Preprocessing, find_head
from lmr_guard.contracts import Labelled
from lmr_guard.errors import ExportRefused, InputError
from lmr_guard.measure import predict
from lmr_guard.onnxfile.editing import unconverted
from lmr_guard.onnxfile.fileformat import FileFormat, expected_shape
from lmr_guard.onnxfile.inspect import listed, read_model
from lmr_guard.onnxfile.plain import plain
from lmr_guard.onnxfile.predictor import OnnxPredictor, try_apart
from lmr_guard.received import load
from lmr_guard.received.traced import network_of
from lmr_guard.untrusted import Allowance, require_regular, shown

__all__ = ["OnnxOrigin", "is_onnx", "read"]

_TOLERANCE = 1e-3
_HALF_TOLERANCE = 2e-2
_ALLOWED = Allowance(copies=24, spare=2 << 30, speed=2e6, seconds=120.0)


def is_onnx(path: Path) -> bool:
    """Whether a file is called like an ONNX file; the format has no mark inside."""
    return path.suffix.lower() == ".onnx"


@dataclass(frozen=True, slots=True, eq=False)
class OnnxOrigin:
    """The file that a network was read back from.

    Args:
        path: The file.
        sha256: Its digest when it was read.
        external: Digest of each file that holds data of it.
        shape: Size and normalisation of the images that it takes.
        said: What the user said about it.
        half: Whether it computes in half precision.
        classes: What a ZipMap at its end calls the classes, in the order of the network's outputs.
    """

    path: Path
    sha256: str
    external: dict[str, str]
    shape: Preprocessing
    said: FileFormat
    half: bool
    classes: tuple[str, ...] | None = None

    def to_json(self) -> dict[str, object]:
        """Plain data for a record."""
        p = self.shape
        return {
            "architecture": "onnx",
            "input_size": [p.channels, p.height, p.width],
            "mean": list(p.mean),
            "std": list(p.std),
            "layout": self.said.layout,
            "output": self.said.output,
            "external": dict(self.external),
        }

    def compared(self, model: Classifier, images: Labelled) -> str:
        """What a comparison with the file came to, in a sentence.

        Args:
            model: Read back from it.
            images: Clean images that both are shown.

        Raises:
            ConfigError: The two differ by more than rounding, or decide otherwise on an image.
            InputError: The file is another one by now, or fails on an image.
        """
        session = self.said.session()
        if self.said.mean is not None:
            session = type(session)(
                layout=session.layout, output=session.output, preprocessing=self.shape
            )
        file = OnnxPredictor(self.path, session)
        if file.sha256 != self.sha256:
            raise InputError(f"expected {shown(self.path)} as it was read, got another file")
        expected, got = predict(file, images), predict(model, images)
        scale = max(float(expected.abs().max()), 1e-6)
        difference = float((expected - got).abs().max()) / scale
        moved = int((expected.argmax(dim=1) != got.argmax(dim=1)).sum())
        tolerance = _HALF_TOLERANCE if self.half else _TOLERANCE
        # Written so that a NaN on either side does not pass.
        if not difference <= tolerance or (moved and not self.half):
            raise unconverted(
                f"a network that differs from the file by {difference:.2g} of the largest output, "
                f"in {moved} of {len(images)} decisions"
            )
        return (
            f"The model was read back from an ONNX file; on {len(images)} clean images it differs "
            f"from the file in ONNX Runtime by at most {difference:.1g} of the largest output, and "
            f"in {moved} decisions."
        )


def read(path: Path, said: FileFormat) -> tuple[Classifier, OnnxOrigin]:
    """The network of an ONNX file as a classifier, not yet compared with the file.

    The file is opened and converted in a process of its own first, under limits. Uses no
    randomness of the caller.

    Args:
        path: Whoever made it.
        said: What it does not say itself; mean and std as for ``verify``.

    Raises:
        ConfigError: It cannot be converted, or onnx2torch is missing.
        ExportRefused: Its graph holds what no exporter writes for a feed-forward classifier.
        InputError: No readable ONNX file, or one that takes too much to read.
    """
    extras.load("onnx2torch", "onnx")
    try_apart(path, said.session())
    count = require_regular(path, "an ONNX model")
    _ALLOWED.apart(count, _tried, path, said, what=f"an ONNX model like {shown(path)}")
    return _read(path, said)


def _tried(path: Path, said: FileFormat) -> dict[str, str]:
    _read(path, said)
    return {}


def _read(path: Path, said: FileFormat) -> tuple[Classifier, OnnxOrigin]:
    from onnx import TensorProto

    predictor = OnnxPredictor(path, said.session())
    if predictor.branches:
        raise ExportRefused(
            f"expected a graph that runs the same for every image, got "
            f"{listed(predictor.branches)}; what is not plain arithmetic can hide a backdoor from "
            "every repair",
            incomplete=True,
        )
    shape = expected_shape(predictor, said)
    sha256, external, output = predictor.sha256, predictor.external, predictor.output
    last, classes = predictor.channels_last, predictor.classes
    del predictor  # It holds the whole model.
    model, _, _ = read_model(path)
    half = any(tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer)
    size = (shape.channels, shape.height, shape.width)
    network = network_of(plain(model, size, output=output, channels_last=last))
    origin = OnnxOrigin(path, sha256, external, shape, said, half, classes)
    return _classifier(network, shape), origin


def _classifier(network: nn.Module, shape: Preprocessing) -> Classifier:
    try:
        with torch.random.fork_rng(devices=[]):
            model = load.in_memory(network, shape)
            find_head(model, model.example(), model.num_classes)
    except InputError as error:
        raise unconverted(f"one that comes back wrong ({error})") from error
    return model
