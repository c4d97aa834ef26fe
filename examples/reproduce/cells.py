# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""One cell of a table: what it is about, and where its JSON file stands."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from examples.reproduce.data import Scale
from lmr_guard.contracts import Rate
from lmr_guard.errors import InputError
from lmr_guard.files import atomic

__all__ = [
    "FORMAT",
    "Cell",
    "Record",
    "commit",
    "counts",
    "defence_images",
    "path",
    "percent",
    "read",
    "write",
]

FORMAT = 1

Record = Mapping[str, Any]
"""The content of one JSON file."""

_ROOT = Path(__file__).parents[2]


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
        """What its file is called; two cells of a table differ in it."""
        parts = (self.dataset, self.network, self.attack, f"t{self.target}", f"s{self.seed}")
        return "-".join((*parts, f"d{self.share:g}"))


def path(root: Path, cell: Cell) -> Path:
    """Where the cell's record stands below the results folder."""
    return root / cell.scale / cell.table / f"{cell.name}.json"


def write(root: Path, cell: Cell, record: dict[str, Any]) -> None:
    """The record complete at its place, or nothing.

    Raises:
        StageError: The file system refused.
    """
    place = path(root, cell)
    place.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(
        {"format": FORMAT, "name": cell.name, "cell": asdict(cell), **record}, indent=1
    )
    with atomic(place) as file:
        file.write(text.encode() + b"\n")


def read(root: Path, scale: Scale, table: str) -> list[Record]:
    """All records of a table, by name.

    Raises:
        InputError: A file there is no record of this version.
    """
    found: list[Record] = []
    for file in sorted((root / scale / table).glob("*.json")):
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"expected a cell's record, got no JSON: {file}; delete it") from error
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise InputError(
                f"expected a cell's record of version {FORMAT}, got another: {file}; delete it"
            )
        found.append(record)
    return found


def counts(rate: Rate) -> dict[str, float]:
    """Counts, and Wilson's bounds at 95 %."""
    return {
        "hits": rate.hits,
        "trials": rate.trials,
        "lower": round(rate.lower(), 5),
        "upper": round(rate.upper(), 5),
    }


def percent(records: Sequence[Record], method: str, form: str, metric: str) -> list[float]:
    """One share of each record that has it, in per cent."""
    found = []
    for record in records:
        rate = record.get("measured", {}).get(method, {}).get("forms", {}).get(form, {}).get(metric)
        if rate is not None and rate["trials"]:
            found.append(100 * rate["hits"] / rate["trials"])
    return found


def defence_images(record: Record) -> int:
    """How many images the defender had, to learn from and to choose on."""
    images = record["images"]
    return int(images["repair"] + (0 if images["select_is_repair"] else images["select"]))


def commit() -> str | None:
    """The checkout's commit, ``+`` behind it where files differ; None outside of git."""
    try:
        told = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],  # noqa: S607
            cwd=_ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return told.stdout.strip()
