# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What the audit says of the files that a network would ship as, unrepaired and repaired.

Each network goes through ``pipeline.run_stages`` twice: once without repair, and, where it holds a
backdoor, once with the attacker's class given, so that what is measured is the audit and not
localize. The files are real, and so are their attack success rates in ONNX Runtime. What the audit
says of them it says without the trigger: ``against`` holds no finding that one was shown for.
"""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch

from examples.lab.kit.measuring import counts
from examples.lab.kit.planting import Trained
from examples.lab.population.plan import Member
from examples.lab.population.subjects import Subject
from lmr_guard import pipeline, repel
from lmr_guard.compress import recipes
from lmr_guard.contracts import Clean
from lmr_guard.localize import inversion, listening
from lmr_guard.release.records import Check, Outcome, Variant
from lmr_guard.settings import Settings

__all__ = ["UNSHOWN", "VARIANTS", "audit_files"]

VARIANTS = ("float32", "int8", "l1-0.3")

UNSHOWN = (Check.LISTENS, Check.EXCESS, Check.CHANCE, Check.AGREES)
"""Checks of what a file does under patterns that were searched for or drawn at random."""

_REPORTED = 1500


def audit_files(subject: Subject) -> dict[str, Any]:
    """One entry per file; the audit sees the reported images.

    Raises:
        GuardError: A step could not be done.
    """
    member, trained, clean = subject.member, subject.trained, subject.clean
    few = torch.arange(min(len(clean.report), _REPORTED))
    clean = replace(clean, report=clean.report.subset(few))
    config = _config(member, tiny=subject.tiny)
    start = perf_counter()
    files = list(_files("unrepaired", trained, clean, replace(config, repair=False)))
    middle = perf_counter()
    if member.target is not None:
        files += _files("repaired", trained, clean, replace(config, suspect=member.target))
    return {
        "files": files,
        "settings": {
            "tiny": subject.tiny,
            "audit": asdict(config.listening) if config.listening else None,
        },
        "seconds": {
            "unrepaired": round(middle - start, 1),
            "repaired": round(perf_counter() - middle, 1),
        },
    }


def _config(member: Member, *, tiny: bool) -> Settings:
    config = Settings(
        seed=member.seed,
        recipes=recipes.parse(list(VARIANTS)),
        listening=listening.ListeningSettings(refused=True),
        threads=1,
    )
    if not tiny:
        return config
    one = (inversion.InversionSettings(steps=1),)
    return replace(
        config,
        listening=listening.ListeningSettings(look=one, deep=one, images=60, refused=True),
        repel=repel.RepelSettings(lures=0, phase1_epochs=1, phase1_minimum=1, phase2_epochs=1),
        recipes=recipes.parse(["float32", "int8"]),
    )


def _files(
    repair: str, trained: Trained, clean: Clean, config: Settings
) -> Iterator[dict[str, Any]]:
    known = [] if trained.trigger is None else [trained.trigger]
    with TemporaryDirectory() as folder:
        measured = pipeline.run_stages(
            trained.classifier, clean, known, folder=Path(folder), settings=config
        )
    received = measured.received[0].clean_accuracy
    for variant in measured.variants:
        yield {
            "repair": repair,
            "variant": variant.name,
            "received": counts(received),
            "ca": counts(variant.clean_accuracy),
            **_search(variant),
        }


def _search(variant: Variant) -> dict[str, Any]:
    """The true ASR, where there is a trigger, and what was found without it."""
    return {
        "asr": counts(variant.shown[0].asr) if variant.shown else None,
        **_strangest(variant),
        "against": [
            {"check": finding.label, "outcome": finding.outcome.word}
            for finding in variant.verdict.findings
            if finding.check in UNSHOWN and finding.outcome is not Outcome.PASS
        ],
    }


def _strangest(variant: Variant) -> dict[str, Any]:
    """What the search of this very file came to; nothing strange where it could not be made."""
    for result in variant.triggers:
        if result.tried == "searched":
            return {
                "class": result.target,
                "strangeness": result.strangeness,
                "by": result.label,
                "reaches": counts(result.asr),
            }
    return {"class": None, "strangeness": 1.0, "by": None, "reaches": None}
