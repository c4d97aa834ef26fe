# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What a refit after the cut does to table 3's networks, as received and repaired.

::

    python -m examples.lab.reproduce.refit --network resnet18 --seeds 0,1,2 --cache DIR

The backdoor sleeps until channels are cut. Each network is cut at 0.2 to 0.6: with shares by
annealing and new batch norm statistics, with the same channels gone and its layers refit, with
both, and as the guard does it: shares by damage, layers refit, then distilled. Clean accuracy, ASR
and processor time are printed, one JSON line per form; the first of the guard's forms counts the
measuring of damage for all.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from time import process_time
from typing import Any

import torch

from examples.lab.kit.cuts import cutter
from examples.lab.kit.measuring import counts
from examples.lab.reproduce import tables
from examples.lab.reproduce.cells import Cell
from examples.lab.reproduce.data import Reader, defence
from examples.lab.reproduce.planting import Planter, generator
from lmr_guard.classifier import Classifier
from lmr_guard.compress import prune
from lmr_guard.compress.groups import Groups
from lmr_guard.compress.recipes import PruneL1, Recipe
from lmr_guard.compress.refit import refit
from lmr_guard.compress.twins import twins
from lmr_guard.contracts import Clean
from lmr_guard.measure import accuracy, against_trigger
from lmr_guard.repel import RepelSettings, repel

__all__ = ["main", "measured"]

_RATIOS = (0.2, 0.3, 0.4, 0.5, 0.6)


def measured(cell: Cell, planter: Planter, *, tiny: bool = False) -> Iterator[dict[str, Any]]:
    """Clean accuracy and ASR of each form of one network.

    Args:
        cell: Of table 3.
        planter: Gives the backdoored network.
        tiny: Whether the repair is cut short, for the tests.

    Raises:
        GuardError: A step could not be done.
    """
    held = Reader(None).held(cell.dataset, cell.seed)
    clean = defence(held, cell.share, generator(cell, "defence"))
    trained = planter.plant(cell, held)
    assert trained.trigger is not None  # No network of table 3 is clean.
    trigger = trained.trigger
    settings = RepelSettings()
    if tiny:
        settings = replace(settings, phase1_epochs=1, phase1_minimum=1, phase2_epochs=1, lures=0)
    plain = [Recipe(), *(Recipe(prune=PruneL1(ratio=ratio)) for ratio in _RATIOS)]
    repaired, _ = repel(
        trained.classifier,
        cell.target,
        clean,
        settings=settings,
        generator=generator(cell, "lmr"),
        twins=twins(trained.classifier, plain),
    )
    for state, model in (("received", trained.classifier), ("repaired", repaired)):
        for form, after, classifier, seconds in _forms(cell, model, clean, tiny=tiny):
            yield {
                "network": cell.network,
                "seed": cell.seed,
                "state": state,
                "form": form,
                "after": after,
                "ca": counts(accuracy(classifier, clean.report)),
                "asr": counts(against_trigger(classifier, clean.report, trigger).asr),
                "seconds": seconds,
            }


def _forms(
    cell: Cell, model: Classifier, clean: Clean, *, tiny: bool
) -> Iterator[tuple[str, str, Classifier, float]]:
    """Label, what was done after the cut, the network, and what the refit took."""
    yield "float32", "nothing", model, 0.0
    groups, usually = Groups(model), cutter(model, clean)
    for ratio in _RATIOS:
        step, drawn = PruneL1(ratio=ratio, shares="calibrated"), generator(cell, "compress")
        plan = prune.plan(model, step, clean.select, drawn, groups=groups)
        cut = prune.apply(plan, model)
        start = process_time()
        fitted = refit(model, plan, clean.repair, drawn, groups=groups)
        seconds = round(process_time() - start, 2)
        label = Recipe(prune=step).label
        yield label, "batch norm", prune.reestimate_bn(cut, clean.repair), 0.0
        yield label, "refit", fitted, seconds
        yield label, "refit, batch norm", prune.reestimate_bn(fitted, clean.repair), seconds
        start = process_time()
        usual = PruneL1(ratio=ratio, distil=1) if tiny else PruneL1(ratio=ratio)
        default = usually.pruned(usual, groups, drawn).classifier
        yield label, "default", default, round(process_time() - start, 2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse arguments, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--network", choices=("resnet18", "vgg16", "mobilenet_v2"), required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--cache", type=Path, required=True, help="keeps trained networks")
    parser.add_argument("--tiny", action="store_true", help="too short to work, but quick")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    seeds = tuple(int(seed) for seed in options.seeds.split(","))
    planter = Planter(options.cache, "cpu", tiny=options.tiny)
    plan = tables.Plan(scale="small", seeds=seeds, data=None)
    for cell in tables.cells("table3", plan):
        if cell.network == options.network:
            for line in measured(cell, planter, tiny=options.tiny):
                print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
