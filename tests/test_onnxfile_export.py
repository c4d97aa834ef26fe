# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Export against torch: the same logits, reproducible bytes, and what is refused."""

import hashlib
import logging
from pathlib import Path

import onnx
import pytest
import timm
import torch
from factories import seeded
from torch import Tensor, nn

from lmr_guard.classifier import Classifier, Preprocessing, weights_sha256
from lmr_guard.errors import StageError
from lmr_guard.files import Artifact, sha256_of
from lmr_guard.onnxfile.export import export_onnx
from lmr_guard.onnxfile.inspect import branches, operators
from lmr_guard.onnxfile.predictor import OnnxPredictor

SIZE = Preprocessing(channels=2, height=4, width=5, mean=(0.4, 0.5), std=(0.2, 0.3))


def network(tail: nn.Module | None = None) -> Classifier:
    """Convolution, batch norm and a head, with weights of its own generator."""
    layers = [nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 4)]
    model = Classifier(nn.Sequential(*layers, *([] if tail is None else [tail])), SIZE, 4)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return export_onnx(network(), tmp_path_factory.mktemp("export") / "net.onnx")


def test_the_file_gives_what_torch_gives_at_any_batch(exported: Artifact) -> None:
    predictor = OnnxPredictor(exported.path)
    assert predictor.shape == (None, 2, 4, 5)
    assert predictor.num_classes == 4
    for batch in (1, 3, 8):
        pixels = torch.rand(batch, 2, 4, 5, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            assert torch.allclose(predictor(pixels), network()(pixels), atol=1e-4)


def test_names_and_dynamic_batch_are_as_documented(exported: Artifact) -> None:
    graph = onnx.load(exported.path).graph
    assert [v.name for v in (*graph.input, *graph.output)] == ["pixels", "logits"]
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [p.name for p in exported.path.parent.iterdir()] == ["net.onnx"]
    assert operators(exported.path)["Conv"] == 1
    assert branches(onnx.load(exported.path)) == {}


def test_the_bytes_are_reproducible_and_hold_nothing_of_this_machine(
    exported: Artifact, tmp_path: Path
) -> None:
    again = export_onnx(network(), tmp_path / "again.onnx")
    assert (again.sha256, again.bytes) == (exported.sha256, exported.bytes)
    assert str(Path(__file__).parent).encode() not in exported.path.read_bytes()
    assert b".py" not in exported.path.read_bytes()


def test_the_artifact_is_what_lies_there(exported: Artifact) -> None:
    data = exported.path.read_bytes()
    assert exported.sha256 == hashlib.sha256(data).hexdigest() == sha256_of(exported.path)
    assert exported.bytes == len(data)
    assert Artifact.of(exported.path) == exported


def test_exporting_is_quiet_and_leaves_the_model_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    model = network()
    state, digest = torch.get_rng_state(), weights_sha256(model)
    with caplog.at_level(logging.WARNING):
        export_onnx(model, tmp_path / "net.onnx")
    assert tuple(capfd.readouterr()) == ("", "")
    assert caplog.messages == []
    assert torch.equal(torch.get_rng_state(), state)
    assert weights_sha256(model) == digest
    assert not any(m.training or m._forward_hooks for m in model.modules())


def test_train_mode_is_refused(tmp_path: Path) -> None:
    model = network()
    model.network.train()
    with pytest.raises(StageError, match=r"expected a classifier in eval mode, got train mode"):
        export_onnx(model, tmp_path / "net.onnx")


class Noise(nn.Module):
    """Other logits each time."""

    def forward(self, logits: Tensor) -> Tensor:
        """Adds noise."""
        return logits + torch.randn_like(logits)


class Undefined(nn.Module):
    """Logits that are no numbers."""

    def forward(self, logits: Tensor) -> Tensor:
        """Takes the root of a negative number."""
        return (-logits.abs() - 1).sqrt()


class Sleeper(nn.Module):
    """A backdoor in the graph: another answer where the logits look a certain way."""

    def forward(self, logits: Tensor) -> Tensor:
        """Chooses by what it sees."""
        return torch.where(logits.sum(dim=1, keepdim=True) > 3, -logits, logits)


def test_logits_that_differ_from_torch_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"within 0.0001 of torch at batch 1, got a difference"):
        export_onnx(network(Undefined()), tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_throws_dice_is_called_that(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"the same for every image, got RandomNormalLike x1"):
        export_onnx(network(Noise()), tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


class Dropping(nn.Module):
    """Dropout that is never switched off, which the exporter leaves out of the graph."""

    def forward(self, logits: Tensor) -> Tensor:
        """Drops half of them."""
        return nn.functional.dropout(logits, 0.5, training=True)


def test_a_network_that_is_random_at_inference_is_no_difference_of_the_runtime(
    tmp_path: Path,
) -> None:
    with pytest.raises(StageError, match=r"got (other outputs when asked again; it draws|Dropout)"):
        export_onnx(network(Dropping()), tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


class Cancelling(nn.Module):
    """Large terms that cancel: float32 keeps little of the logits, in whatever order it sums."""

    def __init__(self, apart: float) -> None:
        super().__init__()
        half = 3e4 * torch.randn(4, 2048, generator=torch.Generator().manual_seed(0))
        self.weight = nn.Parameter(torch.cat([half, -half], dim=1))
        self.register_buffer("apart", apart * torch.arange(4.0))

    def forward(self, pixels: Tensor) -> Tensor:
        """Sums that are zero in exact arithmetic, and what sets the classes apart."""
        flat = pixels.flatten(1).tanh()
        both = torch.cat([flat, flat], dim=1)
        return nn.functional.linear(both, self.weight) + self.apart


def test_what_float32_cannot_tell_is_no_difference_of_the_runtime(tmp_path: Path) -> None:
    shape = Preprocessing(channels=2, height=32, width=32, mean=(0.0,) * 2, std=(1.0,) * 2)
    model = Classifier(Cancelling(10.0), shape, 4).eval()
    pixels = torch.rand(8, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "net.onnx"
    export_onnx(model, path, shown=pixels)
    apart = (OnnxPredictor(path)(pixels) - model(pixels)).abs().max()
    assert apart > 1e-4 * model(pixels).abs().max()


def test_results_that_are_called_like_our_buffers_do_not_hinder(tmp_path: Path) -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 4) + torch.eye(4))

        def forward(self, logits: Tensor) -> Tensor:
            return logits @ (self.weight - self.weight.mean(dim=1, keepdim=True))

    export_onnx(network(Centred()), tmp_path / "net.onnx")


def test_a_graph_that_decides_by_the_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"runs the same for every image, got Greater x1, Where"):
        export_onnx(network(Sleeper()), tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


class Untraceable(nn.Module):
    """Python decides by a value, which no graph can hold."""

    def forward(self, logits: Tensor) -> Tensor:
        """Branches on a number."""
        return logits if float(logits.sum()) > 0 else -logits


def test_a_network_that_cannot_be_exported_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="expected a network that exports to ONNX") as caught:
        export_onnx(network(Untraceable()), tmp_path / "net.onnx")
    assert str(caught.value).isprintable()
    assert "Next steps" not in str(caught.value)
    with pytest.raises(StageError, match=r"No ONNX function found for .*aten.rrelu") as caught:
        export_onnx(network(nn.RReLU()), tmp_path / "net.onnx")
    assert str(caught.value).isprintable()


def test_attention_with_a_bias_on_positions_exports(tmp_path: Path) -> None:
    network = seeded(lambda: timm.create_model("test_vit_relpos", num_classes=3, depth=1))
    model = Classifier(network, Preprocessing(height=160, width=160), 3).eval()
    shown = torch.rand(3, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    artifact = export_onnx(model, tmp_path / "model.onnx", shown=shown)
    assert artifact.bytes
