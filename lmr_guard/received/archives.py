# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Images in tar files, as webdataset keeps them: NAME.jpg beside NAME.cls.

Nothing is unpacked onto the disk: where an image stands is remembered, and its bytes are read when
it is decoded. Links, devices and sparse files in an archive are refused.
"""

import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from lmr_guard import pictures
from lmr_guard.errors import InputError, first_line, is_text, printable
from lmr_guard.pictures import Part
from lmr_guard.received.found import Found
from lmr_guard.received.leavings import Passed, is_leaving
from lmr_guard.untrusted import in_words, require_regular, shown

__all__ = ["read_shards"]

_LABEL = "cls"
_LONGEST_LABEL = 1 << 10  # bytes
_LONGEST_HEADER = 1 << 20  # bytes before a member: names and settings
_Sample = dict[str, Part | str]


class _Headers:
    """An archive as ``tarfile`` reads it: what stands before a member is read into memory whole."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.left = _LONGEST_HEADER

    def read(self, count: int) -> bytes:
        """Its next bytes. Raises tarfile.ReadError once they are too many for one member."""
        self.left -= count
        if self.left < 0:
            raise tarfile.ReadError(f"more than {in_words(_LONGEST_HEADER)} before a member")
        return self._file.read(count)

    def seek(self, place: int) -> int:
        """Where it stands then."""
        return self._file.seek(place)

    def tell(self) -> int:
        """Where it stands."""
        return self._file.tell()


def read_shards(paths: Sequence[Path]) -> Found:
    """The images of tar files and their labels, one archive after the other.

    Args:
        paths: Plain tar files; the members of one image stand one after the other and are called
            alike up to the first dot.

    Raises:
        InputError: An archive does not read or is compressed; a member is no plain file; or an
            image has no label, a label no image.
    """
    passed = Passed()
    parts: list[Part] = []
    labels: list[str] = []
    for path in paths:
        for part, label in _samples(path, passed):
            parts.append(part)
            labels.append(label)
    where = f"the archive {shown(paths[0])}" + (f" and {len(paths) - 1} more" * (len(paths) > 1))
    if not parts:
        raise InputError(f"expected images NAME.jpg and labels NAME.cls, got none in {where}")
    return Found(where, labels, lambda: parts, notes=passed.notes())


def _samples(path: Path, passed: Passed) -> Iterator[tuple[Part, str]]:
    endings = {end.removeprefix(".") for end in pictures.endings()}
    key, sample = "", _Sample()
    for name, part in _members(path):
        if any(is_leaving(Path(each)) for each in PurePosixPath(name).parts):
            passed.leaving(Path(name))
            continue
        folder, _, last = name.rpartition("/")
        stem, _, ending = last.partition(".")
        if (own := f"{folder}/{stem}") != key:
            yield from _whole(key, sample, path)
            key, sample = own, _Sample()
        kind = ending.lower().rpartition(".")[2]
        held: Part | str
        if kind == _LABEL:
            held = _label(part, path)
        elif kind in endings:
            kind, held = "image", part
        else:
            passed.unread(Path(last))
            continue
        if kind in sample:
            raise InputError(
                f"expected one image and one label {key[:80]!r}, got two in {shown(path)}"
            )
        sample[kind] = held
    yield from _whole(key, sample, path)


def _whole(key: str, sample: _Sample, path: Path) -> Iterator[tuple[Part, str]]:
    part, label = sample.get("image"), sample.get(_LABEL)
    if isinstance(part, Part) and isinstance(label, str):
        yield part, label
    elif sample:
        got = "no label .cls" if label is None else "no image"
        raise InputError(
            f"expected an image and its label for each name, got {got} for "
            f"{printable(key.strip('/')[:80])} in {shown(path)}"
        )


def _members(path: Path) -> Iterator[tuple[str, Part]]:
    """Every plain file of an archive: its name and where its bytes stand."""
    size = require_regular(path, "a tar archive")
    try:
        with path.open("rb") as file, _opened(headers := _Headers(file)) as archive:
            for member in archive:
                headers.left = _LONGEST_HEADER
                archive.members = []  # type: ignore[attr-defined]  # It would remember all of them.
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse() or not is_text(member.name):
                    raise InputError(
                        f"expected plain files with names in UTF-8 in the archive, got "
                        f"{member.name[:80]!r}, which is another kind: {shown(path)}"
                    )
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError("cut off")
                yield member.name, Part(path, member.offset_data, member.size, member.name)
            # What is no header ends an archive for tarfile; an honest end is zeros, or nothing.
            if Part(path, archive.offset, tarfile.BLOCKSIZE, "").read().strip(b"\0"):
                raise tarfile.ReadError("damaged")
    except InputError:
        raise
    except Exception as error:  # Hostile bytes may raise anything.
        raise InputError(
            f"expected a plain tar archive, got one that is cut off, compressed or none "
            f"({first_line(error)}): {shown(path)}"
        ) from error


def _opened(headers: _Headers) -> tarfile.TarFile:
    # All that is asked of a file is there; the stubs ask for more.
    return tarfile.open(fileobj=cast("BinaryIO", headers), mode="r:")


def _label(part: Part, path: Path) -> str:
    if part.count > _LONGEST_LABEL:
        raise InputError(
            f"expected a label of at most {in_words(_LONGEST_LABEL)}, got {in_words(part.count)} "
            f"in {part.name[:80]!r}: {shown(path)}"
        )
    try:
        label = part.read().decode().strip()
    except UnicodeDecodeError:
        label = ""
    if not label:
        raise InputError(
            f"expected the name of a class or its index, got none in {part.name[:80]!r}: "
            f"{shown(path)}"
        )
    return label
