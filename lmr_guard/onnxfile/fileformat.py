# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What an ONNX file from elsewhere takes and gives, where it does not say so itself."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lmr_guard.classifier import Preprocessing
from lmr_guard.errors import ConfigError
from lmr_guard.onnxfile.predictor import Layout, OnnxPredictor, Session

__all__ = ["FileFormat", "expected_shape"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFormat:
    """What an ONNX file takes and gives, where it does not say so itself.

    Args:
        size: Channels, rows, columns; None takes what the file says.
        mean: One value per channel, for a file that takes normalised images; None where it
            takes pixels in [0, 1].
        std: As ``mean``; the two go together.
        layout: Where the channels stand; ``auto`` reads it off the file, see ``Session``.
        output: Name of the output with the logits; None takes the only one of shape (N, K).
        classes: Class names in the order of its outputs; None takes folder names sorted.
        upright: Whether images are turned as their cameras say; see ``Preprocessing``.
        trusted: Whether the maker of an exported program (.pt2) is, whose reading can run code; it
            says nothing about other files.

    Raises:
        ConfigError: One of ``mean`` and ``std`` without the other, or values that are not finite.
    """

    size: Sequence[int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    layout: Layout = "auto"
    output: str | None = None
    classes: tuple[str, ...] | None = None
    upright: bool = False
    trusted: bool = False

    def __post_init__(self) -> None:
        """Validates; see the class."""
        if (self.mean is None) != (self.std is None):
            raise ConfigError("expected mean and std together, got one of them; give the other")
        if not all(math.isfinite(value) for value in (*(self.mean or ()), *(self.std or ()))):
            raise ConfigError(f"expected finite mean and std, got {self.mean} and {self.std}")

    def session(self, threads: int | None = None) -> Session:
        """How such a file is opened; mean and std are left to who knows its size."""
        return Session(threads=threads, layout=self.layout, output=self.output)


def expected_shape(predictor: OnnxPredictor, wanted: FileFormat) -> Preprocessing:
    """What images must look like: the file says, or the user where it leaves axes free.

    Raises:
        ConfigError: Nobody says a size, or the two contradict one another.
    """
    said = tuple(predictor.shape[1:])
    asked = tuple(wanted.size) if wanted.size is not None else said
    fits = len(asked) == len(said) and all(w in (None, g) for w, g in zip(said, asked, strict=True))
    if not fits or None in asked:
        text = "x".join("any" if size is None else str(size) for size in said)
        raise ConfigError(
            f"expected an input size, channels, rows and columns, that fits {text}, got "
            f"{wanted.size}"
        )
    channels, height, width = (int(size) for size in asked if size is not None)
    if channels not in {1, 3}:
        raise ConfigError(f"expected images of 1 or 3 channels, got {channels} in {predictor.path}")
    mean, std = wanted.mean or (0.0,) * channels, wanted.std or (1.0,) * channels
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        raise ConfigError(
            f"expected {channels} values each for mean and std > 0, got {mean}, {std}"
        )
    return Preprocessing(
        channels=channels,
        height=height,
        width=width,
        mean=mean,
        std=std,
        upright=wanted.upright,
    )
