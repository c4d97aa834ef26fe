# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What the shown tables and figures have in common: columns, selections, means."""

from collections.abc import Mapping, Sequence
from statistics import mean
from types import MappingProxyType

from rich.table import Table

from examples.lab.kit.records import Record
from lmr_guard.release.tables import table

__all__ = ["RECOVERED_MEANS", "TITLES", "empty_table", "summary", "where"]

TITLES: Mapping[str, str] = MappingProxyType(
    {
        "none": "none",
        "lmr": "LMR",
        "lmr-recovered": "recovered",
        "lmr-paper": "LMR as in the paper",
    }
)
"""Headings of the methods that are ours."""

RECOVERED_MEANS = "recovered: LMR, and each pruned form repaired once more after the cut."

_WORDS = {"network", "attack", "form", "metric", "method", "state", "setting", "who"}


def summary(values: Sequence[float]) -> str:
    """Mean, and the range where there are several; a dash where there is none."""
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{mean(values):.1f} ({min(values):.1f}-{max(values):.1f})"


def where(records: Sequence[Record], **fields: object) -> list[Record]:
    """Records whose cell has these values."""
    return [r for r in records if all(r["cell"][k] == v for k, v in fields.items())]


def empty_table(title: str, *columns: str) -> Table:
    """An empty table; words stand to the left, numbers to the right."""
    empty = table(title, ())
    for column in columns:
        justify = "left" if column in _WORDS else "right"
        empty.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
    return empty
