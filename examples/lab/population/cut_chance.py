# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What random patches and frames do to the cut forms that localize looks at, of the population."""

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import RenderableType

from examples.lab.kit.cut_forms import in_cuts, table_of_cut_forms
from examples.lab.kit.records import Record
from examples.lab.population.show import called
from examples.lab.population.split import HALVES
from examples.lab.population.subjects import Subject
from lmr_guard.settings import Settings

__all__ = ["ask_cut_chance", "render"]


def ask_cut_chance(subject: Subject) -> dict[str, Any]:
    """See ``cut_forms.in_cuts``."""
    found = in_cuts(subject.trained, subject.clean, Settings(seed=subject.member.seed))
    return {**found, "settings": {"tiny": subject.tiny}}


def render(records: Sequence[Record]) -> Iterator[RenderableType]:
    """The networks of each half, honest ones first, and what each of their cut forms falls to."""
    for half in HALVES:
        own = [record for record in records if record["member"]["half"] == half]
        told = [
            {
                **record,
                "called": called(record["member"]),
                "target": record["member"]["target"] if record["took"] else None,
            }
            for record in sorted(own, key=lambda each: each["took"] is not None)
        ]
        if told:
            yield table_of_cut_forms(f"{half} half", told)
