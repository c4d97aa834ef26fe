# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What transformers' own image processors do is what the network is shown here."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lmr_guard.errors import ConfigError
from lmr_guard.received.data import read_image
from lmr_guard.received.processor import described_by

ODD = {"image_mean": [0.1, 0.5, 0.7], "image_std": [0.2, 0.3, 0.5], "resample": 2}
SQUARE = {"size": {"height": 20, "width": 20}}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "square": ("ViTImageProcessor", {**ODD, **SQUARE}),
    "rows and columns": ("ViTImageProcessor", {**ODD, "size": {"height": 18, "width": 24}}),
    "no mean and std": ("ViTImageProcessor", {**SQUARE, "do_normalize": False, "resample": 2}),
    "bytes": ("ViTImageProcessor", {**ODD, **SQUARE, "do_rescale": False}),
    "other factor": ("ViTImageProcessor", {**ODD, **SQUARE, "rescale_factor": 2 / 255}),
    "small crop": (
        "ConvNextImageProcessor",
        {**ODD, "size": {"shortest_edge": 24}, "crop_pct": 0.75},
    ),
    "large": ("ConvNextImageProcessor", {**ODD, "size": {"shortest_edge": 384}}),
    "centre": (
        "MobileNetV2ImageProcessor",
        {**ODD, "size": {"shortest_edge": 28}, "crop_size": {"height": 20, "width": 24}},
    ),
    "second std": ("EfficientNetImageProcessor", {**ODD, **SQUARE, "rescale_factor": 1 / 127.5}),
    "offset": (
        "EfficientNetImageProcessor",
        {**ODD, **SQUARE, "rescale_offset": True, "include_top": False},
    ),
}


def saved(kind: str, options: dict[str, Any], folder: Path) -> tuple[Any, dict[str, Any]]:
    """The processor and what it writes."""
    processor = getattr(transformers, kind)(**options)
    processor.save_pretrained(folder)
    return processor, json.loads((folder / "preprocessor_config.json").read_text())


@pytest.mark.parametrize(("kind", "options"), CASES.values(), ids=list(CASES))
def test_the_network_sees_what_the_processor_gives(
    tmp_path: Path, kind: str, options: dict[str, Any]
) -> None:
    processor, held = saved(kind, options, tmp_path)
    shape, notes = described_by(held, 3)
    assert notes == ()
    slope = np.linspace(0, 200, 40)[:, None, None] + np.linspace(0, 50, 60)[None, :, None]
    Image.fromarray((slope + np.arange(3)).astype(np.uint8)).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        theirs = processor(image, return_tensors="pt")["pixel_values"][0]
    pixels = read_image(tmp_path / "a.png", shape).float() / 255
    if theirs.shape[2] != pixels.shape[2]:  # Not cut to a square: as wide as the image was.
        assert (theirs.shape[1], options["size"]) == (384, {"shortest_edge": 384})
        theirs = torch.nn.functional.interpolate(theirs[None], (384, 384), mode="bilinear")[0]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (shape.mean, shape.std))
    # Two bytes: the two round differently, once or twice.
    assert ((((pixels - mean) / std) - theirs) * std).abs().max() < 2.1 / 255


def test_another_way_of_scaling_is_told(tmp_path: Path) -> None:
    _, held = saved("ConvNextImageProcessor", {}, tmp_path)
    (told,) = described_by(held, 3)[1]
    assert told.endswith("asks for another way (resample 3).")


@pytest.mark.parametrize(
    ("held", "match"),
    [
        ({}, r"a size in preprocessor_config.json, got none; give --input-size"),
        ({"size": {"longest_edge": 9}}, r"a size in .*, got longest_edge; give"),
        ({"size": {"height": -1, "width": "9"}}, r"a size in .*, got none; give"),
        ({"size": True, **ODD}, r"a size in .*, got none; give"),
        ({"size": 9, "image_mean": [0.5], "image_std": [1] * 3}, r"3 numbers as image_mean in"),
        ({"size": 9, **ODD, "image_std": "x"}, r"expected 3 numbers as image_std in"),
        ({"size": 9, **ODD, "image_std": [0.1, 0, 1]}, r"rescale_factor and std above 0"),
        ({"size": 9, **ODD, "rescale_factor": 0}, r"expected a rescale_factor and std above 0"),
        ({"size": 9, **ODD, "rescale_factor": "1"}, r"expected a number as rescale_factor"),
        ({"size": 9, **ODD, "rescale_factor": float("nan")}, r"a number as rescale_factor in"),
    ],
)
def test_what_does_not_tell_is_refused_in_one_line(held: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match) as refused:
        described_by(held, 3)
    assert "\n" not in str(refused.value)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["height", "width", "shortest_edge"]), inner)
    ),
)
KEYS = ["size", "crop_size", "image_mean", "image_std", "rescale_factor", "crop_pct", "resample"]
KEYS += ["do_resize", "do_center_crop", "do_rescale", "do_normalize", "image_processor_type"]


@given(st.dictionaries(st.sampled_from(KEYS), VALUES))
def test_whatever_stands_there_is_a_size_or_one_line(held: dict[str, Any]) -> None:
    try:
        shape, _ = described_by({"size": 9, **ODD, **held}, 3)
    except ConfigError as error:
        assert "\n" not in str(error)  # noqa: PT017  # Either outcome is right.
    else:
        assert min(shape.height, shape.width, shape.resize or 1) > 0
        assert all(math.isfinite(value) for value in (*shape.mean, *shape.std))
        assert min(shape.std) > 0
