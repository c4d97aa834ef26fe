# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Picture files that somebody else wrote, opened under limits; all are opened here."""

import io
import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from lmr_guard.errors import InputError, first_line
from lmr_guard.untrusted import LARGEST_PICTURE, in_words, require_regular, shown

__all__ = ["Held", "Part", "Picture", "endings", "formats", "opened", "quiet"]

# Of what else Pillow recognises some starts programs, as EPS does, and some has no reader.
_FORMATS = frozenset({"AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM"})
_FORMATS |= {"TGA", "TIFF", "WEBP"}
_LARGE = 1 << 24
_one_at_a_time = threading.Lock()


@dataclass(frozen=True, slots=True)
class Part:
    """A picture that lies in a larger file, such as an archive.

    Args:
        path: The file, a regular one.
        start: Where in it the picture begins.
        count: Its bytes.
        name: What it is called there.
    """

    path: Path
    start: int
    count: int
    name: str

    def read(self) -> bytes:
        """Its bytes; fewer where the file ends before. Raises OSError."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            return file.read(self.count)


@dataclass(frozen=True, slots=True)
class Held:
    """A picture that was read already.

    Args:
        name: Where it was read, for messages.
        content: The bytes of its file.
    """

    name: str
    content: bytes


Picture = Path | Part | Held
"""Where the bytes of a picture are."""


def formats() -> list[str]:
    """The formats that are read, as Pillow calls them."""
    Image.init()
    return sorted(_FORMATS & set(Image.OPEN))


def endings() -> frozenset[str]:
    """The endings of files in ``formats``, in lower case, with their dot."""
    read = formats()
    return frozenset(end for end, kind in Image.registered_extensions().items() if kind in read)


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
def opened(
    picture: Picture, what: str = "an image", most: int | None = None
) -> Iterator[Image.Image]:
    """A picture to decode, inside ``quiet``; of large ones one at a time.

    Args:
        picture: A regular file in one of ``formats``, or the bytes of one.
        what: What it should be, in words.
        most: Pixels; None takes Pillow's own limit.

    Raises:
        InputError: It is none, or does not decode, now or later in the block; or is too large.
    """
    place = _place(picture)
    count = require_regular(picture, what) if isinstance(picture, Path) else _count(picture)
    if count > LARGEST_PICTURE:
        limit = in_words(LARGEST_PICTURE)
        raise InputError(f"expected {what} of at most {limit}, got {in_words(count)}: {place}")
    most = most or Image.MAX_IMAGE_PIXELS
    try:
        with Image.open(_file(picture), formats=formats()) as image:
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
        raise InputError(f"expected {what} of at most {most} pixels, got more: {place}") from error
    except Exception as error:  # A damaged file may raise anything.
        unknown = isinstance(error, UnidentifiedImageError)
        told = "none of " + ", ".join(formats()) if unknown else first_line(error)
        raise InputError(
            f"expected {what}, got a file that does not decode: {place} ({told})"
        ) from error


def _place(picture: Picture) -> str:
    if isinstance(picture, Part):
        return f"{shown(Path(picture.name))} in {shown(picture.path)}"
    return shown(Path(picture.name) if isinstance(picture, Held) else picture)


def _count(picture: Part | Held) -> int:
    return picture.count if isinstance(picture, Part) else len(picture.content)


def _file(picture: Picture) -> Path | io.BytesIO:
    if isinstance(picture, Path):
        return picture
    return io.BytesIO(picture.read() if isinstance(picture, Part) else picture.content)
