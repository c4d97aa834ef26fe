# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The paper's tables and ours side by side."""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from types import MappingProxyType

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from examples.lab.kit.records import Record
from examples.lab.reproduce import tables
from examples.lab.reproduce.cells import method_shares
from examples.lab.reproduce.rows import RECOVERED_MEANS, TITLES, empty_table, summary, where

__all__ = ["PARTS"]

_PAPER = Path(__file__).parent / "paper"
_OURS = ("none", "lmr", "lmr-paper")
_RECOVERED = ("lmr", "lmr-recovered", "lmr-paper")
_METRICS = {"CA": "ca", "ACC": "ca", "ASR": "asr", "TA": "ta"}


def _csv(name: str) -> list[dict[str, str]]:
    with (_PAPER / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _ours(records: Sequence[Record], form: str, metric: str) -> list[str]:
    return [summary(method_shares(records, method, form, metric)) for method in _OURS]


def _table1(title: str, records: Sequence[Record]) -> Iterator[RenderableType]:
    table = empty_table(
        title,
        *("network", "attack", "metric", "paper: none", "paper: LMR"),
        *(TITLES[method] for method in _OURS),
        "n",
    )
    columns = [name.removesuffix("_none") for name in _csv("table1")[0] if name.endswith("_none")]
    for column in columns:
        network = column.rpartition("_")[0].replace("mobilenetv2", "mobilenet_v2")
        for row in _csv("table1"):
            own = where(records, network=network, attack=row["attack"])
            paper = (row[f"{column}_none"], row[f"{column}_lmr"])
            ours = _ours(own, "float32", _METRICS[row["metric"]])
            table.add_row(network, row["attack"], row["metric"], *paper, *ours, str(len(own)))
    yield table
    yield Text(
        "In the paper the Blend rows of VGG16 and MobileNetV2 are the same to the last digit."
    )


def _table2(title: str, records: Sequence[Record]) -> Iterator[RenderableType]:
    attacks = [name for name in _csv("table2")[0] if name not in ("model", "dataset")]
    table = empty_table(title, "network", "who", *attacks)
    for row in _csv("table2"):
        own = [where(records, network=row["model"], attack=attack) for attack in attacks]
        table.add_row(row["model"], "paper, %", *(row[attack] for attack in attacks))
        table.add_row("", "guard, hits", *map(_guard_hits, own))
        table.add_row("", "unlearning, hits", *map(_plain_hits, own))
        table.add_row("", "attack took", *map(_took, own), end_section=True)
    yield table
    yield Text(
        "guard: localize on the network as received and its compressed forms, may abstain; "
        "unlearning: three restarts on the network as received, always names a class; took: ASR "
        "of 90 % or more in the form that wakes the attack."
    )


def _guard_hits(records: Sequence[Record]) -> str:
    return _of([record["localized"]["hit"] for record in records])


def _plain_hits(records: Sequence[Record]) -> str:
    return _of([r["cell"]["target"] == run["class"] for r in records for run in r["unlearning"]])


def _took(records: Sequence[Record]) -> str:
    awake = [method_shares([r], "none", r["cell"]["forms"][-1], "asr") for r in records]
    return _of([bool(asr) and asr[0] >= 90 for asr in awake])


def _of(hits: Sequence[bool]) -> str:
    return f"{sum(hits)}/{len(hits)}" if hits else "-"


def _table3(title: str, records: Sequence[Record]) -> Iterator[RenderableType]:
    metrics = ("ACC", "TA", "ASR")
    table = empty_table(
        title,
        *("network", "setting"),
        *(f"paper {metric}" for metric in metrics),
        *(f"{who} {metric}" for who in ("ours", "recovered", "as paper") for metric in metrics),
        "n",
    )
    for row in _csv("table3"):
        own = where(records, network=row["model"])
        repaired = row["setting"].startswith("lmr")
        form = f"l1-{float(row['sparsity']):g}" if row["sparsity"] else "float32"
        found = [
            summary(method_shares(own, method if repaired else "none", form, _METRICS[metric]))
            for method in _RECOVERED
            for metric in metrics
        ]
        setting = f"{row['setting']} {row['sparsity']}".strip()
        shown = found if repaired else [*found[:3], *[""] * 6]
        table.add_row(row["model"], setting, *(row[m] for m in metrics), *shown, str(len(own)))
    yield table
    yield Text(RECOVERED_MEANS)


def _main(title: str, records: Sequence[Record]) -> Iterator[RenderableType]:
    yield _averages(f"{title}; averages over attacks", records)
    table = empty_table(
        "each attack", "network", "attack", "form", "method", "CA", "ASR", "TA", "seconds", "n"
    )
    for network in ("resnet18", "resnet34"):
        for attack in (*tables.TRADITIONAL, *tables.CONDITIONAL):
            own = where(records, network=network, attack=attack)
            for form in ("float32", *tables.awake(attack)) if own else ():
                _add_methods(table, own, network, attack, form)
    yield table
    yield Text(
        "LMR repels the class that localize names, which was the target in "
        f"{_of([record['localized']['hit'] for record in records])} cells; finding it took "
        f"{summary([record['seconds']['localize'] for record in records])} s. rnp: threshold by "
        "clean accuracy; rnp-oracle: by the trigger, which no defender has. mnp: our reading of "
        "a paper without public code."
    )


def _add_methods(table: Table, own: Sequence[Record], network: str, attack: str, form: str) -> None:
    for method in own[0]["measured"]:
        rates = [
            summary(method_shares(own, method, form, metric)) for metric in ("ca", "asr", "ta")
        ]
        times = [r["measured"][method].get("seconds") for r in own if method in r["measured"]]
        seconds = summary([time for time in times if time is not None])
        table.add_row(network, attack, form, method, *rates, seconds, str(len(own)))


def _averages(title: str, records: Sequence[Record]) -> Table:
    """Means over networks: each attack's seeds first, then the attacks."""
    table = empty_table(
        title,
        *("setting", "metric", "paper: none", "none", "paper: RNP", "rnp", "rnp-oracle"),
        *("paper: MNP", "mnp", "finetune", "paper: LMR", "LMR", "LMR as in the paper", "attacks"),
    )
    for row in _csv("main_averages"):
        conditional = "conditional" in row["scenario"]
        network = "resnet34" if row["scenario"].startswith("resnet34") else "resnet18"
        attacks = tables.CONDITIONAL if conditional else tables.TRADITIONAL
        by_attack = [where(records, network=network, attack=attack) for attack in attacks]
        by_attack = [own for own in by_attack if own]
        ours = {
            method: _mean_of_means(by_attack, method, _METRICS[row["metric"]])
            for method in ("none", "rnp", "rnp-oracle", "mnp", "finetune", "lmr", "lmr-paper")
        }
        table.add_row(
            row["scenario"],
            row["metric"],
            *(row["none"], ours["none"]),
            *(row["rnp"], ours["rnp"], ours["rnp-oracle"]),
            *(row["mnp"], ours["mnp"], ours["finetune"]),
            *(row["lmr"], ours["lmr"], ours["lmr-paper"]),
            f"{len(by_attack)}/{len(attacks)}",
        )
    return table


def _mean_of_means(by_attack: Sequence[Sequence[Record]], method: str, metric: str) -> str:
    """In the form that wakes the attack, which is float32 for most."""
    found = [method_shares(own, method, own[0]["cell"]["forms"][-1], metric) for own in by_attack]
    means = [mean(values) for values in found if values]
    return f"{mean(means):.1f}" if means else "-"


PARTS: Mapping[str, Callable[[str, Sequence[Record]], Iterator[RenderableType]]] = MappingProxyType(
    {"table1": _table1, "table2": _table2, "table3": _table3, "main": _main}
)
"""What is printed of a title and records, by table."""
