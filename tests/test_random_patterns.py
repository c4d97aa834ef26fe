# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Random patterns: the same seed draws the same, pixels stay pixels, weak ones stay weak."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmr_guard.contracts import Labelled
from lmr_guard.random_patterns import STRENGTHS, RandomPattern, draw

COUNT = 120 + 24 * 9


def images(count: int, channels: int, height: int, width: int, seed: int = 0) -> Labelled:
    generator = torch.Generator().manual_seed(seed)
    shape = (count, channels, height, width)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return Labelled(pixels, torch.zeros(count, dtype=torch.int64), ("a", "b"))


def drawn(data: Labelled, seed: int) -> tuple[RandomPattern, ...]:
    return draw(data, torch.Generator().manual_seed(seed))


@settings(max_examples=12, deadline=None)
@given(
    count=st.integers(1, 3),
    channels=st.sampled_from([1, 2, 3, 4]),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
)
def test_pixels_stay_pixels_whatever_their_shape(
    count: int, channels: int, height: int, width: int, seed: int
) -> None:
    data = images(count, channels, height, width)
    before = data.images.clone()
    for pattern in drawn(data, seed)[seed % 7 :: 7]:
        changed = pattern(data.pixels)
        assert changed.shape == data.images.shape
        assert changed.dtype == torch.float32
        assert 0 <= float(changed.min()) <= float(changed.max()) <= 1
    assert torch.equal(data.images, before)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_same_seed_draws_the_same_and_another_one_others(seed: int) -> None:
    data = images(2, 3, 20, 17)
    here, there, other = drawn(data, seed), drawn(data, seed), drawn(data, seed ^ 1)
    assert [(p.group, p.look) for p in here] == [(p.group, p.look) for p in there]
    for a, b in zip(here[::5], there[::5], strict=True):
        assert torch.equal(a(data.pixels), b(data.pixels))
    pairs = zip(here, other, strict=True)
    differ = [not torch.equal(a(data.pixels), b(data.pixels)) for a, b in pairs]
    assert sum(differ) > 0.9 * COUNT


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_each_image_is_changed_on_its_own(seed: int) -> None:
    data = images(3, 3, 16, 16)
    for pattern in drawn(data, seed)[::11]:
        together = pattern(data.pixels)
        alone = torch.cat([pattern(data.pixels[i : i + 1]) for i in range(3)])
        assert torch.allclose(together, alone, atol=1e-6)


def test_a_few_hundred_of_all_kinds_and_looks() -> None:
    patterns = drawn(images(4, 3, 32, 32), 0)
    assert len(patterns) == COUNT
    groups = Counter(pattern.group for pattern in patterns)
    assert list(groups) == [(k, s) for k, each in STRENGTHS.items() for s in each]
    looks = {kind: {p.look for p in patterns if p.kind == kind} for kind in STRENGTHS}
    assert looks["patch"] == {"flat", "noise", "checks", "stripes", "snippet"}
    assert looks["blend"] == {"noise", "flat", "image"}
    assert looks["frame"] == {"noise", "flat"}
    assert {look.split(", ")[1] for look in looks["wave"]} == {"rows", "columns", "diagonal"}
    assert looks["cast"] == {"brightness", "contrast", "tint"}


def test_strength_bounds_what_is_changed() -> None:
    data = images(4, 3, 40, 40)
    for pattern in drawn(data, 3):
        change = (pattern(data.pixels) - data.pixels).abs()
        touched = float((change.amax(dim=1) > 0).float().mean())
        if pattern.kind == "patch":
            assert touched <= (pattern.strength + 0.5 / 40) ** 2 + 1e-6
        elif pattern.kind == "frame":
            assert touched <= 4 * 2 / 40
        elif pattern.kind != "warp":
            assert float(change.max()) <= pattern.strength + 1e-5


def test_patches_lie_in_every_corner_and_elsewhere() -> None:
    grey = Labelled(
        torch.full((1, 1, 40, 40), 127, dtype=torch.uint8), torch.zeros(1).long(), ("a", "b")
    )
    corners, others = Counter[tuple[bool, bool]](), 0
    for pattern in drawn(grey, 0):
        if pattern.kind == "patch":
            changed = (pattern(grey.pixels) != grey.pixels)[0, 0]
            rows, columns = changed.any(dim=1), changed.any(dim=0)
            ends = [(bool(side[0]), bool(side[-1])) for side in (rows, columns)]
            if all(any(end) for end in ends):
                corners[ends[0][0], ends[1][0]] += 1
            others += not any(any(end) for end in ends)
    assert len(corners) == 4
    assert min(corners.values()) >= 3
    assert others >= 10


def test_images_are_needed() -> None:
    with pytest.raises(RuntimeError, match="random"):
        drawn(images(0, 1, 16, 16), 0)
