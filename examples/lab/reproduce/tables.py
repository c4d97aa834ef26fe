# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Which cells each table and figure of the paper has.

Cells stand seed by seed, so that a run that is cut off has every row once before any row twice.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import torch

from examples.lab.reproduce.cells import Cell
from examples.lab.reproduce.data import DATASETS, Scale
from lmr_guard.errors import ConfigError

__all__ = [
    "CONDITIONAL",
    "FIGURES",
    "PAIRS",
    "RATIOS",
    "SHARES",
    "TABLES",
    "TRADITIONAL",
    "Plan",
    "awake",
    "cells",
    "folder",
]

TRADITIONAL = ("badnets", "trojan", "blend", "cl", "sig", "wanet", "dfst", "dynamic", "lira")
CONDITIONAL = ("qcb", "qcb_distilled", "pcb")
RATIOS = (0.2, 0.3, 0.4, 0.5, 0.6)
FIGURES = ("fig4", "fig5", "fig6", "fig7")
"""Drawings of one set of cells, called ``geometry``."""
PAIRS: Mapping[str, str] = MappingProxyType(
    {
        "resnet18": "cifar10",
        "vgg16": "cifar10",
        "mobilenet_v2": "cifar10",
        "vit": "imagenet12",
        "resnet34": "tiny100",
    }
)
"""The paper's network and data set pairs."""
SHARES: Mapping[Scale, tuple[float, ...]] = MappingProxyType(
    {
        "small": (0.02, 0.05, 0.1, 0.2, 0.4),
        "full": (0.0002, 0.001, 0.002, 0.006, 0.01, 0.02),
    }
)
"""Defence sets of figure 2. 900 digits are so few that the paper's shares would be no images."""

_TARGET = 1
_SMALL_TARGETS = (1, 4, 7)
_FULL_TARGETS = 30
_SMALL_SHARE = 0.4
_TABLE1 = ("badnets", "blend", "wanet", "lira")
_EVERYTHING = ("none", "rnp", "mnp", "finetune", "lmr", "lmr-paper")
_OURS = ("none", "lmr", "lmr-paper")
_RECOVERED = ("none", "lmr-recovered", "lmr-paper")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be run or shown.

    Args:
        scale: Slim networks and digits, or the paper's sizes.
        seeds: One cell for each.
        data: Data folder; decides about stand-ins at full scale.
    """

    scale: Scale
    seeds: Sequence[int] = (0, 1, 2)
    data: Path | None = None

    def dataset(self, stands_for: str) -> str:
        """The data set that is really used for one of the paper's."""
        if self.scale == "small":
            return "digits"
        missing = not DATASETS[stands_for].present(self.data)
        return "cifar10" if stands_for == "imagenet12" and missing else stands_for

    def cell(self, table: str, network: str, attack: str, seed: int, share: float) -> Cell:
        """A cell of the usual target; ``share`` is that of the full scale."""
        stands_for = PAIRS[network]
        return Cell(
            table=table,
            stands_for=stands_for,
            dataset=self.dataset(stands_for),
            network=network,
            attack=attack,
            target=_TARGET,
            seed=seed,
            scale=self.scale,
            share=_SMALL_SHARE if self.scale == "small" else share,
            forms=("float32", *awake(attack)),
        )


def awake(attack: str) -> tuple[str, ...]:
    """The compressed form in which a conditional backdoor is awake; empty for the others."""
    forms = {"qcb": ("int8",), "pcb": ("l1-0.4",)}
    return forms.get(attack.partition("_")[0], ())


def _pruned(*ratios: float) -> tuple[str, ...]:
    return ("float32", *(f"l1-{ratio:g}" for ratio in ratios))


def _table1(plan: Plan) -> Iterator[Cell]:
    for seed in plan.seeds:
        for network in ("vgg16", "mobilenet_v2", "vit", "resnet34"):
            for attack in _TABLE1:
                cell = plan.cell("table1", network, attack, seed, 0.01)
                yield replace(cell, methods=_OURS)


def _table2(plan: Plan) -> Iterator[Cell]:
    for seed in plan.seeds:
        for network, stands_for in PAIRS.items():
            classes = DATASETS[plan.dataset(stands_for)].classes
            for attack in (*TRADITIONAL, "qcb", "pcb"):
                for target in _targets(plan.scale, classes, seed):
                    cell = plan.cell("table2", network, attack, seed, 0.01)
                    yield replace(cell, target=target, methods=("none",), localize=True)


def _targets(scale: Scale, classes: int, seed: int) -> list[int]:
    """Every class, thirty random ones where there are more; at small scale another one per seed."""
    if scale == "small":
        return [_SMALL_TARGETS[seed % len(_SMALL_TARGETS)]]
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(0)).tolist()
    return sorted(order[:_FULL_TARGETS])


def _table3(plan: Plan) -> Iterator[Cell]:
    for seed in plan.seeds:
        for network in ("resnet18", "vgg16", "mobilenet_v2"):
            cell = plan.cell("table3", network, "pcb", seed, 0.02)
            yield replace(cell, methods=_RECOVERED, forms=_pruned(*RATIOS))


def _main(plan: Plan) -> Iterator[Cell]:
    for seed in plan.seeds:
        for attack in (*TRADITIONAL, *CONDITIONAL):
            cell = plan.cell("main", "resnet18", attack, seed, 0.01)
            yield replace(cell, methods=_EVERYTHING, suspect="localized")
    for seed in plan.seeds:
        for attack in TRADITIONAL:
            cell = plan.cell("main", "resnet34", attack, seed, 0.01)
            dataset = plan.dataset("imagenet12")
            cell = replace(cell, stands_for="imagenet12", dataset=dataset)
            yield replace(cell, methods=_EVERYTHING, suspect="localized")


def _fig2(plan: Plan) -> Iterator[Cell]:
    for seed in plan.seeds:
        for attack in ("badnets", "blend"):
            for share in SHARES[plan.scale]:
                cell = plan.cell("fig2", "resnet18", attack, seed, 0.01)
                yield replace(cell, share=share, methods=_OURS)


def _fig3(plan: Plan) -> Iterator[Cell]:
    for seed in plan.seeds:
        cell = plan.cell("fig3", "resnet18", "pcb", seed, 0.02)
        forms = _pruned(*(step / 10 for step in range(1, 10)))
        yield replace(cell, methods=_RECOVERED, forms=forms)


def _geometry(plan: Plan) -> Iterator[Cell]:
    for seed in plan.seeds:
        cell = plan.cell("geometry", "resnet18", "badnets", seed, 0.01)
        yield replace(cell, methods=_OURS[1:], geometry=True)


TABLES: Mapping[str, Callable[[Plan], Iterator[Cell]]] = MappingProxyType(
    {
        "table1": _table1,
        "table2": _table2,
        "table3": _table3,
        "main": _main,
        "fig2": _fig2,
        "fig3": _fig3,
        "geometry": _geometry,
    }
)
"""Tables by name."""


def folder(name: str) -> str:
    """The table whose cells a table or figure is made of.

    Raises:
        ConfigError: There is none of that name.
    """
    table = "geometry" if name in FIGURES else name
    if table not in TABLES:
        known = ", ".join((*TABLES, *FIGURES))
        raise ConfigError(f"expected a table among {known}, got {name!r}")
    return table


def cells(name: str, plan: Plan) -> list[Cell]:
    """All cells of a table or figure.

    Raises:
        ConfigError: There is none of that name.
    """
    return list(TABLES[folder(name)](plan))
