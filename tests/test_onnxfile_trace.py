# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""A graph filled with other weights is what tracing those weights gives, to the byte."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from factories import seeded
from torch import Tensor, nn

from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.errors import StageError
from lmr_guard.files import sha256_of
from lmr_guard.onnxfile import export
from lmr_guard.onnxfile.export import Exporter, export_onnx
from lmr_guard.onnxfile.trace import Graph

SIZE = Preprocessing(height=8, width=8)


def _plain() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), *_end(4 * 36))


def _end(width: int) -> tuple[nn.Module, nn.Module]:
    return nn.Flatten(), nn.Linear(width, 3)


class Tied(nn.Module):
    """One weight under two names, beside a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(192, 192), nn.Linear(192, 192)
        self.second.weight = self.first.weight
        self.head = nn.Linear(192, 3)
        self.register_buffer("factor", torch.rand(192), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Runs both."""
        return self.head(self.second(self.first(images.flatten(1)).relu()) * self.factor)


class Clashing(nn.Module):
    """A buffer by a name that the exporter gives to results."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("pixels", torch.rand(192))
        self.head = nn.Linear(192, 3)

    def forward(self, images: Tensor) -> Tensor:
        """Scales what comes in."""
        return self.head(images.flatten(1) * self.pixels)


def _relative() -> nn.Module:
    return timm.create_model("test_vit_relpos", img_size=32, num_classes=3, depth=1)


class Deciding(nn.Module):
    """Python decides by a weight, once, while it is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.sign = nn.Linear(192, 3), 1

    def forward(self, images: Tensor) -> Tensor:
        """Turns the answer round."""
        return self.head(images.flatten(1)) * self.sign


def classifier(make: Callable[[], nn.Module], seed: int, size: int = 8) -> Classifier:
    """With weights, and statistics of batch norm, that the seed decides."""
    network = seeded(make, seed)
    drawn = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            module.running_mean.normal_(generator=drawn)
    return Classifier(network, Preprocessing(height=size, width=size), 3).eval()


@pytest.mark.parametrize(("make", "size"), [(_plain, 8), (Tied, 8), (Clashing, 8), (_relative, 32)])
def test_filled_with_other_weights_it_is_their_own_export_to_the_byte(
    make: Callable[[], nn.Module], size: int, tmp_path: Path
) -> None:
    first, second = (classifier(make, seed, size) for seed in (0, 1))
    graph = Graph(first, first.example(2), "logits")
    assert graph.fits(second)
    other = Graph(second, second.example(2), "logits")
    mine, theirs = (
        one.filled(second).SerializeToString(deterministic=True) for one in (graph, other)
    )
    assert mine == theirs != graph.filled(first).SerializeToString(deterministic=True)
    exporter = Exporter()
    written = [exporter.write(m, tmp_path / f"{i}.onnx") for i, m in enumerate((first, second))]
    assert written[1].sha256 == export_onnx(second, tmp_path / "alone.onnx").sha256
    assert written[0].sha256 == sha256_of(tmp_path / "0.onnx") != written[1].sha256


def test_filling_leaves_graph_and_networks_as_they_are() -> None:
    first, second = (classifier(_plain, seed) for seed in (0, 1))
    before = {name: tensor.clone() for name, tensor in second.state_dict().items()}
    graph = Graph(first, first.example(2), "logits")
    alone = graph.filled(first)
    graph.filled(second)
    assert graph.filled(first) == alone
    assert all(torch.equal(tensor, before[name]) for name, tensor in second.state_dict().items())


def test_other_shapes_do_not_fit() -> None:
    first = classifier(_plain, 0)
    graph = Graph(first, first.example(2), "logits")
    wider = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), *_end(5 * 36))
    assert not graph.fits(Classifier(wider, SIZE, 3))
    assert not graph.fits(first.clone().double())
    assert graph.fits(first.clone())


def test_a_weight_that_the_graph_does_not_name_is_not_exchanged() -> None:
    class Unused(nn.Module):
        """Holds a weight that it does not use: so would one look that was used up."""

        def __init__(self) -> None:
            super().__init__()
            self.head, self.spare = nn.Linear(192, 3), nn.Linear(2, 2)

        def forward(self, images: Tensor) -> Tensor:
            """Leaves one out."""
            return self.head(images.flatten(1))

    model = classifier(Unused, 0)
    assert not Graph(model, model.example(2), "logits").fits(model)


def _counted(monkeypatch: pytest.MonkeyPatch) -> list[Classifier]:
    traced: list[Classifier] = []
    original = export._trace

    def trace(model: Classifier, output: str) -> Graph:
        traced.append(model)
        return original(model, output)

    monkeypatch.setattr(export, "_trace", trace)
    return traced


def test_networks_of_one_structure_are_traced_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced, exporter = _counted(monkeypatch), Exporter()
    for seed in range(3):
        exporter.write(classifier(_plain, seed), tmp_path / f"{seed}.onnx")
    assert len(traced) == 1
    exporter.write(classifier(Tied, 0), tmp_path / "tied.onnx")
    assert len(traced) == 2


def test_what_is_traced_by_its_weights_is_traced_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced, exporter = _counted(monkeypatch), Exporter()
    first, second = (classifier(Deciding, seed) for seed in (0, 1))
    second.network.sign = -1
    exporter.write(first, tmp_path / "first.onnx")
    written = exporter.write(second, tmp_path / "second.onnx")
    assert len(traced) == 2
    assert written.sha256 == export_onnx(second, tmp_path / "alone.onnx").sha256


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    exporter = Exporter()
    exporter.write(classifier(_plain, 0), tmp_path / "0.onnx")
    broken = classifier(_plain, 1)
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    with pytest.raises(StageError, match=r"of torch at batch 1, got a difference"):
        exporter.write(broken, tmp_path / "1.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["0.onnx"]
