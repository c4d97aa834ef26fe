# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What random patches and frames do to the cut forms that localize looks at.

Each form is asked whether or not a search names somebody; ``localize`` asks only where none does.
"""

from collections.abc import Mapping, Sequence
from time import process_time
from typing import Any

from rich.table import Table

from examples.lab.kit.measuring import rates
from examples.lab.kit.planting import Trained
from lmr_guard.contracts import Clean
from lmr_guard.localize.chance import LOCAL, ask, met_in_cuts
from lmr_guard.measure import accuracy
from lmr_guard.results import Method, Suspicion
from lmr_guard.settings import Settings
from lmr_guard.workshop import Structure, searched_forms

__all__ = ["in_cuts", "table_of_cut_forms"]


def in_cuts(trained: Trained, clean: Clean, settings: Settings) -> dict[str, Any]:
    """Who is named, and of each cut form its CA and ASR, the share of accuracy kept, the record.

    Args:
        trained: The network; its trigger counts, and is not seen by what names.
        clean: ``repair`` is what ``localize`` would see; rates are counted on ``report``.
        settings: The guard's.

    Raises:
        GuardError: A form could not be made.
    """
    start = process_time()
    model = settings.working(trained.classifier, clean.repair)
    own = accuracy(model, clean.repair).value
    found, forms = [], {}
    for name, form in searched_forms(model, clean, settings, Structure(trained.classifier)):
        share = accuracy(form, clean.repair).value / own if own else 0.0
        if not name.startswith("l1") or share < settings.localize.min_accuracy:
            continue
        drawn = settings.generator("localize")
        asked = ask([(name, form)], clean.repair, drawn, kinds=LOCAL)
        found += asked
        forms[name] = {
            **rates(form, clean.report, trained.trigger),
            "share": round(share, 4),
            "chance": [each.record() for each in asked],
        }
    named = met_in_cuts(Suspicion(None, (), Method.INVERSION, 0.0), found).target
    return {"named": named, "forms": forms, "seconds": round(process_time() - start, 1)}


def table_of_cut_forms(title: str, records: Sequence[Mapping[str, Any]]) -> Table:
    """What each cut form is carried to.

    Args:
        title: Above it.
        records: With ``called``, what a network is called, and ``target``, the attacker's class.
    """
    table = Table(
        "network",
        "target",
        "named",
        "form",
        "kept",
        "ASR",
        "class",
        "carry",
        "most",
        "by",
        title=title,
        box=None,
    )
    for record in records:
        labels = (record["called"], _class(record["target"]), _class(record["named"]))
        if not record["forms"]:
            table.add_row(*labels, "none keeps enough")
        for name, form in record["forms"].items():
            table.add_row(*labels, name, *_told(form))
            labels = ("", "", "")
    return table


def _class(number: int | None) -> str:
    return "-" if number is None else str(number)


def _told(form: Mapping[str, Any]) -> tuple[str, ...]:
    asr = "-" if "asr" not in form else f"{form['asr']['hits'] / form['asr']['trials']:.3f}"
    kept = f"{form['share']:.2f}"
    if not form["chance"]:
        return kept, asr, "-", "-", "-", "too few images"
    (told,) = form["chance"]
    carry = f"{told['carrying']['hits']}/{told['carrying']['trials']}"
    by = f"{told['kind']}, {told['look']}"
    return kept, asr, str(told["class"]), carry, f"{told['share']:.2f}", by
