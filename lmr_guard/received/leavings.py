# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What programs leave beside and among images, and what in a folder is not read, in words.

Photo tools, network drives and archivers put copies of images, small or thrown away, into folders
of their own. Counted as clean images they would be learnt from and reported on.
"""

import re
from collections import Counter
from pathlib import Path

from lmr_guard.errors import printable

__all__ = ["Passed", "is_leaving"]

# Synology and QNAP begin with @ or #, Windows with $; no class of images is called so. Words that a
# class may well be called, such as trash, are not looked for.
_MARKED = re.compile(r"[.@#$]")
_THUMBNAILS = re.compile(r"[_\W]*thumb(nail)?s?[_\W]*", re.I)
_NAMED = frozenset(
    {
        "$recycle.bin",
        "__macosx",
        "__pycache__",
        "aplibrary.lock",
        "captureone",
        "ipod photo cache",
        "lost+found",
        "network trash folder",
        "picasaoriginals",
        "recycler",
        "synoresource",
        "system volume information",
        "temporary items",
        "trash-1000",
    }
)
_ENDS = (".lrdata", ".lrcat-data", ".photoslibrary", ".aplibrary", ".cocatalog", ".tmp", "~")
_SMALL = re.compile(r"(SYNO(PHOTO|FILE|INDEX)_|ZbThumbnail|pspbrwse|ehthumbs|\.?@__thumb)", re.I)


def is_leaving(path: Path) -> bool:
    """Whether a folder or file is known by its name as something that programs leave.

    >>> [is_leaving(Path(name)) for name in ("@eaDir", "__MACOSX", "_thumbs", "tabby")]
    [True, True, True, False]
    >>> is_leaving(Path("SYNOPHOTO_THUMB_XL.jpg")), is_leaving(Path("thumb.jpg"))
    (True, False)
    """
    name = path.name
    if name.startswith(".") or _SMALL.match(name):
        return True
    if not path.suffix and (_MARKED.match(name) or _THUMBNAILS.fullmatch(name)):
        return True
    return name.lower() in _NAMED or name.lower().endswith(_ENDS)


class Passed:
    """Counts what was passed over while a folder was listed."""

    def __init__(self) -> None:
        self._leavings: Counter[str] = Counter()
        self._endings: Counter[str] = Counter()

    def leaving(self, path: Path) -> None:
        """A folder or a file that a program left."""
        self._leavings[path.name] += 1

    def unread(self, path: Path) -> None:
        """A file of a format that is not read."""
        self._endings[path.suffix.lower() or "without an ending"] += 1

    def notes(self) -> tuple[str, ...]:
        """What a reader must know, one sentence each."""
        told = []
        if self._endings:
            told.append(
                f"Among the images {self._endings.total()} files were not read, for their "
                f"endings: {_counted(self._endings)}."
            )
        if self._leavings:
            told.append(
                f"What programs leave beside images was passed over: {_counted(self._leavings)}."
            )
        return tuple(told)


def _counted(counts: Counter[str]) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{printable(name)} x{count}" for name, count in ordered[:10]]
    return ", ".join(shown) + (f" and {len(counts) - 10} more" if len(counts) > 10 else "")
