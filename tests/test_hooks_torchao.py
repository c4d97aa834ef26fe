# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""torchao's real PT2E flow: repair before the capture, audit of the file that comes out."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from factories import row_classifier, row_images
from torch import Tensor, nn

import lmr_guard
from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.contracts import Clean
from lmr_guard.errors import ConfigError, StageError
from lmr_guard.evidence import Patch
from lmr_guard.hooks import pre_quantize
from lmr_guard.hooks.torchao import export_converted
from lmr_guard.onnxfile.predictor import OnnxPredictor
from lmr_guard.release.policy import Policy
from lmr_guard.settings import Settings

# Of torch and torchao about their own code.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

TOY = Preprocessing(channels=1, height=4, width=4, mean=(0.3,), std=(0.3,))
CLEAN = Clean(row_images(60, 1), row_images(45, 2), row_images(30, 3))
PATCH = Patch(torch.ones(1, 1, 1), x=3, y=3, target=2)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return row_classifier().network


def converted(network: nn.Module, *, batch: bool = True) -> Any:  # noqa: ANN401 - a GraphModule
    """What torchao's documentation shows."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    images = (CLEAN.repair.pixels - TOY.mean[0]) / TOY.std[0]
    free = ({0: torch.export.Dim("batch")},) if batch else None
    captured = torch.export.export(network.eval(), (images,), dynamic_shapes=free).module()
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(captured, quantizer)
    prepared(images)
    return convert_pt2e(prepared)


def test_what_torchao_made_is_audited_as_the_file_it_becomes(
    network: nn.Module, tmp_path: Path
) -> None:
    settings = replace(pre_quantize.settings, suspect=1)
    repaired, receipt = pre_quantize(
        network, clean=CLEAN, preprocessing=TOY, settings=shorter(settings)
    )
    assert receipt.weights_after != receipt.weights_before
    path = export_converted(
        converted(repaired), tmp_path / "int8.onnx", clean=CLEAN, preprocessing=TOY
    )
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    held = (CLEAN.report.images, CLEAN.report.labels)
    report = lmr_guard.verify(path, held, [PATCH], policy=Policy(min_trials=20, max_asr=0.3))
    assert report.verdict.word == "pass", report.variants[0].verdict.reasons()
    assert [path.name for path in tmp_path.iterdir()] == ["int8.onnx"]


def shorter(settings: Settings) -> Settings:
    return replace(
        settings, repel=replace(settings.repel, phase1_epochs=2, phase1_minimum=1, phase2_epochs=2)
    )


def test_file_and_module_answer_alike(network: nn.Module, tmp_path: Path) -> None:
    module = converted(network)
    path = export_converted(module, tmp_path / "int8.onnx", clean=CLEAN, preprocessing=TOY)
    pixels = CLEAN.report.pixels
    with torch.no_grad():
        expected = module((pixels - TOY.mean[0]) / TOY.std[0])
    for size in (1, 7, 30):
        answers = torch.cat([OnnxPredictor(path)(batch) for batch in pixels.split(size)])
        assert torch.equal(answers.argmax(1), expected.argmax(1))


class Reshaping(nn.Module):
    """Its capture holds the size of the batch, unless that is told to be free."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.network(images.reshape(images.shape[0], 1, 4, 4))
        return found.reshape(images.shape[0], 3)


def test_a_free_batch_may_be_reshaped(network: nn.Module, tmp_path: Path) -> None:
    module = converted(Reshaping(network))
    path = export_converted(module, tmp_path / "int8.onnx", clean=CLEAN, preprocessing=TOY)
    assert OnnxPredictor(path)(CLEAN.report.pixels).shape == (30, 3)


def test_a_frozen_batch_is_refused_and_nothing_written(network: nn.Module, tmp_path: Path) -> None:
    module = converted(Reshaping(network), batch=False)
    with pytest.raises(StageError, match="a captured batch may be frozen: capture with"):
        export_converted(module, tmp_path / "int8.onnx", clean=CLEAN, preprocessing=TOY)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_answers_otherwise_is_removed(network: nn.Module, tmp_path: Path) -> None:
    """A module that answers by what it was last asked is none that a file can stand for."""
    module = converted(network)
    answers: Iterator[int] = iter(range(10**6))
    module.register_forward_hook(lambda _module, _inputs, found: found.roll(next(answers), 1))
    with pytest.raises(StageError, match="98% of the clean images into the same class, got"):
        export_converted(module, tmp_path / "int8.onnx", clean=CLEAN, preprocessing=TOY)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("eager", "shape", "told"),
    [
        (True, TOY, "a module that convert_pt2e gave, got Sequential"),
        (False, replace(TOY, width=5), r"clean images of \(1, 4, 5\), as the preprocessing says"),
    ],
)
def test_what_does_not_fit_is_refused(
    eager: bool, shape: Preprocessing, told: str, network: nn.Module, tmp_path: Path
) -> None:
    module = network if eager else converted(network)
    with pytest.raises(ConfigError, match=told):
        export_converted(module, tmp_path / "int8.onnx", clean=CLEAN, preprocessing=shape)


def test_a_classifier_is_told_where_it_goes(network: nn.Module, tmp_path: Path) -> None:
    eager = Classifier(network, TOY, 3)
    with pytest.raises(ConfigError, match=r"an eager one goes to lmr_guard.hooks.verify_model"):
        export_converted(eager, tmp_path / "int8.onnx", clean=CLEAN, preprocessing=TOY)
