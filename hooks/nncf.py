# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""NNCF: what it quantises is repaired first; its accuracy control can watch your triggers.

Nothing of NNCF is patched::

    repaired, receipt = pre_quantize(network, clean=clean, preprocessing=shape)
    model = onnx.load(export_onnx(Classifier(repaired, shape, K), Path("float32.onnx")).path)
    audit = Audit(clean, triggers)
    int8 = nncf.quantize_with_accuracy_control(
        model, calibration, audit.dataset(), audit, max_drop=0.01
    )
    onnx.save(int8, "int8.onnx")
    report = lmr_guard.verify("int8.onnx", "images/", triggers)

``nncf.quantize`` needs the first line alone. The control chooses by these triggers, so that a pass
about the same triggers says less afterwards: verify on images that it has not seen, with a trigger
that you kept back where you have one.
"""

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lmr_guard import extras
from lmr_guard.classifier import Preprocessing
from lmr_guard.contracts import Clean, Trigger
from lmr_guard.errors import ConfigError, described
from lmr_guard.onnxfile.predictor import OnnxPredictor, Session

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["Audit"]


class Audit:
    """NNCF's validation function: the share of images that a model puts into their true class.

    Counted are all images of ``clean.select``, as they are and with each trigger. The control
    puts layers back into float until this share is within ``max_drop`` of the float model's. With
    n triggers a backdoor that wakes lowers it by up to n / (n + 1), a lost point of clean accuracy
    alone by 1 / (n + 1) of a point: leave ``max_drop`` small.

    Args:
        clean: ``select`` is chosen on, as everywhere; ``report`` is kept for the verdict.
        triggers: What the model must resist; none leaves clean accuracy.
        preprocessing: Of a model that takes normalised images; None where it takes pixels.

    Raises:
        ConfigError: No clean images in three parts.
    """

    def __init__(
        self,
        clean: Clean,
        triggers: Sequence[Trigger] = (),
        *,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        if not isinstance(clean, Clean):
            raise ConfigError(
                f"expected clean images as lmr_guard.contracts.Clean, got {described(clean)}; "
                "lmr_guard.received has read_folder and split, which make it"
            )
        batches = [*clean.select.batches()]
        for trigger in triggers:
            batches += trigger.batches(clean.select)
        self._pixels = torch.cat([pixels for pixels, _ in batches])
        self._labels = torch.cat([labels for _, labels in batches])
        self._session = Session(preprocessing=preprocessing)

    def __len__(self) -> int:
        """Number of images that are counted."""
        return len(self._labels)

    def dataset(self) -> Any:  # noqa: ANN401 - nncf.Dataset
        """NNCF's validation dataset: the numbers of the images.

        Raises:
            ConfigError: nncf is not installed.
        """
        return extras.load("nncf", "nncf").Dataset(range(len(self)))

    def __call__(self, model: "ModelProto", numbers: Iterable[int]) -> tuple[float, list[float]]:
        """The share, and 1 or 0 for each image.

        Args:
            model: Of NNCF's ONNX backend.
            numbers: Of the images, as ``dataset`` gives them.

        Raises:
            ConfigError: A model of another backend.
            InputError: No classifier of these images; see ``OnnxPredictor``.
        """
        import onnx

        if not isinstance(model, onnx.ModelProto):
            raise ConfigError(
                f"expected a model of NNCF's ONNX backend, got {described(model)}; export to ONNX "
                "first"
            )
        chosen = torch.tensor([*numbers], dtype=torch.int64)
        with tempfile.TemporaryDirectory(prefix="lmr-guard-") as folder:
            file = Path(folder) / "candidate.onnx"
            file.write_bytes(model.SerializeToString())
            predictor = OnnxPredictor(file, self._session)
            pixels = self._pixels[chosen].split(256)
            found = torch.cat([predictor(batch).argmax(1) for batch in pixels])
        right = (found == self._labels[chosen]).float()
        return float(right.mean()), [float(each) for each in right]
