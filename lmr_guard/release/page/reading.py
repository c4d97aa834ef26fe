# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What a page takes from those parts of a report that its schema leaves free."""

import math
from collections.abc import Mapping
from typing import Any

from lmr_guard.errors import printable
from lmr_guard.release.report import Report

__all__ = ["class_name", "class_names", "entry", "limit", "short"]


def entry(record: object, *keys: str) -> Any:  # noqa: ANN401 - whatever stands there
    """What stands under ``keys`` in nested records; None where there is no such place.

    >>> entry({"a": {"b": 1}}, "a", "b"), entry({"a": []}, "a", "b"), entry(None, "a")
    (1, None, None)
    """
    for key in keys:
        record = record.get(key) if isinstance(record, Mapping) else None
    return record


def limit(report: Report, name: str) -> float | None:
    """A limit that ``localize`` worked with; None where the report names none."""
    value = entry(report.config, "localize", name)
    usable = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if usable and math.isfinite(value) and value > 0 else None


def class_names(report: Report) -> tuple[str, ...]:
    """Names of the classes in index order; empty where the report names none."""
    named = entry(report.config, "classes")
    return tuple(map(str, named)) if isinstance(named, list) else ()


def class_name(report: Report, index: int) -> str:
    """How a page calls a class: its number, and its name where that tells more.

    >>> from types import SimpleNamespace
    >>> class_name(SimpleNamespace(config={"classes": ["cat", "1"]}), 0)
    '0 cat'
    >>> class_name(SimpleNamespace(config={"classes": ["cat", "1"]}), 1)
    '1'
    """
    names = class_names(report)
    name = printable(names[index]) if index < len(names) else ""
    return f"{index} {name}" if name not in ("", str(index)) else str(index)


def short(text: str, most: int = 28) -> str:
    """At most so many letters, with dots where there were more.

    >>> short("abcdef", 4)
    'abc…'
    """
    return text if len(text) <= most else f"{text[: most - 1]}…"
