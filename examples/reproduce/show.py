# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Paper and ours side by side, read from the records, and what is missing.

Per cent, the mean over seeds and in brackets the smallest and largest; ``n`` counts networks.
Nothing is computed that a reader could not compute from the JSON files.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from examples.reproduce import cells, draw, tables
from examples.reproduce.cells import Record, percent
from lmr_guard.errors import ConfigError
from lmr_guard.release.tables import table

__all__ = ["rendered", "summary"]

_PAPER = Path(__file__).parent / "paper"
_OURS = ("none", "lmr", "lmr-paper")
_RECOVERED = ("none", "lmr", "lmr-recovered", "lmr-paper")
_METRICS = {"CA": "ca", "ACC": "ca", "ASR": "asr", "TA": "ta"}
_LISTED = 12
_TITLES = {
    "none": "none",
    "lmr": "LMR",
    "lmr-recovered": "recovered",
    "lmr-paper": "LMR as in the paper",
}
_RECOVERED_MEANS = "recovered: LMR, and each pruned form repaired once more after the cut."


def rendered(
    name: str,
    plan: tables.Plan,
    results: Path,
    drawing: Path | None = None,
    method: str = "lmr",
) -> list[RenderableType]:
    """What ``show NAME`` prints; writes ``drawing`` where one is asked for.

    Args:
        name: A table or figure.
        plan: Scale and seeds that are expected.
        results: Results folder.
        drawing: File for a figure.
        method: Which LMR figures 4 to 7 are drawn of.

    Raises:
        ConfigError: There is none of that name, or nothing that can be drawn.
        InputError: A record is damaged.
    """
    table = tables.folder(name)
    seeds = set(plan.seeds)
    records = [r for r in cells.read(results, plan.scale, table) if r["cell"]["seed"] in seeds]
    if drawing is not None:
        if not records:
            raise ConfigError(f"expected records of {name} to draw, got none; run it first")
        draw.draw(name, records, drawing, method)
    title = f"{name}, {plan.scale} scale: {_data(records)}"
    return [
        *_PARTS[table](title, records),
        *_notes(records),
        _missing(tables.cells(name, plan), records),
    ]


def summary(values: Sequence[float]) -> str:
    """Mean, and the range where there are several; a dash where there is none."""
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{mean(values):.1f} ({min(values):.1f}-{max(values):.1f})"


def _csv(name: str) -> list[dict[str, str]]:
    with (_PAPER / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _where(records: Sequence[Record], **fields: object) -> list[Record]:
    return [r for r in records if all(r["cell"][k] == v for k, v in fields.items())]


def _ours(records: Sequence[Record], form: str, metric: str) -> list[str]:
    return [summary(percent(records, method, form, metric)) for method in _OURS]


def _table(title: str, *columns: str) -> Table:
    """Words stand to the left, numbers to the right."""
    words = {"network", "attack", "form", "metric", "method", "state", "setting", "who"}
    empty = table(title, ())
    for column in columns:
        justify = "left" if column in words else "right"
        empty.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
    return empty


def _table1(title: str, records: Sequence[Record]) -> Iterator[RenderableType]:
    table = _table(
        title,
        *("network", "attack", "metric", "paper: none", "paper: LMR"),
        *(_TITLES[method] for method in _OURS),
        "n",
    )
    columns = [name.removesuffix("_none") for name in _csv("table1")[0] if name.endswith("_none")]
    for column in columns:
        network = column.rpartition("_")[0].replace("mobilenetv2", "mobilenet_v2")
        for row in _csv("table1"):
            own = _where(records, network=network, attack=row["attack"])
            paper = (row[f"{column}_none"], row[f"{column}_lmr"])
            ours = _ours(own, "float32", _METRICS[row["metric"]])
            table.add_row(network, row["attack"], row["metric"], *paper, *ours, str(len(own)))
    yield table
    yield Text(
        "In the paper the Blend rows of VGG16 and MobileNetV2 are the same to the last digit."
    )


def _table2(title: str, records: Sequence[Record]) -> Iterator[RenderableType]:
    attacks = [name for name in _csv("table2")[0] if name not in ("model", "dataset")]
    table = _table(title, "network", "who", *attacks)
    for row in _csv("table2"):
        own = [_where(records, network=row["model"], attack=attack) for attack in attacks]
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
    awake = [percent([r], "none", r["cell"]["forms"][-1], "asr") for r in records]
    return _of([bool(asr) and asr[0] >= 90 for asr in awake])


def _of(hits: Sequence[bool]) -> str:
    return f"{sum(hits)}/{len(hits)}" if hits else "-"


def _table3(title: str, records: Sequence[Record]) -> Iterator[RenderableType]:
    metrics = ("ACC", "TA", "ASR")
    table = _table(
        title,
        *("network", "setting"),
        *(f"paper {metric}" for metric in metrics),
        *(f"{who} {metric}" for who in ("ours", "recovered", "as paper") for metric in metrics),
        "n",
    )
    for row in _csv("table3"):
        own = _where(records, network=row["model"])
        repaired = row["setting"].startswith("lmr")
        form = f"l1-{float(row['sparsity']):g}" if row["sparsity"] else "float32"
        found = [
            summary(percent(own, method if repaired else "none", form, _METRICS[metric]))
            for method in _RECOVERED[1:]
            for metric in metrics
        ]
        setting = f"{row['setting']} {row['sparsity']}".strip()
        shown = found if repaired else [*found[:3], *[""] * 6]
        table.add_row(row["model"], setting, *(row[m] for m in metrics), *shown, str(len(own)))
    yield table
    yield Text(_RECOVERED_MEANS)


def _main(title: str, records: Sequence[Record]) -> Iterator[RenderableType]:
    yield _averages(f"{title}; averages over attacks", records)
    table = _table(
        "each attack", "network", "attack", "form", "method", "CA", "ASR", "TA", "seconds", "n"
    )
    for network in ("resnet18", "resnet34"):
        for attack in (*tables.TRADITIONAL, *tables.CONDITIONAL):
            own = _where(records, network=network, attack=attack)
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
        rates = [summary(percent(own, method, form, metric)) for metric in ("ca", "asr", "ta")]
        times = [r["measured"][method].get("seconds") for r in own if method in r["measured"]]
        seconds = summary([time for time in times if time is not None])
        table.add_row(network, attack, form, method, *rates, seconds, str(len(own)))


def _averages(title: str, records: Sequence[Record]) -> Table:
    """Means over networks: each attack's seeds first, then the attacks."""
    table = _table(
        title,
        *("setting", "metric", "paper: none", "none", "paper: RNP", "rnp", "rnp-oracle"),
        *("paper: MNP", "mnp", "finetune", "paper: LMR", "LMR", "LMR as in the paper", "attacks"),
    )
    for row in _csv("main_averages"):
        conditional = "conditional" in row["scenario"]
        network = "resnet34" if row["scenario"].startswith("resnet34") else "resnet18"
        attacks = tables.CONDITIONAL if conditional else tables.TRADITIONAL
        by_attack = [_where(records, network=network, attack=attack) for attack in attacks]
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
    found = [percent(own, method, own[0]["cell"]["forms"][-1], metric) for own in by_attack]
    means = [mean(values) for values in found if values]
    return f"{mean(means):.1f}" if means else "-"


def _fig2(title: str, records: Sequence[Record]) -> Iterator[RenderableType]:
    table = _table(title, "attack", "images", *_method_columns(_OURS), "n")
    keys = sorted({(r["cell"]["attack"], r["cell"]["share"]) for r in records})
    for attack, share in keys:
        own = _where(records, attack=attack, share=share)
        used = cells.defence_images(own[0])
        rates = [
            summary(percent(own, method, "float32", metric))
            for method in _OURS
            for metric in ("ca", "asr")
        ]
        table.add_row(attack, f"{used} ({share:.2%})", *rates, str(len(own)))
    yield table


def _fig3(title: str, records: Sequence[Record]) -> Iterator[RenderableType]:
    table = _table(title, "form", *_method_columns(_RECOVERED), "n")
    for form in records[0]["cell"]["forms"] if records else ():
        rates = [
            summary(percent(records, method, form, metric))
            for method in _RECOVERED
            for metric in ("ca", "asr")
        ]
        table.add_row(form, *rates, str(len(records)))
    yield table
    yield Text(_RECOVERED_MEANS)


def _method_columns(methods: Sequence[str]) -> list[str]:
    return [f"{_TITLES[method]}: {metric}" for method in methods for metric in ("CA", "ASR")]


def _geometry(title: str, records: Sequence[Record]) -> Iterator[RenderableType]:
    table = _table(title, "method", "state", "lands in the target", "certified safe", "n")
    for method, first in records[0]["geometry"].items() if records else ():
        for state in first["states"]:
            found = [record["geometry"][method]["states"][state] for record in records]
            shares = [
                summary([100 * each[count]["hits"] / each[count]["trials"] for each in found])
                for count in ("lands", "certified")
            ]
            table.add_row(method, state, *shares, str(len(found)))
    yield table


_PARTS = {
    "table1": _table1,
    "table2": _table2,
    "table3": _table3,
    "main": _main,
    "fig2": _fig2,
    "fig3": _fig3,
    "geometry": _geometry,
}


def _data(records: Sequence[Record]) -> str:
    """What the networks saw, and for which data set of the paper it stands."""
    pairs = sorted({(r["cell"]["dataset"], r["cell"]["stands_for"]) for r in records})
    told = [used if used == meant else f"{used} in place of {meant}" for used, meant in pairs]
    return ", ".join(told) or "no cell yet"


def _notes(records: Sequence[Record]) -> Iterator[Text]:
    """What methods said of themselves, with the number of cells that they said it in."""
    said: dict[str, int] = {}
    for record in records:
        for method, told in record.get("measured", {}).items():
            if "note" in told:
                line = f"{method}: {told['note']}"
                said[line] = said.get(line, 0) + 1
    for line, count in sorted(said.items()):
        yield Text(f"{line} ({count} of {len(records)} cells)")


def _missing(wanted: Sequence[cells.Cell], records: Sequence[Record]) -> Text:
    """A cell on a stand-in is no missing one: what it stands for counts."""
    there = {_key(record["cell"]) for record in records}
    names = [cell.name for cell in wanted if _key(asdict(cell)) not in there]
    if not names:
        return Text(f"missing: none of {len(wanted)} cells")
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return Text(f"missing: {len(names)} of {len(wanted)} cells: {', '.join(names[:_LISTED])}{more}")


def _key(cell: Mapping[str, Any]) -> tuple[Any, ...]:
    names = ("stands_for", "network", "attack", "target", "seed", "share")
    return tuple(cell[name] for name in names)
