# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What a refit after the cut does to table 3's networks, as received and repaired.

::

    python -m examples.lab.reproduce.refit --network resnet18 --seeds 0,1,2 --cache DIR

The backdoor sleeps until channels are cut. Each network is cut at 0.2 to 0.6, once with new batch
norm statistics and once with its layers refit; clean accuracy and ASR of both are printed, one JSON
line per form.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from examples.lab.kit.measuring import counts
from examples.lab.reproduce import tables
from examples.lab.reproduce.cells import Cell
from examples.lab.reproduce.data import Reader, defence
from examples.lab.reproduce.planting import Planter, generator
from lmr_guard.compress import recipes, sweep
from lmr_guard.compress.twins import twins
from lmr_guard.measure import accuracy, against_trigger
from lmr_guard.repel import RepelSettings, repel

__all__ = ["main", "measured"]

_LABELS = ("l1-0.2", "l1-0.3", "l1-0.4", "l1-0.5", "l1-0.6")


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
    plain = recipes.parse(("float32", *_LABELS), refit="none")
    settings = RepelSettings()
    if tiny:
        settings = replace(settings, phase1_epochs=1, phase1_minimum=1, phase2_epochs=1, lures=0)
    repaired, _ = repel(
        trained.classifier,
        cell.target,
        clean,
        settings=settings,
        generator=generator(cell, "lmr"),
        twins=twins(trained.classifier, plain),
    )
    for state, model in (("received", trained.classifier), ("repaired", repaired)):
        for refit in ("none", "layers"):
            chosen = [recipes.with_refit(recipe, refit) for recipe in plain]
            for form in sweep.torch_forms(model, chosen, clean, generator(cell, "compress")):
                asr = against_trigger(form.classifier, clean.report, trigger).asr
                yield {
                    "network": cell.network,
                    "seed": cell.seed,
                    "state": state,
                    "refit": refit,
                    "form": form.recipe.label,
                    "ca": counts(accuracy(form.classifier, clean.report)),
                    "asr": counts(asr),
                }


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
