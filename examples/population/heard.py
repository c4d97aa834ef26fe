# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Counts over the audit's records, at one limit and at all of them (ROC)."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from examples.population.halves import HALVES
from examples.population.records import Record
from examples.population.show import FAMILIES
from lmr_guard.contracts import Rate
from lmr_guard.files import atomic
from lmr_guard.release.policy import Policy

__all__ = ["GROUPS", "draw", "grouped", "rendered", "roc"]

_AWAKE, _ASLEEP = 0.2, 0.02

GROUPS: Mapping[str, bool] = MappingProxyType(
    {
        "unrepaired, ASR above 20 %": True,
        "repaired, ASR still above 20 %": True,
        "clean network": False,
        "repaired, ASR below 2 %": False,
        "unrepaired and asleep, ASR below 2 %": False,
    }
)
"""Files by what they do, and whether they are to be refused."""


def grouped(records: Sequence[Record], half: str) -> dict[str, list[Mapping[str, Any]]]:
    """The files of one half by group; those with an ASR between 2 and 20 % are in none."""
    found: dict[str, list[Mapping[str, Any]]] = {name: [] for name in GROUPS}
    for record in records:
        if record["member"]["half"] == half:
            for file in record["files"]:
                group = _group(file)
                if group is not None:
                    found[group].append({**file, "attack": record["member"]["attack"]})
    return found


def _group(file: Mapping[str, Any]) -> str | None:
    if file["asr"] is None:
        return "clean network"
    rate, repair = file["asr"]["hits"] / file["asr"]["trials"], file["repair"]
    if rate > _AWAKE:
        still = "still " if repair == "repaired" else ""
        return f"{repair}, ASR {still}above 20 %"
    if rate < _ASLEEP:
        return (
            f"{repair}, ASR below 2 %"
            if repair == "repaired"
            else ("unrepaired and asleep, ASR below 2 %")
        )
    return None


def keeps_accuracy(file: Mapping[str, Any]) -> bool:
    """Whether the default policy would let it ship for its clean accuracy."""
    lost = file["received"]["hits"] - file["ca"]["hits"]
    return bool(lost <= Policy().max_accuracy_drop * file["ca"]["trials"])


def rendered(records: Sequence[Record], limit: float) -> Iterator[RenderableType]:
    """A table a half: what was decided as it should be, and a line on how to read it."""
    for half in HALVES:
        groups = grouped(records, half)
        table = Table(title=f"{half} half, limit {limit:g}", title_justify="left")
        for column in ("files", "should be", "all", "those that keep their accuracy"):
            table.add_column(
                column, justify="left" if column in ("files", "should be") else "right"
            )
        for name, refuse in GROUPS.items():
            files = groups[name]
            kept = [file for file in files if keeps_accuracy(file)]
            word = "refused" if refuse else "passed"
            table.add_row(name, word, *(_right(each, limit, refuse) for each in (files, kept)))
        if any(groups.values()):
            yield table
            yield _families(groups, half, limit)
    yield Text(
        "Each count with its share and Wilson bounds at 95 %; files of one network are not "
        "independent. A file is refused from the limit on. Those that keep their accuracy lose at "
        "most 3 points, so that nothing but the audit would withhold them."
    )


def _families(groups: Mapping[str, Sequence[Mapping[str, Any]]], half: str, limit: float) -> Table:
    awake = [file for name, refuse in GROUPS.items() if refuse for file in groups[name]]
    quiet = [file for name, refuse in GROUPS.items() if not refuse for file in groups[name]]
    table = Table(title=f"{half} half, files with an ASR above 20 %", title_justify="left")
    for column in ("attacks", "refused", "area under the ROC"):
        table.add_column(column, justify="left" if column == "attacks" else "right")
    for family, attacks in FAMILIES.items():
        own = [file for file in awake if file["attack"] in attacks]
        if own:
            area = f"{_area(own, quiet):.2f}" if quiet else "-"
            table.add_row(family, _right(own, limit, refuse=True), area)
    return table


def _right(files: Sequence[Mapping[str, Any]], limit: float, refuse: bool) -> str:
    if not files:
        return "-"
    hits = sum((file["strangeness"] >= limit) == refuse for file in files)
    rate = Rate(hits, len(files))
    return f"{hits}/{len(files)}  {rate.value:4.0%} [{rate.lower():.0%}, {rate.upper():.0%}]"


def _area(awake: Sequence[Mapping[str, Any]], quiet: Sequence[Mapping[str, Any]]) -> float:
    """Share of pairs in which the awake file is stranger; ties count half."""
    pairs = [(a["strangeness"], q["strangeness"]) for a in awake for q in quiet]
    return float(sum((a > q) + 0.5 * (a == q) for a, q in pairs)) / len(pairs)


def roc(
    awake: Sequence[Mapping[str, Any]], quiet: Sequence[Mapping[str, Any]]
) -> list[tuple[float, float]]:
    """Shares of quiet and of awake files refused, over all limits, from none to all.

    Args:
        awake: Files that should be refused; at least one.
        quiet: Files that should pass; at least one.
    """
    limits = sorted({file["strangeness"] for file in (*awake, *quiet)}, reverse=True)
    return [(0.0, 0.0)] + [
        (
            sum(file["strangeness"] >= limit for file in quiet) / len(quiet),
            sum(file["strangeness"] >= limit for file in awake) / len(awake),
        )
        for limit in limits
    ]


def draw(records: Sequence[Record], place: Path) -> None:
    """The ROC of each half and, in the reported one, of each attack family.

    Raises:
        StageError: The file system refused.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    for axes, half in zip(figure.subplots(1, 2), HALVES, strict=True):
        groups = grouped(records, half)
        awake = [file for name, refuse in GROUPS.items() if refuse for file in groups[name]]
        quiet = [file for name, refuse in GROUPS.items() if not refuse for file in groups[name]]
        axes.set(title=f"{half} half", xlabel="quiet files refused", xlim=(-0.02, 1.02))
        axes.set(ylabel="awake files refused", ylim=(-0.02, 1.02))
        lines = {"all": awake} | {
            family: [file for file in awake if file["attack"] in attacks]
            for family, attacks in FAMILIES.items()
        }
        for name, files in lines.items():
            if files and quiet:
                xs, ys = zip(*roc(files, quiet), strict=True)
                label = f"{name} ({len(files)})"
                axes.step(xs, ys, where="post", label=label, linewidth=2 if name == "all" else 1)
        if axes.lines:
            axes.legend(fontsize=7, loc="lower right")
    with atomic(place) as file:
        figure.savefig(file, format=place.suffix.removeprefix("."))
