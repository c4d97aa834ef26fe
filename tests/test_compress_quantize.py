# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""INT8 files: what ONNX Runtime really wrote, read back integer by integer."""

import logging
from pathlib import Path

import onnx
import pytest
import torch
from factories import write_onnx
from onnx import numpy_helper
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.compress.quantize import _require_int8, quantize, rounded
from lmr_guard.compress.recipes import Int8
from lmr_guard.contracts import Labelled
from lmr_guard.errors import ConfigError, StageError
from lmr_guard.measure import accuracy
from lmr_guard.onnxfile.export import export_onnx
from lmr_guard.onnxfile.predictor import OnnxPredictor

K = 4
CLASSES = tuple("abcd")


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, K),
    )


def wrap(module: nn.Module, size: int = 8) -> Classifier:
    preprocessing = Preprocessing(
        height=size, width=size, mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.3)
    )
    return Classifier(module, preprocessing, K).eval()


@pytest.fixture(scope="module")
def model() -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = wrap(network())
        for module in made.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_var is not None
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
                module.running_var.uniform_(0.5, 1.5)
        return made


@pytest.fixture(scope="module")
def source(model: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("float") / "model.onnx"
    export_onnx(model, path)
    return path


@pytest.fixture(scope="module")
def quantized(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("int8") / "model.onnx"
    quantize(source, path, noise(), Int8(calibration_images=40))
    return path


def noise(count: int = 64, size: int = 8) -> Labelled:
    generator = torch.Generator().manual_seed(0)
    shape = (count, 3, size, size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return Labelled(images, torch.arange(count) % K, CLASSES)


def integers(path: Path) -> list[torch.Tensor]:
    """The int8 weights in the order of the operators, output channels first."""
    graph = onnx.load(path).graph
    constants = {t.name: torch.tensor(numpy_helper.to_array(t)) for t in graph.initializer}
    made = {node.output[0]: node for node in graph.node}
    found = []
    for node in graph.node:
        if node.op_type in {"Conv", "Gemm", "MatMul"}:
            weight = constants[made[node.input[1]].input[0]]
            flipped = any(a.name == "transB" and a.i == 1 for a in node.attribute)
            found.append(weight if node.op_type == "Conv" or flipped else weight.T)
    return found


def test_rounding_is_what_onnx_runtime_wrote(model: Classifier, quantized: Path) -> None:
    written = integers(quantized)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    twins = [m for m in rounded(model).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [tuple(w.shape) for w in written] == [tuple(m.weight.shape) for m in layers]
    for i, (got, layer, twin) in enumerate(zip(written, layers, twins, strict=True)):
        shape = (-1, *[1] * (got.ndim - 1))
        step = layer.weight.abs().flatten(1).amax(1).view(shape) / 127
        # The exporter folds the batch norm; a negative gamma turns the channel's sign.
        sign = norms[i].weight.sign().view(shape) if i < len(norms) else 1
        assert torch.equal(got.float() * sign, (twin.weight / step).round())
        assert got.dtype == torch.int8
        assert int(got.abs().max()) == 127


def test_rounding_by_eye() -> None:
    layer = nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[127.0, 0.5, 1.5, -2.4], [0, 0, 0, 0]]))
    got = rounded(wrap(nn.Sequential(nn.Flatten(), layer)))
    assert got.network[1].weight.tolist() == [[127, 0, 2, -2], [0, 0, 0, 0]]  # type: ignore[index]
    assert layer.weight[0, 1] == 0.5
    coarse = rounded(wrap(nn.Sequential(nn.Flatten(), layer)), bits=2)
    assert coarse.network[1].weight.tolist() == [[127, 0, 0, 0], [0, 0, 0, 0]]  # type: ignore[index]
    with pytest.raises(ConfigError, match="expected 2 to 16 bits, got 1"):
        rounded(got, bits=1)


def test_rounding_twice_changes_nothing_more(model: Classifier) -> None:
    once = rounded(model)
    for a, b in zip(once.parameters(), rounded(once).parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)


def test_everything_is_symmetric_and_per_channel(model: Classifier, quantized: Path) -> None:
    graph = onnx.load(quantized).graph
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    scales, zeros = [], []
    for node in graph.node:
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            scales.append(constants[node.input[1]])
            zeros += [constants[node.input[2]]] if len(node.input) > 2 else []
    assert zeros
    assert all((zero == 0).all() for zero in zeros)
    assert {scale.size for scale in scales} == {1, 8, K}
    assert {zero.dtype.name for zero in zeros} <= {"int8", "int32"}
    assert not [node.op_type for node in graph.node if node.op_type == "BatchNormalization"]


def test_the_file_computes_nearly_what_torch_computes(model: Classifier, quantized: Path) -> None:
    with torch.no_grad():
        expected = model(noise().pixels)
    got = OnnxPredictor(quantized)(noise().pixels)
    error = (got - expected).abs().max() / expected.abs().max()
    assert 1e-6 < float(error) < 0.05
    assert accuracy(OnnxPredictor(quantized), noise()).trials == 64


def test_it_is_one_smaller_file_alone_in_its_folder_and_reproducible(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    handlers, filters = list(logging.getLogger().handlers), list(logging.getLogger().filters)
    paths = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for path in paths:
        quantize(source, path, noise(), Int8())
    assert sorted(tmp_path.iterdir()) == paths
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert caplog.records == []
    assert logging.getLogger().handlers == handlers
    assert logging.getLogger().filters == filters


def test_attention_is_quantised_without_a_word(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = wrap(VisionTransformer(16, 8, 1, 2, 16, 32, num_classes=K), size=16)
    export_onnx(model, tmp_path / "float.onnx")
    capfd.readouterr()
    caplog.clear()
    quantize(tmp_path / "float.onnx", tmp_path / "int8.onnx", noise(4, 16), Int8())
    assert len(integers_of_any(tmp_path / "int8.onnx")) == 6
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


class Peaks(nn.Module):
    """The highest value of each channel, as some fast networks end."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.amax(dim=(2, 3)).flatten(1)


def test_a_network_that_ends_in_a_global_maximum_is_quantised(tmp_path: Path) -> None:
    # ONNX Runtime's symbolic shape inference stops at the reshape behind it.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pooled = nn.AdaptiveMaxPool2d(1)
        models = [
            wrap(nn.Sequential(nn.Conv2d(3, 8, 3), *tail, nn.Linear(8, K)))
            for tail in ([Peaks()], [pooled, nn.Flatten()])
        ]
    for number, model in enumerate(models):
        source, made = tmp_path / f"{number}.onnx", tmp_path / f"{number}-int8.onnx"
        export_onnx(model, source)
        quantize(source, made, noise(), Int8())
        assert len(integers_of_any(made)) == 2


def integers_of_any(path: Path) -> list[str]:
    graph = onnx.load(path).graph
    eights = {t.name for t in graph.initializer if t.data_type == onnx.TensorProto.INT8}
    made = {node.output[0]: node.input[0] for node in graph.node}
    used = [n.input[1] for n in graph.node if n.op_type in {"Conv", "Gemm", "MatMul"}]
    return [name for name in used if made[name] in eights]


def test_calibration_images_set_the_activation_ranges(source: Path, tmp_path: Path) -> None:
    dark = Labelled(noise().images // 16, noise().labels, CLASSES)
    files = [tmp_path / "bright.onnx", tmp_path / "dark.onnx"]
    for path, data in zip(files, (noise(), dark), strict=True):
        quantize(source, path, data, Int8())
    for got, other in zip(*map(integers, files), strict=True):
        assert torch.equal(got, other)
    assert files[0].read_bytes() != files[1].read_bytes()


def test_reduced_range_is_seven_bits(source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "int7.onnx", noise(), Int8(reduce_range=True))
    assert {int(weight.abs().max()) for weight in integers(tmp_path / "int7.onnx")} == {64}


def test_no_images_is_a_usage_error(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="clean images to calibrate int8, got none"):
        quantize(source, tmp_path / "int8.onnx", noise(0), Int8())
    assert list(tmp_path.iterdir()) == []


def test_a_file_without_constant_weights_is_refused(tmp_path: Path) -> None:
    body = "flat = Flatten(pixels) turned = Transpose(flat) logits = MatMul(flat, turned)"
    write_onnx(tmp_path / "float.onnx", body)
    data = Labelled(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4).long(), ("a",))
    with pytest.raises(StageError, match="leave int8 out"):
        quantize(tmp_path / "float.onnx", tmp_path / "int8.onnx", data, Int8())
    assert [path.name for path in tmp_path.iterdir()] == ["float.onnx"]


def test_a_weight_left_in_float_is_found(source: Path, quantized: Path) -> None:
    _require_int8(source, quantized)
    with pytest.raises(StageError, match=r"expected 3 int8 weights, got 0 and these in float"):
        _require_int8(source, source)


def test_a_broken_file_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "float.onnx").write_bytes(b"no model")
    with pytest.raises(StageError, match=r"to quantise float.onnx, got"):
        quantize(tmp_path / "float.onnx", tmp_path / "int8.onnx", noise(), Int8())
    assert [path.name for path in tmp_path.iterdir()] == ["float.onnx"]
