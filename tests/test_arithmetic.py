# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""bfloat16 where it is quicker and changes nothing that matters, and the way back."""

import pytest
import torch
from factories import digits_images, fingerprint
from torch import Tensor, nn

from lmr_guard import arithmetic
from lmr_guard.arithmetic import convolved, is_native, lightened, plain
from lmr_guard.classifier import Classifier, Ending, Preprocessing, weights_sha256
from lmr_guard.contracts import Labelled
from lmr_guard.measure import accuracy, predict
from lmr_guard.redteam.training import Schedule, fit_clean

SHAPE = Preprocessing(channels=1, height=16, width=16, mean=(0.5,), std=(0.25,))


class Raised(nn.Module):
    """Adds a number to all logits, which changes no class in float32."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, logits: Tensor) -> Tensor:
        """The same, higher."""
        return logits + self.by


def network(*more: nn.Module, groups: int = 1) -> Classifier:
    """Two convolutions and a head."""
    torch.manual_seed(0)
    body = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3, padding=1, groups=groups), nn.ReLU(), nn.AdaptiveAvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(64, 10)),
    )
    return Classifier(nn.Sequential(body, *more), SHAPE, 10).eval()


@pytest.fixture(scope="module")
def images() -> Labelled:
    return digits_images()[0]


@pytest.fixture(scope="module")
def trained(images: Labelled) -> Classifier:
    """The network, trained for a moment so that its answers are not all alike."""
    schedule = Schedule(epochs=4, lr=0.05, batch=64, shift=0)
    return fit_clean(network(), images, schedule, torch.Generator().manual_seed(0))


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any processor computes in bfloat16, if not faster."""
    monkeypatch.setattr(arithmetic, "is_native", lambda _device: True)


@pytest.mark.usefixtures("native")
def test_a_convolutional_network_is_lightened_and_the_original_is_left(
    trained: Classifier, images: Labelled
) -> None:
    before = fingerprint(trained)
    light = lightened(trained, images)
    assert light.light
    assert not trained.light
    assert fingerprint(trained) == before
    with torch.no_grad():
        near, exact = light(images.pixels), trained(images.pixels)
    assert near.dtype == torch.float32
    assert not torch.equal(near, exact)
    assert torch.allclose(near, exact, atol=0.05 * float(exact.std()) + 0.05)
    assert light.clone().light
    assert not light.as_received().light


@pytest.mark.usefixtures("native")
def test_what_is_counted_is_counted_in_float32(trained: Classifier, images: Labelled) -> None:
    light = lightened(trained, images)
    # Channels last sums in another order, and that is all.
    assert torch.allclose(predict(light, images), predict(trained, images), atol=1e-4)
    assert light.light
    assert accuracy(light, images) == accuracy(trained, images)


@pytest.mark.usefixtures("native")
def test_plain_takes_it_back_bit_for_bit(trained: Classifier, images: Labelled) -> None:
    back = plain(lightened(trained, images))
    assert weights_sha256(back) == weights_sha256(trained)
    with torch.no_grad():
        assert torch.equal(back(images.pixels), trained(images.pixels))
    weight = next(back.parameters())
    assert weight.is_contiguous()


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("by", [3e3, -3e4])
def test_logits_that_bfloat16_cannot_tell_apart_stay_in_float32(
    trained: Classifier, images: Labelled, by: float
) -> None:
    raised = Classifier(nn.Sequential(trained.network, Raised(by)), SHAPE, 10).eval()
    assert accuracy(raised, images) == accuracy(trained, images)
    assert not lightened(raised, images).light


@pytest.mark.usefixtures("native")
def test_logits_that_are_no_numbers_stay_in_float32(images: Labelled) -> None:
    assert not lightened(network(Raised(float("inf"))), images).light


@pytest.mark.usefixtures("native")
def test_depthwise_convolutions_and_probabilities_stay_in_float32(images: Labelled) -> None:
    assert not lightened(network(groups=8), images).light
    ending = Classifier(network(nn.Softmax(dim=1)), SHAPE, 10, Ending(kind="probabilities")).eval()
    assert not lightened(ending, images).light


def test_other_processors_stay_in_float32(
    trained: Classifier, images: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_f": True})
    assert not is_native(torch.device("cpu"))
    assert not lightened(trained, images).light
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert is_native(torch.device("cpu"))
    assert not is_native(torch.device("cuda"))


def test_the_share_of_convolutions_by_hand() -> None:
    first, second, head = 16 * 16 * 8 * 9, 8 * 8 * 16 * 8 * 9, 64 * 10
    expected = (first + second) / (first + second + head)
    assert convolved(network()) == pytest.approx(expected)
    assert convolved(network(groups=8)) == 0
    flat = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(256, 10)), SHAPE, 10).eval()
    assert convolved(flat) == 0


def test_exact_is_exact_only_meanwhile(trained: Classifier) -> None:
    light = trained.clone()
    light.light = True
    with light.exact():
        assert not light.light
    assert light.light
    meanwhile = light.exact()
    with pytest.raises(ZeroDivisionError), meanwhile:
        _ = 1 / 0
    assert light.light
