# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Pictures of patterns: of every space, channel count and size, small, and of the right thing."""

from io import BytesIO

import pytest
import torch
from PIL import Image
from torch import Tensor

from lmr_guard.classifier import Preprocessing
from lmr_guard.localize.drawing import drawing
from lmr_guard.localize.inversion import Pattern
from lmr_guard.localize.spaces import SPACES, Space
from lmr_guard.results import Drawing


def shape(channels: int = 3, height: int = 32, width: int = 32) -> Preprocessing:
    values = (0.5,) * channels
    return Preprocessing(channels=channels, height=height, width=width, mean=values, std=values)


def pattern(space: Space, images: Preprocessing) -> Pattern:
    generator = torch.Generator().manual_seed(0)
    size = (1, images.channels, images.height, images.width)
    parameters: tuple[Tensor, ...] = (torch.randn(size, generator=generator) * 0.1,)
    if space == "patch":
        mask = torch.rand(1, 1, images.height, images.width, generator=generator)
        parameters = (mask, torch.rand(size, generator=generator))
    elif space == "warp":
        parameters = (0.1 * torch.randn(1, 2, 4, 4, generator=generator),)
    return Pattern(space, 3, 0.123456789, parameters, "int8")


def opened(drawn: Drawing) -> Image.Image:
    image = Image.open(BytesIO(drawn.png))
    image.load()
    return image


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(
    ("images", "mode", "size"),
    [
        (shape(), "RGB", (32, 32)),
        (shape(1, 16, 16), "L", (16, 16)),
        (shape(4, 8, 8), "L", (8, 8)),
        (shape(3, 224, 112), "RGB", (24, 48)),
        (shape(3, 1, 300), "RGB", (48, 1)),
        (shape(1, 1, 1), "L", (1, 1)),
    ],
)
def test_every_pattern_has_a_small_picture(
    space: Space, images: Preprocessing, mode: str, size: tuple[int, int]
) -> None:
    drawn = drawing(pattern(space, images), images)
    picture = opened(drawn)
    assert (picture.mode, picture.size) == (mode, size)
    assert (drawn.name, drawn.target, drawn.size) == (f"{space}@int8", 3, 0.123457)
    assert len(drawn.png) < 9000
    assert drawn == drawing(pattern(space, images), images)
    assert Drawing.from_json(drawn.to_json()) == drawn  # type: ignore[arg-type]


def test_a_patch_stands_where_it_is_and_the_rest_is_grey() -> None:
    mask, colours = torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)
    mask[..., 6:, 6:] = 1
    picture = opened(drawing(Pattern("patch", 0, 0.1, (mask, colours)), shape(1, 8, 8)))
    assert picture.getpixel((7, 7)) == 255
    assert picture.getpixel((0, 0)) == 128


def test_what_is_added_is_stretched_around_grey() -> None:
    added = torch.zeros(1, 1, 4, 4)
    added[..., 0, 0], added[..., 0, 1] = 0.02, -0.01
    picture = opened(drawing(Pattern("additive", 0, 0.1, (added,)), shape(1, 4, 4)))
    assert [picture.getpixel((x, 0)) for x in range(3)] == [255, 64, 128]
    nothing = drawing(Pattern("additive", 0, 0.1, (torch.zeros(1, 1, 4, 4),)), shape(1, 4, 4))
    assert opened(nothing).getextrema() == (128, 128)


def test_a_warp_that_moves_nothing_shows_the_board() -> None:
    picture = opened(drawing(Pattern("warp", 0, 0.1, (torch.zeros(1, 2, 4, 4),)), shape(1, 16, 16)))
    assert [picture.getpixel((x, 0)) for x in range(4)] == [51, 51, 204, 204]


def test_values_that_are_no_numbers_do_not_stop_a_report() -> None:
    odd = torch.full((1, 1, 4, 4), float("nan"))
    assert opened(drawing(Pattern("additive", 0, 0.1, (odd,)), shape(1, 4, 4))).size == (4, 4)
