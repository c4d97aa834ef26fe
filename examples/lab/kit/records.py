# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""One file of JSON lines per table: a record is appended whole, and read back as it was.

Two kinds of lines. What many records have in common is written once, before the first of them,
under an identifier that follows from its content; a record has a name and tells its context::

    {"context": "5b1f0c3e", "format": 1, "environment": {...}, "settings": {...}}
    {"name": "digits-vit-blend-t1-s0-d0.4", "context": "5b1f0c3e", "cell": {...}, ...}

Several processes may use one file: each locks it, and what another one has finished in the
meantime is not written twice. A process that is killed while it writes leaves a last line that is
cut off; readers pass over it, and the next record takes its place.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmr_guard.errors import ConfigError, InputError, StageError

__all__ = ["FORMAT", "Record", "Store"]

FORMAT = 1
"""Version of the records; other versions are refused."""

Record = Mapping[str, Any]
"""What was found out about one cell or network, as JSON holds it."""

_SHARED = ("environment", "settings")


@dataclass(frozen=True, slots=True)
class _Content:
    """What a file holds.

    Args:
        contexts: What records share, by identifier.
        records: By name.
        whole: Number of bytes up to the end of the last line that is not cut off.
    """

    contexts: Mapping[str, Record]
    records: Mapping[str, Record]
    whole: int


@dataclass(frozen=True, slots=True)
class Store:
    """The records of one table.

    Args:
        path: Its file, which need not exist; made with its folder when the first record comes.
    """

    path: Path

    def read(self) -> list[Record]:
        """All records, by name.

        Raises:
            InputError: A line is damaged, of another version, or about a name that was there.
        """
        found = _content(self._bytes(), self.path).records
        return [found[name] for name in sorted(found)]

    def names(self) -> frozenset[str]:
        """Whose records are there.

        Raises:
            InputError: As for ``read``.
        """
        return frozenset(_content(self._bytes(), self.path).records)

    def cut_off(self) -> bool:
        """Whether the last line was never finished.

        Raises:
            InputError: As for ``read``.
        """
        content = self._bytes()
        return _content(content, self.path).whole < len(content)

    def add(self, record: Record) -> bool:
        """Append one record, complete and on disk, or leave the file as it was.

        Args:
            record: Has a ``name``, and neither ``context`` nor ``format``; the latter is added.

        Returns:
            Whether it was written: not where a record of that name is there already.

        Raises:
            ConfigError: The record has not the fields that it must have.
            InputError: As for ``read``; nothing is written.
            StageError: The file system refused.
        """
        if not isinstance(record.get("name"), str) or {"context", "format"} & record.keys():
            raise ConfigError(
                "expected a record with a name and without a context or format, got the fields "
                f"{', '.join(record)}; rename them"
            )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                file.seek(0)
                content = file.read()
                found = _content(content, self.path)
                if record["name"] in found.records:
                    return False
                lines = b"".join(_lines(record, found))
                if found.whole and not content[: found.whole].endswith(b"\n"):
                    lines = b"\n" + lines  # Somebody has edited the file by hand.
                _append(file.fileno(), lines, found.whole)
        except OSError as error:
            raise StageError(
                f"expected to write {self.path}, got {error.strerror}; "
                "choose a folder that can be written and has room"
            ) from error
        return True

    def _bytes(self) -> bytes:
        """What the file holds while nobody writes: a line that grows is no cut-off one."""
        try:
            with self.path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH)
                return file.read()
        except FileNotFoundError:
            return b""


def _lines(record: Record, found: _Content) -> Iterator[bytes]:
    """What is to be appended: the record, and its context where the file has not got it."""
    shared = {"format": FORMAT, **{key: record[key] for key in _SHARED if key in record}}
    canonical = json.dumps(shared, sort_keys=True)
    context = hashlib.sha256(canonical.encode()).hexdigest()[:8]
    if context not in found.contexts:
        yield _line({"context": context, **shared})
    own = {key: value for key, value in record.items() if key not in (*_SHARED, "name")}
    yield _line({"name": record["name"], "context": context, **own})


def _line(content: Record) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode() + b"\n"


def _append(file: int, lines: bytes, whole: int) -> None:
    """Write behind the last whole line, or else take back what was written."""
    os.truncate(file, whole)
    try:
        left = memoryview(lines)
        while left:
            left = left[os.write(file, left) :]
        os.fsync(file)
    except BaseException:
        os.truncate(file, whole)
        raise


def _content(content: bytes, path: Path) -> _Content:
    *lines, last = content.split(b"\n")
    # A part of an object is never JSON: what can be read only lacks its line's end.
    whole = len(content) - len(last)
    if _parsed(last):
        lines, whole = [*lines, last], len(content)
    contexts: dict[str, Record] = {}
    records: dict[str, Record] = {}
    for number, line in enumerate(lines, start=1):
        parsed = _parsed(line)
        complaint = _complaint(parsed, contexts, records)
        if complaint:
            raise InputError(f"{complaint} in line {number}: {path}; delete that line")
        context = parsed.pop("context")
        if "format" in parsed:
            contexts[context] = parsed
        else:
            records[parsed["name"]] = {**parsed, **contexts[context]}
    return _Content(contexts, records, whole)


def _parsed(line: bytes) -> dict[str, Any]:
    """The object that a line holds; an empty one where it holds none."""
    try:
        parsed = json.loads(line)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _complaint(
    parsed: Record, contexts: Mapping[str, Record], records: Mapping[str, Record]
) -> str | None:
    """What is wrong with a line, were it to follow these; None where nothing is."""
    context, name = parsed.get("context"), parsed.get("name")
    if not isinstance(context, str):
        return "expected a context or a record of one, got something else"
    if "format" in parsed:
        got = parsed["format"]
        return None if got == FORMAT else f"expected version {FORMAT} of records, got {got!r}"
    if context not in contexts or not isinstance(name, str):
        return f"expected a record with a name and a context that was told, got {context!r}"
    return f"expected one record per name, got another of {name}" if name in records else None
