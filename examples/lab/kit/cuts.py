# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What a cut costs a network as it was received, and what each way to make up for it gives back."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import process_time
from typing import Any, TypeVar

import torch
from rich.table import Table

from examples.lab.kit.measuring import counts, per_cent
from lmr_guard.classifier import Classifier
from lmr_guard.compress import prune
from lmr_guard.compress.damage import Damage, measured
from lmr_guard.compress.groups import Groups
from lmr_guard.compress.recipes import PruneL1, Shares
from lmr_guard.compress.refit import refit
from lmr_guard.compress.sweep import Cutter
from lmr_guard.contracts import Clean
from lmr_guard.measure import accuracy
from lmr_guard.redteam.training import Schedule, fit_clean
from lmr_guard.settings import Settings

__all__ = ["RATIOS", "WAYS", "cut", "cutter", "table_of_cuts"]

_Made = TypeVar("_Made")

RATIOS = (0.2, 0.3, 0.4, 0.5, 0.6)
WAYS: Mapping[str, str] = {
    "cut": "shares by annealing, nothing after the cut",
    "batch norm": "the same, batch norm statistics taken anew",
    "fine-tuned": "the same, then ten passes of SGD over the labelled images",
    "refit": "the same shares, layers refit",
    "shares": "shares by damage, layers refit",
    "default": "by damage or, where that is dear and they are nearer, by annealing; distilled",
}
_FINE = Schedule(epochs=10, lr=0.01, batch=64, shift=2, flip=True, weight_decay=5e-4)


@dataclass(frozen=True, slots=True, eq=False)
class _Uncut:
    """What all cuts of one network share.

    Args:
        model: As received.
        groups: Its structure.
        clean: The defender's images.
        damage: Of its groups.
        seconds: That measuring the damage took.
        cutter: Cuts as the guard does; measures the damage once more, at the first ratio.
    """

    model: Classifier
    groups: Groups
    clean: Clean
    damage: Damage
    seconds: float
    cutter: Cutter

    @classmethod
    def of(cls, model: Classifier, clean: Clean) -> "_Uncut":
        """Trace, and measure the damage."""
        groups, start = Groups(model), process_time()
        damage = measured(model, groups, clean.select, batch_statistics=True)
        seconds = round(process_time() - start, 1)
        return cls(model, groups, clean, damage, seconds, cutter(model, clean))

    def ways(self, ratio: float) -> Iterator[tuple[str, Classifier, float]]:
        """Of each of ``WAYS`` the network and its CPU seconds; ``damage`` counts once for all."""
        model, clean = self.model, self.clean
        drawn = torch.Generator().manual_seed(0)
        annealed, planning = _timed(lambda: self._plan(ratio, "calibrated", drawn))
        pruned = prune.apply(annealed, model)
        yield "cut", pruned, planning
        normed, seconds = _timed(lambda: prune.reestimate_bn(pruned, clean.repair))
        yield "batch norm", normed, planning + seconds
        tuned, seconds = _timed(lambda: fit_clean(pruned, clean.repair, _FINE, drawn))
        yield "fine-tuned", tuned, planning + seconds
        fitted, seconds = _timed(lambda: self._refit(annealed, drawn))
        yield "refit", fitted, planning + seconds
        spared, planning = _timed(lambda: self._plan(ratio, "damage", drawn))
        fitted, seconds = _timed(lambda: self._refit(spared, drawn))
        yield "shares", fitted, planning + seconds
        form, seconds = _timed(lambda: self.cutter.pruned(PruneL1(ratio=ratio), self.groups, drawn))
        yield "default", form.classifier, seconds

    def _plan(self, ratio: float, shares: Shares, drawn: torch.Generator) -> prune.PrunePlan:
        step = PruneL1(ratio=ratio, shares=shares)
        return prune.plan(
            self.model, step, self.clean.select, drawn, groups=self.groups, damage=self.damage
        )

    def _refit(self, plan: prune.PrunePlan, drawn: torch.Generator) -> Classifier:
        return refit(self.model, plan, self.clean.repair, drawn, groups=self.groups)


def cutter(model: Classifier, clean: Clean) -> Cutter:
    """Cuts a network as the guard does with default settings, in its precision too."""
    return Cutter(model, clean, working=partial(Settings().working, images=clean.repair))


def _timed(act: Callable[[], _Made]) -> tuple[_Made, float]:
    start = process_time()
    done = act()
    return done, process_time() - start


def cut(model: Classifier, clean: Clean, ratios: Sequence[float] = RATIOS) -> dict[str, Any]:
    """CA of one network, uncut and cut at each ratio in each of ``WAYS``, and CPU seconds.

    Nobody is suspected and nothing is repaired: the network may hold a backdoor, whose trigger
    nothing here sees.

    Args:
        model: As received.
        clean: ``repair`` is learnt from, ``select`` chosen on, ``report`` counted on.
        ratios: Shares of the channels.

    Raises:
        StageError: It cannot be cut.
    """
    uncut = _Uncut.of(model, clean)
    return {
        "images": len(clean.repair),
        "uncut": counts(accuracy(uncut.model, clean.report)),
        "damage_seconds": uncut.seconds,
        "cuts": {
            f"{ratio:g}": {
                way: {"ca": counts(accuracy(made, clean.report)), "seconds": round(seconds, 1)}
                for way, made, seconds in uncut.ways(ratio)
            }
            for ratio in ratios
        },
    }


def table_of_cuts(records: Sequence[Mapping[str, Any]]) -> Table:
    """Points of CA below the uncut network, and the CPU seconds of the slowest ratio."""
    table = Table("network", "uncut", "way", title="points below the uncut network", box=None)
    for ratio in RATIOS:
        table.add_column(f"{ratio:g}", justify="right")
    table.add_column("CPU s", justify="right")
    for record in records:
        whole = per_cent(record["uncut"])
        told = [record["name"], f"{whole:.1f}"]
        for way in WAYS:
            cells = [record["cuts"].get(f"{ratio:g}", {}).get(way) for ratio in RATIOS]
            lost = ["" if cell is None else f"{whole - per_cent(cell['ca']):.1f}" for cell in cells]
            slowest = max(cell["seconds"] for cell in cells if cell is not None)
            table.add_row(*told, way, *lost, f"{slowest:.0f}")
            told = ["", ""]
    return table
