# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""One small JSON file a network: written whole, read back by name."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from examples.population.plan import Member
from lmr_guard.errors import InputError
from lmr_guard.files import atomic

__all__ = ["FORMAT", "Record", "path", "read", "write"]

FORMAT = 1

Record = Mapping[str, Any]
"""The content of one file."""


def path(folder: Path, member: Member) -> Path:
    """Where the member's record stands."""
    return folder / f"{member.name}.json"


def write(folder: Path, member: Member, record: Record) -> None:
    """The record complete at its place, a line for each of its entries.

    Raises:
        StageError: The file system refused.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in record.items()]
    with atomic(path(folder, member)) as file:
        file.write(("{\n" + ",\n".join(lines) + "\n}\n").encode())


def read(folder: Path) -> list[Record]:
    """All records, by name.

    Raises:
        InputError: A file there is no record of this version.
    """
    found: list[Record] = []
    for file in sorted(folder.glob("*.json")):
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"expected a record, got no JSON: {file}; delete it") from error
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise InputError(
                f"expected a record of version {FORMAT}, got another: {file}; delete it"
            )
        found.append(record)
    return found
