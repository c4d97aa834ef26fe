# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What wakes when weights are rounded: read off the first looks that score has recorded.

``LocalizeSettings.woken`` was chosen on what this prints. Only the calibration half is read, and
only first looks, so that all networks are told alike, whatever rule they were scored by.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from rich.console import RenderableType
from rich.text import Text

from examples.lab.kit.records import Record
from examples.lab.kit.tables import framed_table
from examples.lab.population.show import called
from lmr_guard.localize.inversion import strangeness

__all__ = ["render", "waking"]

_FORM = "rounded-8"
_SPACES = ("patch", "additive")


def waking(record: Record) -> dict[int, float] | None:
    """Of each searched class: how many times stranger it is with rounded weights than as received.

    The geometric mean over patches and additive patterns, as ``rule`` has it. None where a search
    is missing: the rounded form had lost too much, or nobody was looked for.
    """
    product: dict[int, float] = {}
    for space in _SPACES:
        asleep, awake = (_first(record, form, space) for form in ("received", _FORM))
        if asleep is None or awake is None:
            return None
        for k, strange in awake.items():
            woken = strange / max(1.0, asleep.get(k, 1.0))
            product[k] = product.get(k, 1.0) * woken
    return {k: value ** (1 / len(_SPACES)) for k, value in product.items()}


def _first(record: Record, form: str, space: str) -> Mapping[int, float] | None:
    """Strangeness of each class by the first search of a form in a space, if there is one."""
    for search in record["suspicion"]["evidence"]:
        if search["by"] != "inversion" or (search["form"], search["space"]) != (form, space):
            continue
        sizes = torch.tensor(search["sizes"])
        near = torch.tensor(search.get("nearness", [1.0] * len(sizes)))
        return dict(zip(search["classes"], (strangeness(sizes) / near).tolist(), strict=True))
    return None


def render(records: Sequence[Record]) -> Iterator[RenderableType]:
    """Every calibration network, the one in which most wakes first."""
    found: list[tuple[float, Record, dict[int, float]]] = []
    for record in records:
        woken = waking(record) if record["member"]["half"] == "calibration" else None
        if woken is not None:
            found.append((max(woken.values()), record, woken))
    found.sort(key=lambda each: each[0], reverse=True)
    table = framed_table("calibration half, by how much wakes", ["network"], ("most", "target's"))
    for most, record, woken in found:
        table.add_row(called(record["member"]), f"{most:.2f}", _of_target(record, woken))
    yield table
    honest = [most for most, record, _ in found if record["took"] is None]
    if honest:
        yield Text(f"Of {len(honest)} honest networks the highest comes to {max(honest):.2f}.")


def _of_target(record: Record, woken: Mapping[int, float]) -> str:
    target = record["member"]["target"]
    return "-" if target is None or target not in woken else f"{woken[target]:.2f}"
