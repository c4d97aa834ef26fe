# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""NNCF's real quantisation and accuracy control, with our audit as its validation."""

from pathlib import Path
from typing import Any

import nncf
import onnx
import pytest
import torch
from factories import row_classifier, row_images
from torch import Tensor, nn

from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Clean
from lmr_guard.errors import ConfigError, InputError
from lmr_guard.evidence import Patch
from lmr_guard.hooks.nncf import Audit
from lmr_guard.onnxfile.export import export_onnx
from lmr_guard.onnxfile.predictor import OnnxPredictor

# Of NNCF and ONNX Runtime about their own code.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

CLEAN = Clean(row_images(60, 1), row_images(45, 2), row_images(30, 3))
WEAK = Patch(torch.ones(1, 1, 1), x=3, y=3, name="weak")
# A bright row 0 over another bright row: most images with it leave their class.
STRONG = Patch(torch.ones(1, 2, 4), x=0, y=0, name="strong")


@pytest.fixture(scope="module")
def network() -> Classifier:
    return row_classifier()


def proto(model: nn.Module, path: Path) -> onnx.ModelProto:
    assert isinstance(model, Classifier)
    return onnx.load(export_onnx(model, path / "float32.onnx").path)


def calibration() -> Any:  # noqa: ANN401 - nncf.Dataset
    return nncf.Dataset(CLEAN.repair.pixels.split(1), lambda pixels: {"pixels": pixels.numpy()})


def test_it_counts_what_a_reader_would(network: Classifier, tmp_path: Path) -> None:
    model = proto(network, tmp_path)
    audit = Audit(CLEAN, [WEAK, STRONG])
    share, values = audit(model, range(len(audit)))
    predictor = OnnxPredictor(tmp_path / "float32.onnx")
    pixels = CLEAN.select.pixels
    labels = CLEAN.select.labels
    expected = []
    for seen in (pixels, WEAK(pixels), STRONG(pixels)):
        expected += [
            float(int(predictor(one[None]).argmax()) == int(label))
            for one, label in zip(seen, labels, strict=True)
        ]
    assert len(audit) == 3 * len(labels) == len(values)
    assert values == expected
    assert share == pytest.approx(sum(expected) / len(expected))
    assert 0.5 < share < 1
    assert audit(model, [5, 100, 5]) == (
        pytest.approx((2 * values[5] + values[100]) / 3),
        [values[5], values[100], values[5]],
    )


def test_plain_quantisation_takes_it_for_a_look_at_the_result(
    network: Classifier, tmp_path: Path
) -> None:
    int8 = nncf.quantize(proto(network, tmp_path), calibration(), subset_size=60)
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in int8.graph.node}
    audit = Audit(CLEAN, [WEAK])
    assert audit(int8, range(len(audit)))[0] > 0.95


class Overflowing(nn.Module):
    """A useless feature of huge range: once activations share one scale, nothing else is left."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.head = nn.Linear(4, 3)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(3, 4))
            self.head.bias.zero_()

    def forward(self, images: Tensor) -> Tensor:
        logits = self.network(images)
        huge = 1e5 * logits[:, :1].abs()
        found: Tensor = self.head(torch.cat([logits, huge], dim=1))
        return found


def test_the_control_puts_back_what_the_audit_shows_to_hurt(
    network: Classifier, tmp_path: Path
) -> None:
    fragile = Classifier(Overflowing(network.network), network.preprocessing, 3).eval()
    model, audit = proto(fragile, tmp_path), Audit(CLEAN, [WEAK])
    everything = range(len(audit))
    before, _ = audit(model, everything)
    assert before > 0.95
    plain, _ = audit(nncf.quantize(model, calibration(), subset_size=60), everything)
    assert plain < 0.8
    controlled = nncf.quantize_with_accuracy_control(
        model, calibration(), audit.dataset(), audit, max_drop=0.02, subset_size=60
    )
    after, _ = audit(controlled, everything)
    assert after >= before - 0.02
    assert any(node.op_type == "QuantizeLinear" for node in controlled.graph.node)


def test_a_model_that_takes_normalised_images_says_how(network: Classifier, tmp_path: Path) -> None:
    bare = Classifier(network.network, network.preprocessing, 3).eval()
    bare.mean.zero_()
    bare.std.fill_(1)
    model = proto(bare, tmp_path)
    audit = Audit(CLEAN, preprocessing=network.preprocessing)
    assert audit(model, range(len(audit)))[0] > 0.95


@pytest.mark.parametrize(
    ("model", "error", "told"),
    [
        (nn.Identity(), ConfigError, "a model of NNCF's ONNX backend, got Identity"),
        (onnx.ModelProto(), InputError, "expected"),
    ],
)
def test_what_is_no_model_of_the_backend_is_refused(
    model: Any,  # noqa: ANN401 - anything
    error: type[Exception],
    told: str,
) -> None:
    with pytest.raises(error, match=told):
        Audit(CLEAN)(model, [0])


def test_a_folder_is_no_clean_images() -> None:
    with pytest.raises(ConfigError, match=r"expected clean images as lmr_guard\.contracts\.Clean"):
        Audit(Path("images"))  # type: ignore[arg-type]
