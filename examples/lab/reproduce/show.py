# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Paper and ours side by side, read from the records, and what is missing.

Per cent, the mean over seeds and in brackets the smallest and largest; ``n`` counts networks.
Nothing is computed that a reader could not compute from the JSON lines.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from examples.lab.kit.records import Record
from examples.lab.reproduce import cells, draw, show_figures, show_tables, tables
from lmr_guard.errors import ConfigError

__all__ = ["render"]

_LISTED = 12
_PARTS = {**show_tables.PARTS, **show_figures.PARTS}


def render(
    name: str,
    plan: tables.Plan,
    results: Path,
    drawing: Path | None = None,
    method: str = "lmr",
) -> list[RenderableType]:
    """What ``show NAME`` prints; writes ``drawing`` where one is asked for.

    Args:
        name: A table or figure.
        plan: Scale and seeds that are expected.
        results: Results folder.
        drawing: File for a figure.
        method: Which LMR figures 4 to 7 are drawn of.

    Raises:
        ConfigError: There is none of that name, or nothing that can be drawn.
        InputError: A record is damaged.
    """
    table = tables.folder(name)
    seeds = set(plan.seeds)
    records = [
        r for r in cells.store(results, plan.scale, table).read() if r["cell"]["seed"] in seeds
    ]
    if drawing is not None:
        if not records:
            raise ConfigError(f"expected records of {name} to draw, got none; run it first")
        draw.draw(name, records, drawing, method)
    title = f"{name}, {plan.scale} scale: {_data(records)}"
    return [
        *_PARTS[table](title, records),
        *_notes(records),
        _missing(tables.cells(name, plan), records),
    ]


def _data(records: Sequence[Record]) -> str:
    """What the networks saw, and for which data set of the paper it stands."""
    pairs = sorted({(r["cell"]["dataset"], r["cell"]["stands_for"]) for r in records})
    told = [used if used == meant else f"{used} in place of {meant}" for used, meant in pairs]
    return ", ".join(told) or "no cell yet"


def _notes(records: Sequence[Record]) -> Iterator[Text]:
    """What methods said of themselves, with the number of cells that they said it in."""
    said: dict[str, int] = {}
    for record in records:
        for method, told in record.get("measured", {}).items():
            if "note" in told:
                line = f"{method}: {told['note']}"
                said[line] = said.get(line, 0) + 1
    for line, count in sorted(said.items()):
        yield Text(f"{line} ({count} of {len(records)} cells)")


def _missing(wanted: Sequence[cells.Cell], records: Sequence[Record]) -> Text:
    """A cell on a stand-in is no missing one: what it stands for counts."""
    there = {_key(record["cell"]) for record in records}
    names = [cell.name for cell in wanted if _key(asdict(cell)) not in there]
    if not names:
        return Text(f"missing: none of {len(wanted)} cells")
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return Text(f"missing: {len(names)} of {len(wanted)} cells: {', '.join(names[:_LISTED])}{more}")


def _key(cell: Mapping[str, Any]) -> tuple[Any, ...]:
    names = ("stands_for", "network", "attack", "target", "seed", "share")
    return tuple(cell[name] for name in names)
