# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What random patterns do to the cut forms that localize looks at: the measurement behind its rule.

Each form is asked whether or not a search names somebody; ``localize`` asks only where none does.
"""

from collections.abc import Iterator, Mapping, Sequence
from time import process_time
from typing import Any

from rich.console import RenderableType

from examples.lab.kit.measuring import rates
from examples.lab.kit.records import Record
from examples.lab.kit.tables import framed_table
from examples.lab.population.show import called
from examples.lab.population.split import HALVES
from examples.lab.population.subjects import Subject
from lmr_guard.localize.chance import ask, met_in_cuts
from lmr_guard.measure import accuracy
from lmr_guard.results import Method, Suspicion
from lmr_guard.settings import Settings
from lmr_guard.workshop import Structure, searched_forms

__all__ = ["ask_cut_chance", "render"]


def ask_cut_chance(subject: Subject) -> dict[str, Any]:
    """Of each cut form: its CA and ASR, the share of accuracy it keeps, the record of its patterns.

    Raises:
        GuardError: A form could not be made.
    """
    settings, clean = Settings(seed=subject.member.seed), subject.clean
    model = subject.trained.classifier
    working = settings.working(model, clean.repair)
    own = accuracy(working, clean.repair).value
    found, forms = [], {}
    start = process_time()
    for name, form in searched_forms(working, clean, settings, Structure(model)):
        share = accuracy(form, clean.repair).value / own if own else 0.0
        if not name.startswith("l1") or share < settings.localize.min_accuracy:
            continue
        asked = ask([(name, form)], clean.repair, settings.generator("localize"))
        found += asked
        forms[name] = {
            **rates(form, clean.report, subject.trained.trigger),
            "share": round(share, 4),
            "chance": [each.record() for each in asked],
        }
    named = met_in_cuts(Suspicion(None, (), Method.INVERSION, 0.0), found).target
    return {"named": named, "forms": forms, "seconds": round(process_time() - start, 1)}


def render(records: Sequence[Record]) -> Iterator[RenderableType]:
    """The networks of each half, honest ones first, and what each of their cut forms falls to."""
    words = ("network", "attacker's", "named", "form", "by")
    for half in HALVES:
        own = [record for record in records if record["member"]["half"] == half]
        table = framed_table(f"{half} half", words, ("kept", "class", "carry", "most"))
        for record in sorted(own, key=lambda each: each["took"] is not None):
            who = record["member"]["target"] if record["took"] else None
            labels = (called(record["member"]), _class(who), _class(record["named"]))
            if not record["forms"]:
                table.add_row(*labels, "none keeps enough")
            for name, form in record["forms"].items():
                table.add_row(*labels, name, *_told(form))
                labels = ("", "", "")
        yield table


def _class(number: int | None) -> str:
    return "-" if number is None else str(number)


def _told(form: Mapping[str, Any]) -> tuple[str, ...]:
    kept = f"{form['share']:.2f}"
    if not form["chance"]:
        return "too few images", kept, "-", "-", "-"
    (told,) = form["chance"]
    carry = f"{told['carrying']['hits']}/{told['carrying']['trials']}"
    by = f"{told['kind']}, {told['look']}"
    return by, kept, str(told["class"]), carry, f"{told['share']:.2f}"
