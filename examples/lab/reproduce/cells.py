# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""One cell of a table: what it is about, and where its record stands."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from examples.lab.kit.measuring import per_cent
from examples.lab.kit.records import Record, Store
from examples.lab.reproduce.data import Scale

__all__ = [
    "Cell",
    "defence_images",
    "method_shares",
    "store",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One network with one backdoor, what is done against it, and what is measured.

    Args:
        table: Whose cell it is.
        stands_for: The data set of the paper's cell.
        dataset: The data set that is really used.
        network: Architecture.
        attack: Name in ``lmr_guard.redteam.catalogue``.
        target: The attacker's class.
        seed: Of everything random.
        scale: Slim networks and digits, or the paper's sizes.
        share: Defence images as a share of the training set.
        methods: Names in ``defences.METHODS``.
        forms: Labels of ``lmr_guard.compress.recipes`` that each method's result is measured in.
        suspect: Which class LMR repels: the true target, or the one that localize names.
        localize: Whether localisation is measured.
        geometry: Whether figures 4 to 7 are measured, in place of rates.
    """

    table: str
    stands_for: str
    dataset: str
    network: str
    attack: str
    target: int
    seed: int
    scale: Scale
    share: float
    methods: tuple[str, ...] = ()
    forms: tuple[str, ...] = ("float32",)
    suspect: Literal["target", "localized"] = "target"
    localize: bool = False
    geometry: bool = False

    @property
    def name(self) -> str:
        """What its record is called; two cells of a table differ in it."""
        parts = (self.dataset, self.network, self.attack, f"t{self.target}", f"s{self.seed}")
        return "-".join((*parts, f"d{self.share:g}"))


def store(root: Path, scale: Scale, table: str) -> Store:
    """Where the records of a table stand below the results folder."""
    return Store(root / scale / f"{table}.jsonl")


def method_shares(records: Sequence[Record], method: str, form: str, metric: str) -> list[float]:
    """One share of each record that has it, in per cent."""
    found = []
    for record in records:
        rate = record.get("measured", {}).get(method, {}).get("forms", {}).get(form, {}).get(metric)
        if rate is not None and rate["trials"]:
            found.append(per_cent(rate))
    return found


def defence_images(record: Record) -> int:
    """How many images the defender had, to learn from and to choose on."""
    images = record["images"]
    return int(images["repair"] + (0 if images["select_is_repair"] else images["select"]))
