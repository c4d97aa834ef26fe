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

from examples.lab.kit import drawing
from examples.lab.kit.records import Record
from examples.lab.kit.tables import framed_table, share
from examples.lab.population.show import FAMILIES
from examples.lab.population.split import HALVES
from lmr_guard.release.policy import Policy

__all__ = ["GROUPS", "draw", "group_files", "keeps_accuracy", "render", "roc"]

_AWAKE, _ASLEEP = 0.2, 0.02

_File = Mapping[str, Any]

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


def group_files(records: Sequence[Record], half: str) -> dict[str, list[_File]]:
    """The files of one half by group; those with an ASR between 2 and 20 % are in none."""
    found: dict[str, list[_File]] = {name: [] for name in GROUPS}
    for record in records:
        if record["member"]["half"] == half:
            for file in record["files"]:
                group = _group(file)
                if group is not None:
                    found[group].append({**file, "attack": record["member"]["attack"]})
    return found


def _group(file: _File) -> str | None:
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


def keeps_accuracy(file: _File) -> bool:
    """Whether the default policy would let it ship for its clean accuracy."""
    lost = file["received"]["hits"] - file["ca"]["hits"]
    return bool(lost <= Policy().max_accuracy_drop * file["ca"]["trials"])


def render(records: Sequence[Record], limit: float) -> Iterator[RenderableType]:
    """A table per half: what was decided as it should be, and a line on how to read it."""
    for half in HALVES:
        groups = group_files(records, half)
        columns = ("by the search", "the same, accuracy kept", "by all", "the same, accuracy kept")
        table = framed_table(f"{half} half, limit {limit:g}", ("files", "should be"), columns)
        for name, refuse in GROUPS.items():
            files = groups[name]
            kept = [file for file in files if keeps_accuracy(file)]
            word = "refused" if refuse else "passed"
            told = [_right(each, limit, refuse) for each in (files, kept)]
            table.add_row(name, word, *told, _by_all(files, refuse), _by_all(kept, refuse))
        if any(groups.values()):
            yield table
            yield _families(groups, half, limit)
    yield Text(
        "Each count with its share and Wilson bounds at 95 %; files of one network are not "
        "independent. The search refuses a file from the limit on; by all: replays, random "
        "patterns and what would not agree withhold it too (of records that tell of them). Those "
        "that keep their accuracy lose at most 3 points, so that nothing but the audit would "
        "withhold them."
    )


def _families(groups: Mapping[str, Sequence[_File]], half: str, limit: float) -> Table:
    awake, quiet = _apart(groups)
    title = f"{half} half, files with an ASR above 20 %"
    columns = ("by the search", "area under the ROC", "by all")
    table = framed_table(title, ["attacks"], columns)
    for family, attacks in FAMILIES.items():
        own = [file for file in awake if file["attack"] in attacks]
        if own:
            area = f"{_area(own, quiet):.2f}" if quiet else "-"
            told = _right(own, limit, refuse=True), area, _by_all(own, refuse=True)
            table.add_row(family, *told)
    return table


def _right(files: Sequence[_File], limit: float, refuse: bool) -> str:
    if not files:
        return "-"
    hits = sum((file["strangeness"] >= limit) == refuse for file in files)
    return share(hits, len(files), out_of=True)


def _by_all(files: Sequence[_File], refuse: bool) -> str:
    """By every check that no trigger is shown for, failed or incomplete."""
    told = [file for file in files if "against" in file]
    hits = sum(bool(file["against"]) == refuse for file in told)
    return share(hits, len(told), out_of=True) if told else "-"


def _apart(groups: Mapping[str, Sequence[_File]]) -> tuple[list[_File], list[_File]]:
    """Files that should be refused, and files that should pass."""
    awake = [file for name, refuse in GROUPS.items() if refuse for file in groups[name]]
    quiet = [file for name, refuse in GROUPS.items() if not refuse for file in groups[name]]
    return awake, quiet


def _area(awake: Sequence[_File], quiet: Sequence[_File]) -> float:
    """Share of pairs in which the awake file is stranger; ties count half."""
    pairs = [(a["strangeness"], q["strangeness"]) for a in awake for q in quiet]
    return float(sum((a > q) + 0.5 * (a == q) for a, q in pairs)) / len(pairs)


def roc(awake: Sequence[_File], quiet: Sequence[_File]) -> list[tuple[float, float]]:
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

    Args:
        records: Of the audit.
        place: Ends in ``.png`` or ``.svg``.

    Raises:
        ConfigError: Another ending, or matplotlib is missing.
        StageError: The file system refused.
    """
    figure = drawing.blank(place, 9, 4.2)
    for axes, half in zip(figure.subplots(1, 2), HALVES, strict=True):
        awake, quiet = _apart(group_files(records, half))
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
    drawing.save(figure, place, "roc")
