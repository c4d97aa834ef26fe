# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Layers as matrices: what they see, and their weights there and back."""

import pytest
import torch
import torch.nn.functional as F
from factories import row_images
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.compress import layers


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    padding=st.integers(0, 2),
)
def test_rows_are_those_that_unfold_gives(
    kernel: tuple[int, int], stride: int, dilation: int, padding: int
) -> None:
    layer = nn.Conv2d(2, 4, kernel, stride=stride, dilation=dilation, padding=padding)
    given_ = torch.rand(3, 2, 7, 8, generator=drawn())
    rows = F.unfold(given_, kernel, dilation, padding, stride).mT.flatten(0, 1)
    _, _, height, width = layer(given_).shape
    places = torch.unravel_index(torch.arange(3 * height * width), (3, height, width))
    ((_, found),) = layers.rows(layer, given_, places)
    assert torch.equal(found[0, :, :-1].float(), rows)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, padding=1, groups=2),
        nn.Conv2d(4, 4, (1, 2), stride=2, groups=4, bias=False),
        nn.Linear(4, 3),
    ],
    ids=["grouped", "depthwise", "linear"],
)
@torch.no_grad()
def test_what_a_layer_sees_times_its_weights_is_what_it_puts_out(layer: layers.Layer) -> None:
    shape = (2, 4, 6, 5) if isinstance(layer, nn.Conv2d) else (2, 7, 4)
    seen = torch.rand(shape, generator=drawn())
    places, outputs = layers.draw(layer, layer(seen), drawn())
    for block, x in layers.rows(layer, seen, places):
        found = (x @ layers.stacked(layer)).movedim(0, 1).flatten(1)
        assert torch.allclose(found.float(), outputs[block], atol=1e-5)


@torch.no_grad()
def test_weights_come_back_as_they_were() -> None:
    for layer in (nn.Conv2d(4, 6, 3, groups=2), nn.Linear(3, 2, bias=False)):
        before = [parameter.clone() for parameter in layer.parameters()]
        layers.store(layer, layers.stacked(layer))
        for own, old in zip(layer.parameters(), before, strict=True):
            assert torch.equal(own, old)


def test_no_more_images_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    body = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.Flatten(), nn.Linear(96, 3))
    shape = Preprocessing(channels=1, height=4, width=4, mean=(0.0,), std=(1.0,))
    model, images = Classifier(body, shape, 3).eval(), row_images(40)
    monkeypatch.setattr(layers, "_ROOM", 10 * 96 + 5)
    few = layers.shown(model, images)
    assert torch.equal(few, images.pixels[::4])
    assert len(layers.shown(model, row_images(7))) == 7


def test_hooks_come_off_where_something_fails() -> None:
    layer = nn.Linear(2, 2)

    def fail(_layer: nn.Module, _given: tuple[Tensor]) -> None:
        raise KeyError

    with (
        pytest.raises(KeyError),
        layers.hooked(each.register_forward_pre_hook(fail) for each in [layer]),
    ):
        layer(torch.zeros(1, 2))
    assert layer(torch.zeros(1, 2)).shape == (1, 2)
