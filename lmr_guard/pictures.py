# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Picture files that somebody else wrote, opened under limits; all are opened here."""

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from lmr_guard.errors import InputError, first_line
from lmr_guard.untrusted import LARGEST_PICTURE, in_words, require_regular, shown

__all__ = ["formats", "opened", "quiet"]

# Of what else Pillow recognises some starts programs, as EPS does, and some has no reader.
_FORMATS = frozenset({"AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM"})
_FORMATS |= {"TGA", "TIFF", "WEBP"}
_LARGE = 1 << 24
_one_at_a_time = threading.Lock()


def formats() -> list[str]:
    """The formats that are read, as Pillow calls them."""
    Image.init()
    return sorted(_FORMATS & set(Image.OPEN))


@contextmanager
def quiet() -> Iterator[None]:
    """Pillow's warnings are silenced inside, but that of a bomb, which is raised.

    The filters are the process's: threads must not each set them. What it logs goes where the
    user's program wants it, and to nobody where that wants none.
    """
    log, nobody = logging.getLogger("PIL"), logging.NullHandler()
    log.addHandler(nobody)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        log.removeHandler(nobody)


@contextmanager
def opened(path: Path, what: str = "an image", most: int | None = None) -> Iterator[Image.Image]:
    """A picture to decode, inside ``quiet``; of large ones one at a time.

    Args:
        path: A regular file in one of ``formats``.
        what: What it should be, in words.
        most: Pixels; None takes Pillow's own limit.

    Raises:
        InputError: It is none, or does not decode, now or later in the block; or is too large.
    """
    count = require_regular(path, what)
    if count > LARGEST_PICTURE:
        limit = in_words(LARGEST_PICTURE)
        raise InputError(
            f"expected {what} of at most {limit}, got {in_words(count)}: {shown(path)}"
        )
    most = most or Image.MAX_IMAGE_PIXELS
    try:
        with Image.open(path, formats=formats()) as image:
            pixels = image.width * image.height
            if most is not None and pixels > most:
                raise Image.DecompressionBombError
            if pixels <= _LARGE:
                yield image
            else:
                with _one_at_a_time:
                    yield image
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(
            f"expected {what} of at most {most} pixels, got more: {shown(path)}"
        ) from error
    except Exception as error:  # A damaged file may raise anything.
        unknown = isinstance(error, UnidentifiedImageError)
        told = "none of " + ", ".join(formats()) if unknown else first_line(error)
        raise InputError(
            f"expected {what}, got a file that does not decode: {shown(path)} ({told})"
        ) from error
