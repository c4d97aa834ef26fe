# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Two backdoors in one network: does one excuse the other, and do both come off?

::

    python -m examples.lab.adaptive.decoys --out decoys.json
    python -m examples.lab.adaptive.decoys --show decoys.json

What is strange in one class alone stands out, so an attacker may plant a second backdoor beside the
first. Each network of digits has a white square at one corner and a checkerboard at the other, to
two classes; ``pipeline.localize_and_repel`` gets it with default settings.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from examples.lab.adaptive import shared
from examples.lab.kit import command
from examples.lab.kit.measuring import counts, per_cent
from examples.lab.kit.networks import with_seed
from examples.lab.kit.planting import generator_of
from examples.lab.kit.provenance import commit, provenance
from lmr_guard import demo, pipeline
from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Labelled
from lmr_guard.evidence import Patch
from lmr_guard.measure import accuracy, against_trigger
from lmr_guard.received.parts import divide
from lmr_guard.redteam.networks import digits_resnet
from lmr_guard.redteam.poisoning import Poison, drawn, train
from lmr_guard.redteam.training import Schedule
from lmr_guard.settings import Settings

__all__ = ["main", "planted", "triggers"]

_SIDE, _RATE, _WIDE, _DIGITS = 4, 0.1, 120, 4


def triggers(seed: int) -> tuple[Patch, Patch]:
    """A white square near the lower right corner and a checkerboard near the upper left one."""
    squares = torch.arange(_SIDE)
    board = ((squares[:, None] + squares) % 2).float()[None]
    white, far = torch.ones(1, _SIDE, _SIDE), 16 - _SIDE - 1
    return (
        Patch(white, far, far, "white square", target=(3 + 4 * seed) % 10),
        Patch(board, 1, 1, "checkerboard", target=(7 + 4 * seed) % 10),
    )


def planted(seed: int, images: Labelled, *, tiny: bool = False) -> Classifier:
    """A network in which both triggers work.

    Args:
        seed: Of weights, poisoning and order; says the classes too.
        images: The attacker's.
        tiny: Whether it is trained too shortly to hold them.
    """
    generator = generator_of(f"decoys {seed}")
    model = Classifier(with_seed(digits_resnet, seed), shared.SHAPE, 10)
    poisons = [
        Poison(trigger, drawn(images.labels, _RATE, generator), trigger.target)
        for trigger in triggers(seed)
    ]
    train(model, images, poisons, Schedule(epochs=1 if tiny else 20, batch=64, shift=1), generator)
    return model


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure or show, and return the exit code."""
    return command.answer(partial(_act, arguments), width=_WIDE, pieces="results")


def _act(arguments: Sequence[str] | None, console: Console) -> int:
    parser = command.parser("adaptive.decoys", __doc__)
    parser.add_argument("--out", type=Path, help="write the results here")
    parser.add_argument("--show", type=Path, help="print results that are there, measure nothing")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4, 5])
    parser.add_argument("--tiny", action="store_true", help="too short to work, but quick")
    options = parser.parse_args(arguments)
    if options.show:
        document = shared.read(options.show)
    else:
        torch.set_num_threads(1)
        cases = [_case(seed, tiny=options.tiny) for seed in options.seeds]
        document = {"cases": cases, "environment": provenance(commit())}
    if options.out:
        shared.write(document, options.out)
    return command.print_parts([_table(document["cases"])], console)


def _case(seed: int, *, tiny: bool) -> dict[str, Any]:
    """One network: what was suspected, and what both triggers do before and after."""
    attackers, users = demo.digits(seed)
    model = planted(seed, attackers, tiny=tiny)
    settings = shared.brief(Settings(seed=seed)) if tiny else Settings(seed=seed)
    clean = divide(users, None, None, settings.generator("split"))
    repaired = pipeline.localize_and_repel(model, clean, settings)
    suspicion = repaired.suspicion

    def measured(state: Classifier) -> dict[str, Any]:
        hits = [against_trigger(state, clean.report, each).asr for each in triggers(seed)]
        asr = [counts(hit, _DIGITS) for hit in hits]
        return {"ca": counts(accuracy(state, clean.report), _DIGITS), "asr": asr}

    return {
        "seed": seed,
        "targets": [trigger.target for trigger in triggers(seed)],
        "suspects": list(suspicion.suspects),
        "scores": list(suspicion.scores),
        "method": suspicion.method,
        "received": measured(model),
        "repaired": measured(repaired.classifier),
    }


def _table(cases: Sequence[dict[str, Any]]) -> Table:
    table = Table("seed", "targets (scores)", "suspects", box=None)
    for column in ("received: CA / ASR, ASR", "repaired: CA / ASR, ASR"):
        table.add_column(column)
    for case in cases:
        targets = ", ".join(f"{k} ({case['scores'][k]:.2f})" for k in case["targets"])
        suspects = ", ".join(map(str, case["suspects"])) or "nobody"
        states = (_told(case[state]) for state in ("received", "repaired"))
        table.add_row(str(case["seed"]), targets, suspects, *states)
    return table


def _told(state: dict[str, Any]) -> str:
    asr = ", ".join(f"{per_cent(each):.1f}" for each in state["asr"])
    return f"{per_cent(state['ca']):.1f} / {asr}"


if __name__ == "__main__":
    sys.exit(main())
