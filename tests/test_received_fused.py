# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Weights that are computed at each pass, in every way that torch has for it."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from factories import described, fingerprint, row_images, row_network, seeded
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.compress.groups import Groups
from lmr_guard.onnxfile.export import export_onnx
from lmr_guard.pipeline import repair
from lmr_guard.received import inputs
from lmr_guard.received.architectures import Architecture
from lmr_guard.received.fused import fuse
from lmr_guard.received.load import classifier
from lmr_guard.repel import RepelSettings
from lmr_guard.settings import Settings


class Twice(nn.Module):
    """A parametrisation of a user's own."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def own(layer: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", Twice())


def masked(layer: nn.Module) -> nn.Module:
    return prune.l1_unstructured(layer, "weight", 0.2)


def older(function: Callable[[nn.Module], nn.Module]) -> Callable[[nn.Module], nn.Module]:
    """Torch warns that there are newer ones."""

    def apply(layer: nn.Module) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return function(layer)

    return apply


WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "older weight_norm": older(weight_norm),
    "older spectral_norm": older(spectral_norm),
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "mask": masked,
    "own": own,
}
K = 3


def normed(way: str, k: int = K) -> nn.Sequential:
    apply = WAYS[way]
    body = apply(nn.Conv2d(1, 12, 4))
    return nn.Sequential(body, nn.ReLU(), nn.Flatten(), apply(nn.Linear(12, k)))


def network(way: str, k: int = K) -> nn.Module:
    """Passed through once, which is what the older ones cannot be copied after."""
    made = seeded(lambda: normed(way, k)).eval()
    made(torch.rand(2, 1, 4, 4))
    return described(made)


FACTORIES = """
import test_received_fused

def network(num_classes):
    return test_received_fused.normed(WAY, num_classes)
"""


@pytest.mark.parametrize("way", WAYS)
def test_it_computes_what_it_did(way: str) -> None:
    made, pixels = network(way), torch.rand(5, 1, 4, 4)
    with torch.no_grad():
        before = made(pixels)
    assert fuse(made) == ("0.weight", "3.weight")
    assert sorted(dict(made.named_parameters())) == ["0.bias", "0.weight", "3.bias", "3.weight"]
    assert torch.allclose(made(pixels), before, atol=1e-6)
    assert fuse(made) == ()


@pytest.mark.parametrize("wrapped", [False, True], ids=["network", "classifier"])
@pytest.mark.parametrize("way", WAYS)
def test_what_is_in_memory_is_not_touched_and_its_copy_can_be_cut_and_exported(
    way: str, wrapped: bool, tmp_path: Path
) -> None:
    made = network(way)
    shape = Preprocessing(channels=1, height=4, width=4, mean=(0.3,), std=(0.3,))
    given = Classifier(made, shape, K).eval() if wrapped else made
    before = fingerprint(made)
    received = inputs.model(given, None, Path("nowhere"))
    assert fingerprint(made) == before
    (told,) = received.notes
    assert told.startswith("2 weights that are computed from others at each pass (0.weight, 3.wei")
    model = received.classifier
    assert torch.allclose(model(row_images(9).pixels), made((row_images(9).pixels - 0.3) / 0.3))
    assert Groups(model.clone()).channels == 12
    export_onnx(model, tmp_path / "a.onnx")


@pytest.mark.parametrize("way", WAYS)
def test_a_checkpoint_is_loaded_and_its_classes_are_read_off_the_head(
    folder: Path, way: str
) -> None:
    (folder / "nets.py").write_text(FACTORIES.replace("WAY", repr(way)))
    made = network(way, 7)
    torch.save(made.state_dict(), folder / "a.pt")
    model = classifier(folder / "a.pt", Architecture("nets:network", input_size=(1, 4, 4)))
    assert model.num_classes == 7
    pixels = torch.rand(3, 1, 4, 4)
    assert torch.allclose(model(pixels), made(pixels), atol=1e-6)
    assert len(model.notes) == 1


@pytest.mark.parametrize("way", ["older weight_norm", "spectral_norm"])
def test_a_suspect_is_repelled_and_what_is_written_is_plain(way: str, tmp_path: Path) -> None:
    """Where there is a suspect the model is copied after passes, time and again."""
    short = RepelSettings(phase1_epochs=1, phase2_epochs=1)
    data = row_images(60)
    made = fitted(way)
    done = repair(
        made, data, tmp_path / "out", settings=Settings(suspect=1, repel=short, threads=1)
    )
    assert done.repair is not None
    written = load_file(tmp_path / "out" / "repaired.safetensors")
    assert sorted(written) == ["0.bias", "0.weight", "3.bias", "3.weight"]


def fitted(way: str) -> nn.Module:
    shape = Preprocessing(channels=1, height=4, width=4, mean=(0.3,), std=(0.3,))
    model = Classifier(network(way), shape, K)
    model.train()
    data, generator = row_images(150), torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(50):
        at = torch.randint(len(data), (30,), generator=generator)
        loss = nn.functional.cross_entropy(model(data.pixels[at]), data.labels[at])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.network.eval()


def test_plain_weights_are_left_alone(folder: Path) -> None:
    made = seeded(row_network)
    before = fingerprint(made)
    assert fuse(made) == ()
    assert fingerprint(made) == before
