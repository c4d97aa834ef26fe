# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Tables for a terminal, and the shares in them."""

from collections.abc import Sequence

from rich.table import Table

from lmr_guard.contracts import Rate

__all__ = ["framed_table", "share"]


def framed_table(
    title: str, words: Sequence[str], numbers: Sequence[str], *, wrap: bool = True
) -> Table:
    """An empty table; columns of words stand to the left, columns of numbers to the right.

    Args:
        title: Above it.
        words: Their headings.
        numbers: Theirs.
        wrap: Whether cells may break.
    """
    table = Table(title=title, title_justify="left")
    for column in words:
        table.add_column(column, no_wrap=not wrap)
    for column in numbers:
        table.add_column(column, justify="right", no_wrap=not wrap)
    return table


def share(hits: int, trials: int, *, out_of: bool = False) -> str:
    """A count with its share and Wilson's bounds at 95 %.

    Args:
        hits: The count.
        trials: Of so many; at least one.
        out_of: Whether to print that number too.
    """
    rate = Rate(hits, trials)
    count = f"{hits}/{trials}" if out_of else f"{hits}"
    return f"{count}  {rate.value:4.0%} [{rate.lower():.0%}, {rate.upper():.0%}]"
