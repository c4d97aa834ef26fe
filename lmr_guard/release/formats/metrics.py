# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""A report as flat names and numbers, for experiment trackers and whatever compares runs."""

import math
import re
from collections.abc import Iterator

from lmr_guard.contracts import Rate
from lmr_guard.release.formats.shared import as_json, named, untaken
from lmr_guard.release.records import Outcome, Variant
from lmr_guard.release.report import Report

__all__ = ["BEGINNING", "of", "values"]

BEGINNING = b'{\n  "lmr_guard_passed": '
"""What every such document begins with."""

_LONGEST = 200  # MLflow takes 250 characters
_NO_NAME = re.compile("[^0-9A-Za-z]+")


def of(report: Report) -> str:
    """``values`` as one flat JSON object."""
    return as_json(values(report))


def values(report: Report) -> dict[str, float]:
    """All finite numbers of a report that runs are compared by.

    ``lmr_guard_passed`` is 1 or 0, ``lmr_guard_verdict`` 0 pass, 1 incomplete, 2 fail, and
    ``lmr_guard_published`` the number of published files. Each variant, here ``int8``, has

    * ``ca_int8``, ``lower_ca_int8``: clean accuracy and its lower bound, in [0, 1];
    * ``asr_int8``: the highest attack success rate of any known trigger; absent where none was
      tried;
    * ``upper_asr_int8``: the highest upper bound, which is what the policy judges; 1 where none was
      tried;
    * ``strangeness_int8``: what a search for triggers came to; absent where there was none;
    * ``verdict_int8`` as above, and ``bytes_int8``.

    What is no letter or digit of a variant's name becomes ``_``: ``l1-0.4+int8`` is
    ``l1_0_4_int8``. No two variants share a name; the second gets ``_2``.
    """
    found = {
        "lmr_guard_passed": float(report.verdict is Outcome.PASS),
        "lmr_guard_verdict": float(report.verdict),
        "lmr_guard_published": float(len(report.published)),
    }
    taken: set[str] = set()
    for told, variant in named(report.variants):
        flat = _NO_NAME.sub("_", told).strip("_")[:_LONGEST] or "variant"
        name = untaken(flat, taken, "{base}_{count}")
        for measure, value in _measures(variant, report.policy.confidence):
            found[f"{measure}_{name}"] = float(value)
    return found


def _measures(variant: Variant, confidence: float) -> Iterator[tuple[str, float]]:
    """Names of which none is the beginning of another, up to an underscore."""
    yield "ca", variant.clean_accuracy.value
    yield "lower_ca", variant.clean_accuracy.lower(confidence)
    rates = [trigger.asr for trigger in variant.shown if trigger.asr.trials]
    if rates:
        yield "asr", max(rate.value for rate in rates)
    untried = [] if rates and len(rates) == len(variant.shown) else [Rate(0, 0)]
    yield "upper_asr", max(rate.upper(confidence) for rate in (*rates, *untried))
    if variant.strangeness is not None and math.isfinite(variant.strangeness):
        yield "strangeness", variant.strangeness
    yield "verdict", variant.verdict.outcome
    yield "bytes", variant.bytes
