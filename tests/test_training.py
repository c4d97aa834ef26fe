# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Translation, mirroring and mixing by eye, private randomness, and the projection of masks."""

import pytest
import reference
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lmr_guard.training import (
    distillation_loss,
    mirrored,
    mixed,
    private_randomness,
    shifted,
    within_area,
)

CPU = torch.device("cpu")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- augmentation -------------------------------------------------------------------------------


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


# --- randomness ---------------------------------------------------------------------------------


def dropped(generator: torch.Generator) -> Tensor:
    with private_randomness(generator, CPU):
        return F.dropout(torch.ones(64), 0.5, training=True)


def stopped() -> None:
    with private_randomness(torch.Generator(), CPU):
        torch.rand(1)
        raise RuntimeError("stop")


def test_the_generator_decides_and_does_not_change() -> None:
    generator = torch.Generator().manual_seed(1)
    before = generator.get_state()
    first = dropped(generator)
    assert torch.equal(generator.get_state(), before)
    assert torch.equal(dropped(generator), first)
    torch.rand(1, generator=generator)
    assert not torch.equal(dropped(generator), first)


def test_the_global_state_is_put_back_also_after_an_error() -> None:
    before = torch.get_rng_state()
    dropped(torch.Generator())
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(RuntimeError, match="stop"):
        stopped()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.gpu
def test_the_state_of_an_accelerator_is_put_back_too() -> None:
    device = torch.device("cuda", 0)
    before = torch.cuda.get_rng_state(device)
    generator = torch.Generator().manual_seed(1)
    drawn = []
    for _ in range(2):
        with private_randomness(generator, device):
            drawn.append(torch.rand(4, device=device))
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(torch.cuda.get_rng_state(device), before)


# --- the projection of masks --------------------------------------------------------------------


@given(st.integers(0, 1000), st.floats(0.01, 1.0), st.floats(0.1, 5.0))
def test_masks_fit_and_nothing_nearer_does(seed: int, area: float, scale: float) -> None:
    before = scale * torch.randn(3, 1, 3, 5, generator=seeded(seed))
    after = within_area(before, area)
    assert after.shape == before.shape
    assert after.min() >= 0
    assert after.max() <= 1
    assert bool((after.flatten(1).mean(dim=1) <= area + 1e-5).all())
    # Of all masks that fit, the projection is the nearest: no step towards a random one that
    # fits comes nearer.
    other = area * torch.rand(before.shape, generator=seeded(seed + 1))
    step = after + 0.1 * (other - after)
    near, far = ((m - before).flatten(1).norm(dim=1) for m in (after, step))
    assert bool((near <= far + 1e-4).all())


@given(st.integers(0, 1000), st.floats(0.2, 1.0))
def test_masks_that_fit_stay(seed: int, area: float) -> None:
    mask = area * torch.rand(2, 1, 4, 4, generator=seeded(seed))
    assert torch.equal(within_area(mask, area), mask)


def test_of_images_laid_over_one_another_the_upper_one_shows_at_least_half() -> None:
    pixels = torch.arange(8.0).view(8, 1, 1, 1).expand(-1, 2, 3, 3)
    got, again = mixed(pixels, seeded(0)), seeded(0)
    own = 0.5 + 0.5 * torch.rand(8, generator=again)
    below = torch.randperm(8, generator=again)
    for image, upper, share, other in zip(got, range(8), own.tolist(), below.tolist(), strict=True):
        expected = torch.full((2, 3, 3), share * upper + (1 - share) * other)
        torch.testing.assert_close(image, expected)


# --- a teacher ----------------------------------------------------------------------------------


def test_distillation_by_hand() -> None:
    own, taught = torch.tensor([[0.0, 2.0]]), torch.tensor([[4.0, 0.0]])
    p, q = (own / 2).softmax(dim=1), (taught / 2).softmax(dim=1)
    expected = 4 * float((q * (q / p).log()).sum())
    assert float(distillation_loss(own, taught)) == pytest.approx(expected, rel=1e-5)
    assert float(distillation_loss(taught, taught)) == pytest.approx(0, abs=1e-6)
