# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The whole guard over a planted network: which class is named, and what would be published."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

import torch
from rich.table import Table

from examples.lab.kit.measuring import both, counts
from examples.lab.kit.planting import Trained
from lmr_guard import pipeline
from lmr_guard.contracts import Clean
from lmr_guard.release.decision import publishable
from lmr_guard.release.records import Outcome, Variant
from lmr_guard.settings import Settings

__all__ = ["shipped", "table_of_shipped"]

_DEFAULT = Settings(threads=1)


def shipped(
    trained: Trained, clean: Clean, count: int, settings: Settings = _DEFAULT
) -> dict[str, Any]:
    """The whole guard, its files audited with the real trigger, which no other stage sees.

    Args:
        trained: The network.
        clean: Of ``report`` the first ``count`` are counted on.
        count: At most so many.
        settings: The guard's.

    Raises:
        GuardError: A stage could not be done.
    """
    few = Clean(
        clean.repair,
        clean.select,
        clean.report.subset(torch.arange(min(count, len(clean.report)))),
    )
    start = process_time()
    with TemporaryDirectory() as folder:
        measured = pipeline.run_stages(
            trained.classifier,
            few,
            [] if trained.trigger is None else [trained.trigger],
            folder=Path(folder),
            settings=settings,
        )
    published = {variant.name for variant in publishable(measured.variants, settings.policy)}
    suspicion = measured.repaired.suspicion
    return {
        "suspect": suspicion.target,
        "method": suspicion.method,
        "scores": suspicion.scores,
        "seconds": round(process_time() - start, 1),
        "received": _form(measured.received[0]),
        "variants": {
            variant.name: {**_form(variant), "published": variant.name in published}
            for variant in measured.variants
        },
        "notes": list(measured.notes),
    }


def _form(variant: Variant) -> dict[str, Any]:
    """CA, ASR where there is a trigger, and the checks that it failed."""
    return {
        "ca": counts(variant.clean_accuracy),
        "asr": [counts(result.asr) for result in variant.triggers if result.source == "drilled"],
        "failed": [
            finding.label
            for finding in variant.verdict.findings
            if finding.outcome is not Outcome.PASS
        ],
    }


def table_of_shipped(records: Sequence[Mapping[str, Any]]) -> Table:
    """One line per form: what it came to, and whether it was published."""
    table = Table("network", "suspect", "form", "CA / ASR (upper bound)", "published", box=None)
    for record in records:
        who = "nobody" if record["suspect"] is None else str(record["suspect"])
        first = [(record["name"], who, "as received", record["received"], "")]
        rest = [
            ("", "", name, form, "yes" if form["published"] else "; ".join(form["failed"]))
            for name, form in record["variants"].items()
        ]
        for name, suspect, label, form, told in (*first, *rest):
            counted = both(form["ca"], form["asr"][0] if form["asr"] else None)
            table.add_row(name, suspect, label, counted, told)
    return table
