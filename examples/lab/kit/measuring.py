# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What several experiments measure in the same way."""

from collections.abc import Mapping
from time import perf_counter
from typing import Any

import torch

from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Labelled, Predictor, Rate, Trigger
from lmr_guard.localize import unlearning
from lmr_guard.measure import accuracy, against_trigger

__all__ = ["both", "counts", "name_by_unlearning", "per_cent", "rates", "synchronised"]

# The paper repeats localisation three times.
_RESTARTS = 3


def counts(rate: Rate, digits: int = 5) -> dict[str, float]:
    """Counts, and Wilson's bounds at 95 %, fractions of so many digits."""
    return {
        "hits": rate.hits,
        "trials": rate.trials,
        "lower": round(rate.lower(), digits),
        "upper": round(rate.upper(), digits),
    }


def per_cent(told: Mapping[str, float]) -> float:
    """The share that counts stand for; there must be trials."""
    return 100 * told["hits"] / told["trials"]


def rates(form: Predictor, images: Labelled, trigger: Trigger | None) -> dict[str, Any]:
    """Counts of CA as ``ca`` and, where there is a trigger, of ASR as ``asr``.

    Args:
        form: A network in eval mode, or a file.
        images: To count on.
        trigger: The attacker's.
    """
    told = {"ca": counts(accuracy(form, images))}
    if trigger is not None:
        told["asr"] = counts(against_trigger(form, images, trigger).asr)
    return told


def both(ca: Mapping[str, float], asr: Mapping[str, float] | None) -> str:
    """CA / ASR with its upper bound, per cent; CA alone where there is no trigger."""
    told = f"{per_cent(ca):.1f}"
    return told if asr is None else f"{told} / {per_cent(asr):.1f} ({100 * asr['upper']:.1f})"


def synchronised(device: str) -> float:
    """The time in seconds, after everything that the device was given is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return perf_counter()


def name_by_unlearning(
    classifier: Classifier, repair: Labelled, drawn: torch.Generator
) -> list[dict[str, Any]]:
    """The paper's localisation: the network as received, one rate, three restarts.

    Gradient ascent with batch statistics until chance accuracy; the class with the highest mean
    log-probability is named, whatever it is. The paper gives no rate: RNP's 0.01.

    Args:
        classifier: As received; not touched.
        repair: Clean images.
        drawn: CPU generator for the seeds of the restarts.

    Returns:
        Of each restart the class, the steps, and whether chance was reached.
    """
    config = unlearning.UnlearningSettings(batch=128, max_steps=200)
    runs = []
    for _ in range(_RESTARTS):
        seed = int(torch.randint(2**31, (1,), generator=drawn))
        logits, steps, reached = unlearning.unlearn(
            classifier, repair, config, lr=0.01, frozen_bn=False, seed=seed
        )
        named = unlearning.named_by(logits)
        runs.append({"class": named, "steps": steps, "reached_chance": reached})
    return runs
