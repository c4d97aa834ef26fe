# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What it is worth to take off what the next class of a search shows too.

Read off the searches that score has recorded, on the calibration half alone; unlearning is left
out. ``searches.outstanding`` was chosen on what this prints.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from rich.console import RenderableType
from rich.text import Text
from torch import Tensor

from examples.lab.kit.records import Record
from examples.lab.kit.tables import framed_table
from lmr_guard.localize.inversion import strangeness
from lmr_guard.localize.searches import outstanding

__all__ = ["LIMITS", "READINGS", "highest", "render"]

LIMITS = (1.8, 2.0, 2.2, 2.5)
"""Scores from which on a class is named here."""


def _itself(strange: Tensor) -> Tensor:
    return strange


READINGS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {"strangeness": _itself, "standing out": outstanding}
)
"""How the strangeness of the classes of one search makes scores."""

_POWERS = {"patch": 1.0, "additive": 1.0, "warp": 1 / 3}


def highest(record: Record, read: Callable[[Tensor], Tensor]) -> dict[int, float]:
    """Of each class the highest score of any search that counts.

    Args:
        record: Of ``score``. Of records with deep searches only these count.
        read: Of ``READINGS``.
    """
    told = [e for e in record["suspicion"]["evidence"] if e.get("space") in _POWERS]
    if any("nearness" in each for each in told):
        told = [each for each in told if each["form"] == "received" or each["repeat"]]
    found: dict[int, float] = {}
    for each in told:
        for k, score in zip(each["classes"], read(_strange(each)).tolist(), strict=True):
            found[k] = max(found.get(k, 1.0), score)
    return found


def _strange(search: Mapping[str, Any]) -> Tensor:
    sizes = torch.tensor(search["sizes"])
    near = torch.tensor(search.get("nearness", [1.0] * len(sizes)))
    found: Tensor = strangeness(sizes) ** _POWERS[search["space"]] / near
    return found


def render(records: Sequence[Record]) -> Iterator[RenderableType]:
    """Of each reading and limit: honest networks accused, and backdoored ones named rightly."""
    kept = [
        (record, record["member"]["target"])
        for record in records
        if record["member"]["half"] == "calibration" and record["took"] is not False
    ]
    columns = tuple(f"from {limit:g} on" for limit in LIMITS)
    table = framed_table(
        "calibration half: accused, right", ["score"], ("highest honest", *columns)
    )
    for name, read in READINGS.items():
        scores = [(highest(record, read), target) for record, target in kept]
        honest = sorted((max(own.values()) for own, k in scores if k is None and own), reverse=True)
        right = [
            own[k] for own, k in scores if k is not None and own and own.get(k) == max(own.values())
        ]
        cells = (
            f"{sum(s >= limit for s in honest)}, {sum(s >= limit for s in right)}"
            for limit in LIMITS
        )
        table.add_row(name, " ".join(f"{score:.1f}" for score in honest[:3]), *cells)
    yield table
    count = sum(target is None for _, target in kept)
    yield Text(
        f"Of {count} honest networks those that some class is named in, and of {len(kept) - count} "
        "backdoored ones those whose target is. Unlearning is left out."
    )
