# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What it is worth to take off what the next class of a search shows too, and to ask the kind.

Read off the searches that score has recorded; unlearning is left out. ``searches.outstanding`` and
``searches.PATCHED`` were chosen on what this prints of the calibration half.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor

from examples.lab.kit.records import Record
from examples.lab.kit.tables import framed_table
from examples.lab.population.split import HALVES
from lmr_guard.localize.inversion import strangeness
from lmr_guard.localize.searches import PATCHED, outstanding

__all__ = ["LIMITS", "READINGS", "RECORDED", "highest", "render"]

LIMITS = (1.8, 2.0, 2.2, 2.5)
"""Scores from which on a class is named here."""

RECORDED: Mapping[str, float] = MappingProxyType({"patch": 1.0, "additive": 1.0, "warp": 1 / 3})
"""What strangeness is raised to in records of searches whose warps began wide: all but those of
``results/warps``, which are read off by themselves."""

_PATCHWISE = ("slim_vit", "slim_convnext", "vit")


def _itself(strange: Tensor, _patchwise: bool) -> Tensor:
    return strange


def _outstanding(strange: Tensor, _patchwise: bool) -> Tensor:
    return outstanding(strange)


def _by_kind(strange: Tensor, patchwise: bool) -> Tensor:
    return outstanding(strange) / (PATCHED if patchwise else 1.0)


READINGS: Mapping[str, Callable[[Tensor, bool], Tensor]] = MappingProxyType(
    {"strangeness": _itself, "standing out": _outstanding, "the same, by kind": _by_kind}
)
"""How the strangeness of the classes of one search makes scores; whether images are patched."""


def highest(record: Record, read: Callable[[Tensor, bool], Tensor]) -> dict[int, float]:
    """Of each class the highest score of any search that counts.

    Args:
        record: Of ``score``. Of records with deep searches only these count.
        read: Of ``READINGS``.
    """
    told = [e for e in record["suspicion"]["evidence"] if e.get("space") in RECORDED]
    if any("nearness" in each for each in told):
        told = [each for each in told if each["form"] == "received" or each["repeat"]]
    found: dict[int, float] = {}
    patchwise = record["member"]["network"] in _PATCHWISE
    for each in told:
        scores = read(_strange(each), patchwise).tolist()
        for k, score in zip(each["classes"], scores, strict=True):
            found[k] = max(found.get(k, 1.0), score)
    return found


def _strange(search: Mapping[str, Any]) -> Tensor:
    sizes = torch.tensor(search["sizes"])
    near = torch.tensor(search.get("nearness", [1.0] * len(sizes)))
    found: Tensor = strangeness(sizes) ** RECORDED[search["space"]] / near
    return found


def render(records: Sequence[Record]) -> Iterator[RenderableType]:
    """Of each half, reading and limit: honest networks accused, backdoored ones named rightly."""
    for half in HALVES:
        kept = [r for r in records if r["member"]["half"] == half and r["took"] is not False]
        if kept:
            yield _table(half, kept)
            honest = sum(record["took"] is None for record in kept)
            yield Text(
                f"Of {honest} honest networks those in which some class is named, and of "
                f"{len(kept) - honest} backdoored ones those in which that is the attacker's. "
                "Unlearning is left out."
            )


def _table(half: str, records: Sequence[Record]) -> Table:
    columns = tuple(f"from {limit:g} on" for limit in LIMITS)
    title = f"{half} half: accused, right"
    table = framed_table(title, ["score"], ("highest honest", *columns))
    for name, read in READINGS.items():
        scores = [(highest(record, read), record["member"]["target"]) for record in records]
        told = [(own, k) for own, k in scores if own]
        honest = sorted((max(own.values()) for own, k in told if k is None), reverse=True)
        right = [own[k] for own, k in told if k is not None and own.get(k) == max(own.values())]
        cells = (
            f"{sum(s >= limit for s in honest)}, {sum(s >= limit for s in right)}"
            for limit in LIMITS
        )
        table.add_row(name, " ".join(f"{score:.1f}" for score in honest[:3]), *cells)
    return table
