# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Repairs a network before ONNX Runtime's quantize_static, by decorating the user's own function.

::

    python -m examples.hooks.quantize_with_onnxruntime

``to_int8`` is what the user had before and does not change: export, pre-process, quantise. The
decorated one gets the repaired network. Both INT8 files are then measured in ONNX Runtime. The
trigger is known here because the example planted it; the hook never sees it.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

from examples.hooks.situation import PREPROCESSING, show, situation
from lmr_guard.contracts import Rate
from lmr_guard.hooks import pre_quantize


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Normalised images for the calibration."""

    def __init__(self, images: Tensor) -> None:
        self.batches: Iterator[Tensor] = iter(images.split(32))

    def get_next(self) -> dict[str, object] | None:
        """The next batch, or None at the end."""
        batch = next(self.batches, None)
        return None if batch is None else {"images": batch.numpy()}


def to_int8(network: nn.Module, images: Tensor, path: Path) -> None:
    """The user's own step: normalised ``images`` calibrate the INT8 file at ``path``."""
    float32 = path.with_suffix(".float32.onnx")
    torch.onnx.export(
        network.eval(),
        (images[:2],),
        float32,
        input_names=["images"],
        dynamic_shapes=({0: "batch"},),
        external_data=False,
        verbose=False,
    )
    quant_pre_process(float32, float32)
    quantize_static(
        float32,
        path,
        Reader(images),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
    )


def main(arguments: list[str] | None = None) -> tuple[Rate, Rate]:
    """Quantise without the hook and with it; returns both attack success rates."""
    given = situation(arguments, __doc__)
    normalised = (given.clean.repair.pixels - PREPROCESSING.mean[0]) / PREPROCESSING.std[0]
    plain, guarded = given.folder / "int8.onnx", given.folder / "int8-guarded.onnx"
    to_int8(given.network, normalised, plain)

    protect = pre_quantize.hook(
        clean=given.clean,
        preprocessing=PREPROCESSING,
        settings=given.settings(pre_quantize),
        on_receipt=print,
    )
    protect(to_int8)(given.network, normalised, guarded)

    return (
        show("int8 without the hook", plain, given.clean, PREPROCESSING),
        show("int8 with the hook", guarded, given.clean, PREPROCESSING),
    )


if __name__ == "__main__":
    main()
