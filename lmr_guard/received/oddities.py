# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What is odd about images that do decode, counted and said: turned ones, and scales.

Nothing is refused here: a photograph of the night is dark, and a model may have been trained on
images that lie on their side.
"""

from typing import NamedTuple, Self

from PIL import ExifTags, Image
from torch import Tensor

__all__ = ["Kind", "Oddities"]

_DARK, _LIGHT = 32, 223  # of 255: all that an image holds lies below, or above
_MOST = 0.5  # of the images


class Kind(NamedTuple):
    """What a file says of an image."""

    turned: bool
    """Whether its camera says that it must be turned or mirrored to be upright."""
    deep: bool
    """Whether it has more than 8 bits a pixel, so that its scale is a guess."""

    @classmethod
    def of(cls, image: Image.Image) -> Self:
        """Of an opened picture. An orientation that does not read is none."""
        try:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        except Exception:  # noqa: BLE001  # Damaged EXIF may raise anything; the pixels decode.
            orientation = 1
        return cls(orientation in range(2, 9), image.mode.startswith("I"))


class Oddities:
    """Counts while images are read.

    Args:
        upright: Whether they are turned as their cameras say.
    """

    def __init__(self, upright: bool) -> None:
        self._upright = upright
        self._all = self._turned = self._deep = 0
        self._dark = {False: 0, True: 0}  # of 8 bits, of more
        self._light = {False: 0, True: 0}

    def count(self, image: Tensor, kind: Kind) -> None:
        """One image, uint8, of whatever shape."""
        self._all += 1
        self._turned += kind.turned
        self._deep += kind.deep
        self._dark[kind.deep] += int(image.max()) < _DARK
        self._light[kind.deep] += int(image.min()) > _LIGHT

    def notes(self) -> tuple[str, ...]:
        """What a reader must know, one sentence each."""
        told = []
        if self._turned:
            how = (
                "they were turned; --as-stored takes them as torchvision's ImageFolder does"
                if self._upright
                else "they were taken as they are stored, as torchvision's ImageFolder does; "
                "--upright turns them"
            )
            told.append(
                f"{self._turned} of {self._all} images are marked as turned by their cameras: "
                f"{how}."
            )
        for shade, counts in (("black", self._dark), ("white", self._light)):
            few = counts[True] and f"{counts[True]} of {self._deep} images of more than 8 bits"
            many = f"{sum(counts.values())} of {self._all} images"
            if few or sum(counts.values()) > _MOST * self._all:
                told.append(
                    f"{few or many} are nearly {shade} all over: 16 bits are cut to 8, so that "
                    "values of another range lose their scale; save them with 8 bits."
                )
        return tuple(told)
