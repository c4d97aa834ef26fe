# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Weights that are spread over several files, with an index in JSON that says what lies where."""

import json
import re
from pathlib import Path

from lmr_guard.errors import InputError, some
from lmr_guard.untrusted import LARGEST_SETTINGS, read_bytes

__all__ = ["indexed", "require_whole"]

_READABLE = 200  # characters of a name that one line can hold
_SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)(\.\w+)")


def indexed(path: Path) -> dict[str, list[str]] | None:
    """The files that an index names, each with the names of its weights; None for other files.

    Args:
        path: Any file; an index is JSON and ends in ``.json``.

    Raises:
        InputError: An index that does not read, that names files elsewhere than beside it, or
            whose files are not there.
    """
    if path.suffix.lower() != ".json":
        return None
    text = read_bytes(path, "an index of weights", LARGEST_SETTINGS, error=InputError)
    try:
        held = json.loads(text)
    except (ValueError, RecursionError):
        return None
    where = held.get("weight_map") if isinstance(held, dict) else None
    if not isinstance(where, dict) or not where:
        return None
    files: dict[str, list[str]] = {}
    for name, file in where.items():
        if not isinstance(file, str) or Path(file).name != file or file in {"", ".", ".."}:
            raise InputError(
                f"expected an index that names files beside it, got {file!r}: {str(path)!r}"
            )
        files.setdefault(file, []).append(name)
    if missing := [file for file in files if not _exists(path.parent / file)]:
        told = some(file[:_READABLE] for file in missing)
        raise InputError(
            f"expected the {len(files)} files that the index names beside it, got none of "
            f"{told}: {str(path)!r}"
        )
    return files


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # A name that no file system could hold.
        return False


def require_whole(path: Path) -> None:
    """Raises InputError for one file of several; says which index to give instead."""
    found = _SHARD.fullmatch(path.name)
    if found and int(found[3]) > 1:
        index = f"{found[1]}{found[4]}.index.json"
        there = "" if (path.parent / index).exists() else ", which is not beside it"
        raise InputError(
            f"expected all weights, got part {int(found[2])} of {int(found[3])}; give the index "
            f"{index!r}{there}: {str(path)!r}"
        )
