# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""BadNets and the adaptive attack with the same patch, each put through the guard.

::

    python -m examples.lab.adaptive --out results.json
    python -m examples.lab.adaptive --show results.json

The attacker has 900 of scikit-learn's digits, the guard the other 897. Each network goes through
``pipeline.run_stages`` as a user's would, and once more with the attacker's class given, where the
guard had not named it. The README beside this file says what came out.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from examples.lab.adaptive import shared
from examples.lab.kit import command
from examples.lab.kit.measuring import counts, per_cent
from examples.lab.kit.networks import with_seed
from examples.lab.kit.planting import generator_of
from lmr_guard import demo, pipeline
from lmr_guard.classifier import Classifier
from lmr_guard.compress import recipes
from lmr_guard.contracts import Clean, Trigger
from lmr_guard.received.parts import divide
from lmr_guard.redteam import adaptive, badnets
from lmr_guard.redteam.catalogue import Plan, square
from lmr_guard.redteam.networks import digits_resnet
from lmr_guard.redteam.training import Planted, Schedule
from lmr_guard.release.environment import environment
from lmr_guard.release.records import Check, Outcome, Variant
from lmr_guard.settings import Settings

__all__ = ["ATTACKS", "main"]

ATTACKS = ("badnets", "adaptive")
_WIDE = 120
_DIGITS = 4
_FORMS = ("float32", "int8", "l1-0.4")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure or show, and return the exit code."""
    return command.answer(partial(_act, arguments), width=_WIDE, pieces="results")


def _act(arguments: Sequence[str] | None, console: Console) -> int:
    parser = command.parser("adaptive", __doc__)
    parser.add_argument("--out", type=Path, help="write the results here")
    parser.add_argument("--show", type=Path, help="print results that are there, measure nothing")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=ATTACKS)
    parser.add_argument("--tiny", action="store_true", help="too short to work, but quick")
    options = parser.parse_args(arguments)
    if options.show:
        document = shared.read(options.show)
    else:
        torch.set_num_threads(1)
        cases = [
            _case(attack, seed, tiny=options.tiny)
            for seed in options.seeds
            for attack in options.attacks
        ]
        document = {"cases": cases, "environment": environment()}
    if options.out:
        shared.write(document, options.out)
    return command.print_parts([_table(document["cases"])], console)


def _case(attack: str, seed: int, *, tiny: bool) -> dict[str, Any]:
    """One network of one attack, through the guard."""
    attackers, users = demo.digits(seed)
    target = (3 + 4 * seed) % 10
    epochs = 1 if tiny else 20
    schedule = Schedule(epochs=epochs, batch=64, shift=1)
    trigger = square(Plan(target=target, shape=shared.SHAPE, schedule=schedule), side=0.25)
    generator = generator_of(f"{attack} {seed}")
    start = perf_counter()
    planted: Planted
    if attack == "badnets":
        plain = badnets.BadNets(trigger=trigger, schedule=schedule)
        planted = badnets.plant(plain, _new_network(seed), attackers, generator)
    else:
        knowing = adaptive.Adaptive(trigger=trigger, schedule=schedule)
        planted = adaptive.plant(knowing, _new_network(seed), attackers, generator)
    middle = perf_counter()
    config = _config(seed, tiny=tiny)
    clean = divide(users, None, None, config.generator("split"))
    named = _guarded(planted.classifier, clean, trigger, config)
    given = named
    suspicion = named.repaired.suspicion
    if suspicion.target != target:
        known = replace(config, suspect=target, compare=False)
        given = _guarded(planted.classifier, clean, trigger, known)
    return {
        "attack": attack,
        "seed": seed,
        "target": target,
        "suspect": suspicion.target,
        "scores": suspicion.scores,
        "method": suspicion.method,
        "received": _forms(named.received, trigger.name),
        "named": _forms(named.variants, trigger.name),
        "given": _forms(given.variants, trigger.name),
        "seconds": {
            "planted": round(middle - start, 1),
            "guarded": round(perf_counter() - middle, 1),
        },
    }


def _new_network(seed: int) -> Classifier:
    return Classifier(with_seed(digits_resnet, seed), shared.SHAPE, 10)


def _config(seed: int, *, tiny: bool) -> Settings:
    config = Settings(
        recipes=recipes.parse(list(_FORMS), refit="none"),
        after_pruning=None,
        compare=True,
        seed=seed,
        threads=1,
    )
    return shared.brief(config) if tiny else config


def _guarded(
    model: Classifier, clean: Clean, trigger: Trigger, config: Settings
) -> pipeline.Measured:
    with TemporaryDirectory() as folder:
        return pipeline.run_stages(model, clean, [trigger], folder=Path(folder), settings=config)


def _forms(variants: Sequence[Variant], trigger: str) -> dict[str, Any]:
    """By form: CA, ASR, and the checks that failed it without knowing the trigger."""
    return {
        variant.name: {
            "ca": counts(variant.clean_accuracy, _DIGITS),
            "asr": counts(variant.triggers[0].asr, _DIGITS),
            "failed": [
                finding.label
                for finding in variant.verdict.findings
                if finding.outcome is Outcome.FAIL
                and (finding.check, finding.about) != (Check.ASR, trigger)
            ],
        }
        for variant in variants
    }


def _table(cases: Sequence[dict[str, Any]]) -> Table:
    table = Table("attack", "seed", "class", "named", "form", box=None)
    for column in ("received", "guard", "class given", "failed, trigger unknown"):
        table.add_column(column)
    for case in cases:
        for row in _rows(case):
            table.add_row(*row)
    return table


def _rows(case: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    suspect = "nobody" if case["suspect"] is None else str(case["suspect"])
    named = f"{suspect} ({max(case['scores']):.2f})"
    for form in _FORMS:
        failed = ", ".join(case["named"][form]["failed"]) or "nothing"
        shares = (_both(case[step][form]) for step in ("received", "named", "given"))
        yield (case["attack"], str(case["seed"]), str(case["target"]), named, form, *shares, failed)


def _both(form: dict[str, Any]) -> str:
    """CA and ASR in per cent."""
    ca, asr = (per_cent(form[of]) for of in ("ca", "asr"))
    return f"{ca:.1f} / {asr:.1f}"


if __name__ == "__main__":
    sys.exit(main())
