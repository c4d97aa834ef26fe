# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What each budget names of the networks that all of them were asked about."""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from rich.console import RenderableType

from examples.lab.kit.records import Record
from examples.lab.kit.tables import framed_table, share
from examples.lab.population import show
from examples.lab.population.split import HALVES
from lmr_guard.budgets import Budget

__all__ = ["FOLDERS", "common", "render"]

FOLDERS: Mapping[Budget, str] = MappingProxyType({"quick": "quick", "standard": "reported"})
"""Where the records of each lie; thorough was not asked."""


def common(found: Mapping[Budget, Sequence[Record]]) -> dict[Budget, list[Record]]:
    """The records of networks that every budget with records was asked about, in one order."""
    asked = {
        budget: {r["name"]: r for r in records} for budget, records in found.items() if records
    }
    names = sorted(set.intersection(*(set(records) for records in asked.values())))
    return {budget: [records[name] for name in names] for budget, records in asked.items()}


def render(found: Mapping[Budget, Sequence[Record]]) -> Iterator[RenderableType]:
    """A table of counts, half by half, and the networks on which budgets differ."""
    both = common(found)
    table = framed_table(
        "Left alone, or the attacker's class named", ("half", "networks"), tuple(both)
    )
    differ = framed_table("Where they differ: the class named", ("network",), ("attacker's", *both))
    for half in HALVES:
        counted = {
            budget: show.rows([r for r in records if r["member"]["half"] == half])
            for budget, records in both.items()
        }
        for rows in zip(*counted.values(), strict=True):
            first = rows[0]
            honest = first.group == "clean"
            counts = [row.abstained if honest else row.right for row in rows]
            table.add_row(half, first.group, *(share(n, first.networks) for n in counts))
    for records in zip(*both.values(), strict=True):
        named = [str(record["suspicion"]["target"]) for record in records]
        if len(set(named)) > 1:
            member = records[0]["member"]
            differ.add_row(show.called(member), str(member["target"]), *named)
    yield table
    yield differ
