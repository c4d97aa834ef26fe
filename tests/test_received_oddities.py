# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What is counted about images while they are read."""

import pytest
import torch
from PIL import Image

from lmr_guard.received.oddities import Kind, Oddities


@pytest.mark.parametrize(("orientation", "turned"), [(1, False), (6, True), (8, True), (77, False)])
def test_only_an_orientation_that_there_is_turns(orientation: int, turned: bool) -> None:
    image = Image.new("RGB", (2, 2))
    image.getexif()[0x0112] = orientation
    assert Kind.of(image) == Kind(turned, deep=False)


def test_16_bits_are_told_from_8() -> None:
    assert Kind.of(Image.new("I;16", (2, 2))).deep
    assert not Kind.of(Image.new("L", (2, 2))).deep


def test_usual_images_are_nothing_odd() -> None:
    seen = Oddities(upright=False)
    seen.count(torch.tensor([0, 255], dtype=torch.uint8), Kind(turned=False, deep=True))
    assert seen.notes() == ()
    assert Oddities(upright=True).notes() == ()
