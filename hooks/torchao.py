# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""torchao's PT2E: repair before the capture, and the converted module as a file that is audited.

Nothing of torchao is patched. What is captured has no head any more that could be repaired, so the
repair comes before ``torch.export``; what ``convert_pt2e`` gives is audited as the file that it
becomes::

    repaired, receipt = pre_quantize(network, clean=clean, preprocessing=shape)
    batch = {0: torch.export.Dim("batch")}
    captured = torch.export.export(repaired, (calibration,), dynamic_shapes=(batch,)).module()
    prepared = prepare_pt2e(captured, quantizer)
    prepared(calibration)
    export_converted(convert_pt2e(prepared), Path("int8.onnx"), clean=clean, preprocessing=shape)
    report = lmr_guard.verify("int8.onnx", "images/", triggers)

torchao itself is not imported here: a converted module is a module of torch.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from lmr_guard.classifier import Preprocessing
from lmr_guard.contracts import Clean, Rate
from lmr_guard.errors import ConfigError, StageError, described
from lmr_guard.onnxfile.export import write_module
from lmr_guard.onnxfile.predictor import OnnxPredictor

__all__ = ["export_converted"]

_AGREEMENT = 0.98


def export_converted(
    converted: nn.Module, path: Path | str, *, clean: Clean, preprocessing: Preprocessing
) -> Path:
    """Writes a converted PT2E module as an ONNX file in QDQ form that takes pixels in [0, 1].

    The file is no verdict: audit it with ``lmr_guard.verify``, and ship it, not the module.

    Args:
        converted: What ``convert_pt2e`` gave, on the CPU; it takes normalised images in any batch.
        path: Written only where file and module agree.
        clean: The two are compared on ``select``: they round alike but for the last bit, and must
            put 98 % of the images into the same class.
        preprocessing: Size and normalisation of what the network was captured with.

    Returns:
        The path.

    Raises:
        ConfigError: No captured module, or images of another size.
        StageError: It cannot be exported, as where its batch was frozen, or the two disagree.
    """
    if not isinstance(converted, torch.fx.GraphModule):
        raise ConfigError(
            f"expected a module that convert_pt2e gave, got {described(converted)}; an eager one "
            "goes to lmr_guard.hooks.verify_model"
        )
    p, got = preprocessing, tuple(clean.select.images.shape[1:])
    if got != (p.channels, p.height, p.width):
        raise ConfigError(
            f"expected clean images of {(p.channels, p.height, p.width)}, as the preprocessing "
            f"says, got {got}"
        )
    model, place = _TakesPixels(converted, preprocessing), Path(path)
    try:
        write_module(model, torch.zeros(2, *got), place, "logits")
    except StageError as error:
        raise StageError(
            f"{error}; a captured batch may be frozen: capture with "
            'dynamic_shapes=({0: torch.export.Dim("batch")},)'
        ) from error
    try:
        _require_agreement(model, place, clean.select.pixels)
    except BaseException:
        place.unlink()
        raise
    return place


class _TakesPixels(nn.Module):
    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(preprocessing.std).view(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        found: Tensor = self.network((pixels - self.mean) / self.std)
        return found


def _require_agreement(model: nn.Module, path: Path, pixels: Tensor) -> None:
    predictor, same = OnnxPredictor(path), 0
    with torch.no_grad():
        for batch in pixels.split(64):
            same += int((predictor(batch).argmax(1) == model(batch).argmax(1)).sum())
    agreed = Rate(same, len(pixels))
    if agreed.value < _AGREEMENT:
        raise StageError(
            f"expected file and module to put {_AGREEMENT:.0%} of the clean images into the same "
            f"class, got {agreed}; the quantizer does something that ONNX does not say, such as "
            "reduce_range"
        )
