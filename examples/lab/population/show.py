# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Counts over the records: what localize and the paper's localiser say, half by half.

Backdoored networks count as *right*, *abstained* or *wrong*, clean ones as *abstained* or *wrong*:
any class named on a clean network is wrong. Attacks that did not take stand in a row of their own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from examples.lab.kit.records import Record
from examples.lab.kit.tables import framed_table, share
from examples.lab.population.split import HALVES
from examples.lab.population.subjects import TOOK

__all__ = ["FAMILIES", "KEYS", "Row", "called", "of_round", "render", "rows"]

FAMILIES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "patch": ("badnets", "trojan", "cl"),
        "whole image": ("blend", "sig"),
        "differs by image": ("wanet", "dfst", "dynamic", "lira"),
        "asleep until rounded": ("qcb", "qcb_two_branch", "qcb_distilled"),
        "asleep until pruned": ("pcb", "pcb_fixed", "pcb_distilled"),
    }
)
"""Attacks that look alike to a defender."""

_CLEAN, _ALL, _NOT = "clean", "backdoored", "did not take"


def _family(member: Mapping[str, Any]) -> str:
    return next(name for name, attacks in FAMILIES.items() if member["attack"] in attacks)


KEYS: Mapping[str, Callable[[Mapping[str, Any]], str]] = MappingProxyType(
    {
        "family": _family,
        "attack": lambda member: str(member["attack"]),
        "dataset": lambda member: str(member["dataset"]),
        "network": lambda member: str(member["network"]),
    }
)
"""What backdoored networks can be grouped by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Counts of one group in one half.

    Args:
        half: Which.
        group: Its name.
        networks: How many there are.
        right: The attacker's class was named; 0 for clean networks.
        abstained: No class was named.
        wrong: Another class was named; on a clean network any.
        paper: The same by the paper's localiser, which never abstains: right, wrong.
    """

    half: str
    group: str
    networks: int
    right: int
    abstained: int
    wrong: int
    paper: tuple[int, int]


def called(member: Mapping[str, Any]) -> str:
    """How a network is called in a table."""
    attack = member["attack"] or "honest"
    return f"{member['dataset']} {member['network']} {attack} s{member['seed']}"


def rows(records: Sequence[Record], by: str = "family") -> list[Row]:
    """The counts: for each half clean ones, each group, all that took, all that did not.

    Args:
        records: As ``Store.read`` gives them.
        by: One of ``KEYS``.
    """
    return [
        _row(half, group, members)
        for half in HALVES
        for group, members in _groups([r for r in records if r["member"]["half"] == half], by)
        if members
    ]


def of_round(records: Sequence[Record], number: int) -> list[Record]:
    """Those whose architecture is of a round, counted from 0; see ``split``."""
    members = ((record, record["member"]) for record in records)
    return [r for r, m in members if HALVES[m["half"]].round_of(m["network"]) == number]


def _groups(records: Sequence[Record], by: str) -> Iterator[tuple[str, list[Record]]]:
    took = [record for record in records if record["took"]]
    grouped: dict[str, list[Record]] = {}
    for record in took:
        grouped.setdefault(KEYS[by](record["member"]), []).append(record)
    yield _CLEAN, [record for record in records if record["took"] is None]
    yield _ALL, took
    yield from sorted(grouped.items())
    yield _NOT, [record for record in records if record["took"] is False]


def _row(half: str, group: str, members: Sequence[Record]) -> Row:
    named = [(r["suspicion"]["target"], r["member"]["target"]) for r in members]
    abstained = sum(suspect is None for suspect, _ in named)
    right = sum(suspect is not None and suspect == target for suspect, target in named)
    plain = sum(r["unlearning"]["class"] == r["member"]["target"] for r in members)
    return Row(
        half=half,
        group=group,
        networks=len(members),
        right=right,
        abstained=abstained,
        wrong=len(members) - right - abstained,
        paper=(plain, len(members) - plain),
    )


def render(records: Sequence[Record], by: str = "family") -> Iterator[RenderableType]:
    """A table per half, and a line that says how to read them."""
    found = rows(records, by)
    for half in HALVES:
        own = [row for row in found if row.half == half]
        if own:
            yield _table(half, own, by)
    yield Text(
        "Each count with its share and Wilson bounds at 95 %. Right: the attacker's class. Wrong: "
        f"another; on a clean network any. Took: ASR of {TOOK:.0%} or more in the form that wakes "
        "the attack. paper: unlearning on the network as received, majority of three restarts; "
        "it names a class always."
    )


def _table(half: str, own: Sequence[Row], by: str) -> Table:
    columns = ("n", "right", "abstained", "wrong", "paper right", "paper wrong")
    table = framed_table(f"{half} half, backdoored by {by}", ["networks"], columns)
    for row in own:
        n, clean = row.networks, row.group == _CLEAN
        table.add_row(
            row.group,
            str(n),
            "-" if clean else share(row.right, n),
            share(row.abstained, n),
            share(row.wrong, n),
            "-" if clean else share(row.paper[0], n),
            share(row.paper[1], n),
            end_section=row.group in (_CLEAN, _ALL),
        )
    return table
