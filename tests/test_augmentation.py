# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Random translation and mirroring: what comes out is one of the few things that may."""

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lmr_guard.training import mirrored, shifted


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def all_shifts(image: Tensor, most: int) -> list[Tensor]:
    """Every translation of one image (C, H, W), by eye."""
    reach = range(-most, most + 1)
    return [
        torch.tensor([reference.shifted(channel.tolist(), y, x) for channel in image])
        for y in reach
        for x in reach
    ]


@given(
    st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)),
    st.integers(0, 6),
    st.integers(0, 1000),
)
def test_every_image_is_one_of_its_translations(
    shape: tuple[int, int, int, int], most: int, seed: int
) -> None:
    pixels = torch.rand(shape, generator=seeded(seed))
    got = shifted(pixels, most, seeded(seed + 1))
    assert got.shape == pixels.shape
    for before, after in zip(pixels, got, strict=True):
        assert any(torch.equal(after, shift) for shift in all_shifts(before, most))


def test_every_translation_comes_and_each_image_has_its_own() -> None:
    image = torch.arange(12.0).view(1, 3, 4)
    got = shifted(image.expand(400, -1, -1, -1), 1, seeded(0))
    counts = [sum(torch.equal(one, shift) for one in got) for shift in all_shifts(image, 1)]
    assert sum(counts) == 400
    assert min(counts) > 20


def test_no_shift_is_the_input_itself_and_draws_nothing() -> None:
    pixels, generator = torch.rand(2, 1, 3, 3), seeded(0)
    assert shifted(pixels, 0, generator) is pixels
    assert torch.equal(generator.get_state(), seeded(0).get_state())


def test_half_of_the_images_are_mirrored() -> None:
    pixels = torch.rand(400, 3, 2, 5, generator=seeded(0))
    got = mirrored(pixels, seeded(1))
    kept = (got == pixels).flatten(1).all(dim=1)
    turned = (got == pixels.flip(3)).flatten(1).all(dim=1)
    assert (kept ^ turned).all()
    assert 160 < int(turned.sum()) < 240


@pytest.mark.parametrize("change", [mirrored, lambda pixels, g: shifted(pixels, 2, g)])
def test_the_generator_decides(change: object) -> None:
    assert callable(change)
    pixels = torch.rand(20, 1, 6, 6, generator=seeded(0))
    before, state = pixels.clone(), torch.get_rng_state()
    first = change(pixels, seeded(1))
    assert torch.equal(first, change(pixels, seeded(1)))
    assert not torch.equal(first, change(pixels, seeded(2)))
    assert torch.equal(pixels, before)
    assert torch.equal(torch.get_rng_state(), state)
