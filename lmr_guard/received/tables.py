# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Lists of images and their labels: CSV, TSV and JSON lines.

Paths stand relative to the list's own folder and do not leave it.
"""

import csv
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from lmr_guard.errors import InputError, described, first_line, is_text, printable, some
from lmr_guard.received.found import Found
from lmr_guard.untrusted import read_bytes, shown

__all__ = ["ENDINGS", "METADATA", "read_list"]

ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson")
"""What lists are called."""
METADATA = ("metadata.csv", "metadata.jsonl")
"""What a list is called that lies beside its images, as in image folders of ``datasets``."""

_LINES = (".jsonl", ".ndjson")
_PATHS = (
    *("file_name", "filename", "path", "file", "filepath"),
    *("file_path", "image", "image_path", "img", "img_path"),
)
_LABELS = ("label", "labels", "class", "class_name", "target", "category")
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
_LARGEST = 1 << 27  # bytes; ImageNet's 1.3 million images take a half of that
_MOST = 2_000_000  # lines
_TWICE = "a key twice"
_HEADER = "a header that names path and label, or two columns without one"


class _Row(NamedTuple):
    line: int
    path: str
    label: str


def read_list(path: Path, *, labels_elsewhere: bool = False) -> Found | None:
    """The images that a list names; their files are looked for, not opened.

    Args:
        path: CSV (commas, or semicolons), TSV or JSON lines, told by its ending; UTF-8.
        labels_elsewhere: Whether a list without labels is none, rather than an error.

    Returns:
        The images in the order of the list, each once; None for a list without labels.

    Raises:
        InputError: It does not read; a row is not whole; a path leads out of its folder, or to no
            file; or an image has two labels.
    """
    text = _text(path)
    read = _json_rows if path.suffix.lower() in _LINES else _csv_rows
    rows = list(read(text, path))
    if rows and not any(row.label for row in rows) and labels_elsewhere:
        return None
    where = f"the list {shown(path)}"
    if not rows:
        raise InputError(f"expected images and their labels, got no row in {where}")
    pictures, labels, again = _unlike(rows, path)
    told = f"{again} rows of {where} name an image again; each was counted once."
    return Found(where, labels, lambda: pictures, notes=(told,) if again else ())


def _text(path: Path) -> str:
    try:
        return read_bytes(path, "a list of images", _LARGEST).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"expected a list in UTF-8, got another encoding: {shown(path)}; save it as UTF-8"
        ) from error


def _lines(text: str, path: Path) -> Iterator[str]:
    """One after the other, each with its end: all at once would take more than the text."""
    for count, found in enumerate(_LINE.finditer(text)):
        if count == _MOST:
            raise InputError(f"expected a list of at most {_MOST} lines, got more: {shown(path)}")
        yield found[0]


# --- rows ---------------------------------------------------------------------------------------


def _csv_rows(text: str, path: Path) -> Iterator[_Row]:
    first = text.lstrip("\r\n").partition("\n")[0]
    mark = next((m for m in ",;\t" if m in first), ",") if path.suffix.lower() != ".tsv" else "\t"
    lines = csv.reader(_lines(text, path), delimiter=mark, skipinitialspace=True, strict=True)
    columns: tuple[int, int | None] | None = None
    try:
        for cells in lines:
            if not any(cell.strip() for cell in cells):
                continue
            if columns is None:
                columns = _columns(cells)
                if columns is not None:
                    continue
                columns = _two(cells, path)
            yield _csv_row(cells, columns, lines.line_num, path)
    except csv.Error as error:
        raise InputError(
            f"expected a list of images, got one that does not read in line {lines.line_num} "
            f"({first_line(error)}): {shown(path)}"
        ) from error


def _columns(cells: Sequence[str]) -> tuple[int, int | None] | None:
    """Where path and label stand by a header; None where the row is none."""
    names = [cell.strip().lower() for cell in cells]
    where = next((names.index(name) for name in _PATHS if name in names), None)
    if where is None:
        return None
    return where, next((names.index(name) for name in _LABELS if name in names), None)


def _two(cells: Sequence[str], path: Path) -> tuple[int, int]:
    if len(cells) != 2:
        raise InputError(
            f"expected {_HEADER}, got {len(cells)} columns that begin with "
            f"{cells[0][:40]!r}: {shown(path)}"
        )
    return 0, 1


def _csv_row(cells: Sequence[str], columns: tuple[int, int | None], line: int, path: Path) -> _Row:
    where, label = columns
    if len(cells) <= max(where, label or 0):
        raise InputError(
            f"expected a path and a label in every row, got {len(cells)} columns in line {line}: "
            f"{shown(path)}"
        )
    return _Row(line, cells[where], "" if label is None else cells[label].strip())


def _json_rows(text: str, path: Path) -> Iterator[_Row]:
    for number, line in enumerate(_lines(text, path), start=1):
        if not line.strip():
            continue
        try:
            held = json.loads(line, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            got = _TWICE if error.args == (_TWICE,) else "none"
            raise InputError(
                f"expected a JSON object in every line, got {got} in line {number}: {shown(path)}"
            ) from error
        lower = (
            {key.lower(): value for key, value in held.items()} if isinstance(held, dict) else {}
        )
        if not isinstance(held, dict) or len(lower) < len(held):
            got = "a key in two cases" if lower else described(held)
            raise InputError(
                f"expected a JSON object in every line, got {got} in line {number}: {shown(path)}"
            )
        named = next((lower[name] for name in _PATHS if name in lower), None)
        label = next((lower[name] for name in _LABELS if lower.get(name) is not None), "")
        if not isinstance(named, str) or not (isinstance(label, str) or type(label) is int):
            raise InputError(
                "expected a path and a label, a name or a whole number, in every line, got "
                f"{some(held) or 'nothing'} in line {number}: {shown(path)}"
            )
        yield _Row(number, named, str(label).strip())


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Readers differ on which of two values holds."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError(_TWICE)
    return dict(pairs)


# --- files --------------------------------------------------------------------------------------


def _unlike(rows: Sequence[_Row], path: Path) -> tuple[list[Path], list[str], int]:
    """Files, their labels, and how many rows named one again."""
    root = path.parent
    held: dict[str, _Row] = {}
    missing: list[_Row] = []
    for row in rows:
        if not row.label:
            raise InputError(f"expected a label in every row, got none in line {row.line}: {path}")
        name = os.path.normpath(_inside(row, root, path))
        first = held.setdefault(name, row)
        if first.label != row.label:
            raise InputError(
                f"expected one label for an image, got {printable(first.label)} in line "
                f"{first.line} and {printable(row.label)} in line {row.line} for "
                f"{printable(row.path)}: {shown(path)}"
            )
        if first is row and not _is_file(root / name):
            missing.append(row)
    if missing:
        hint = f"; the first line is no path? give {_HEADER}" if missing[0] is rows[0] else ""
        raise InputError(
            f"expected the files that the list names, relative to its folder, got none of "
            f"{some(row.path for row in missing)} ({len(missing)} of {len(held)}): {shown(path)}"
            f"{hint}"
        )
    files = [root / name for name in held]
    return files, [row.label for row in held.values()], len(rows) - len(held)


def _inside(row: _Row, root: Path, path: Path) -> PurePath:
    """A path relative to the list's folder, which it may not leave."""
    named = PurePath(row.path)
    if named.is_absolute():
        for top in (Path(os.path.abspath(root)), root.resolve()):  # noqa: PTH100  # no link followed
            if named.is_relative_to(top):
                named = named.relative_to(top)
    if named.is_absolute() or ".." in named.parts or not named.parts or not is_text(row.path):
        raise InputError(
            f"expected paths inside the list's folder, got {printable(row.path[:200])} in line "
            f"{row.line}: {shown(path)}; put the list beside its images"
        )
    return named


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # A name that no file system could hold.
        return False
