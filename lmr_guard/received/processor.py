# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""``preprocessor_config.json`` of transformers: what is done to an image before the network."""

import math
from collections.abc import Mapping
from typing import Any

from lmr_guard.classifier import Preprocessing
from lmr_guard.errors import ConfigError, printable, some

__all__ = ["described_by"]

_BILINEAR = 2
_LARGEST = 1e6  # of what is read as a number; no image is larger, no pixel either
_SMALL = 384  # ConvNeXt's processor scales and crops below it, and only scales from it on


def described_by(held: Mapping[str, Any], channels: int) -> tuple[Preprocessing, tuple[str, ...]]:
    """What the network sees, and what a reader must know of it.

    Pixels in [0, 1] come in here: what is told in bytes is brought to these units.

    Args:
        held: The content of the file.
        channels: That the network takes.

    Raises:
        ConfigError: It tells no size, or no mean and std that fit the channels, or normalises in a
            way that is no mean and std.
    """
    height, width, resize = _size(held)
    factor = _number(held, "rescale_factor", 1 / 255) if _on(held, "do_rescale") else 1.0
    shift = 1.0 if held.get("rescale_offset") else 0.0
    mean, std = (0.0,) * channels, (1.0,) * channels
    if _on(held, "do_normalize"):
        mean, std = _values(held, "image_mean", channels), _values(held, "image_std", channels)
    kind = str(held.get("image_processor_type"))
    if kind.startswith("EfficientNet") and _on(held, "include_top"):
        std = tuple(value * value for value in std)  # It divides once more.
    scale = 255 * factor
    if scale > 0:
        mean = tuple((value + shift) / scale for value in mean)
        std = tuple(value / scale for value in std)
    if scale <= 0 or min(std) <= 0 or not all(map(math.isfinite, (*mean, *std))):
        raise ConfigError(
            f"expected a rescale_factor and std above 0, got {factor} and {std}; give --mean and "
            "--std"
        )
    shape = Preprocessing(
        channels=channels, height=height, width=width, mean=mean, std=std, resize=resize
    )
    resample = held.get("resample", _BILINEAR)
    told = (
        "Images are scaled bilinearly; the model's own preprocessing asks for another way "
        f"(resample {printable(str(resample)[:20])})."
    )
    return shape, () if resample == _BILINEAR else (told,)


def _on(held: Mapping[str, Any], name: str) -> bool:
    return held.get(name, True) is not False


def _size(held: Mapping[str, Any]) -> tuple[int, int, int | None]:
    """Rows and columns that the network sees, and the shorter side before the centre is cut."""
    size, crop = _sides(held.get("size")), _sides(held.get("crop_size"))
    edge = size.get("shortest_edge")
    if held.get("do_center_crop") and crop:
        height, width = crop.get("height"), crop.get("width")
        square = size.get("height") if size.get("height") == size.get("width") else None
        resize = (edge or square) if _on(held, "do_resize") else None
    elif edge is not None:
        height = width = edge
        ratio = held.get("crop_pct")
        told = isinstance(ratio, float) and 0.01 < ratio <= 1 and edge < _SMALL
        resize = int(edge / float(ratio or 1)) if told else None
    else:
        height, width, resize = size.get("height"), size.get("width"), None
    if height is None or width is None:
        raise ConfigError(
            f"expected a size in preprocessor_config.json, got {some(map(str, size)) or 'none'}; "
            "give --input-size, --mean and --std"
        )
    return height, width, resize


def _sides(told: Any) -> dict[str, int]:  # noqa: ANN401  # The file's.
    if isinstance(told, int):
        told = {"shortest_edge": told}
    sides = told if isinstance(told, dict) else {}
    return {k: v for k, v in sides.items() if type(v) is int and 0 < v < _LARGEST}


def _number(held: Mapping[str, Any], name: str, otherwise: float) -> float:
    value = _float(held.get(name, otherwise))
    if value is None:
        raise ConfigError(f"expected a number as {name} in preprocessor_config.json, got another")
    return value


def _values(held: Mapping[str, Any], name: str, channels: int) -> tuple[float, ...]:
    listed = held.get(name)
    values = [_float(value) for value in listed] if isinstance(listed, list) else []
    found = tuple(value for value in values if value is not None)
    if not len(found) == len(values) == channels:
        raise ConfigError(
            f"expected {channels} numbers as {name} in preprocessor_config.json, got others; give "
            "--mean and --std"
        )
    return found


def _float(value: object) -> float | None:
    """A number of a sensible size; what is none is None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < _LARGEST else None  # A NaN is not below.
