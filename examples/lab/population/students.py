# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Would ``localize`` be right more often if it took off what a student shows as well?

Every form of a network is searched as ``localize`` does, and its ``student`` as the model as
received. A class that is strange in both is so by nature. Read three ways: as the rule has it
today, with the student's strangeness taken off where it is above 1, and by the ratio of the two,
which also raises classes that are hard to reach by nature.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from time import process_time
from types import MappingProxyType
from typing import Any

import torch
from rich.console import RenderableType
from rich.text import Text
from torch import Tensor

from examples.lab.kit.records import Record
from examples.lab.kit.tables import framed_table
from examples.lab.population.planting import generator
from examples.lab.population.student import StudentSettings, taught
from examples.lab.population.subjects import Subject
from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Labelled
from lmr_guard.localize import inversion
from lmr_guard.localize.drift import levelled
from lmr_guard.localize.inversion import InversionSettings, Space, strangeness
from lmr_guard.localize.nearness import MOST, nearness
from lmr_guard.localize.searches import Search, recognised
from lmr_guard.measure import accuracy
from lmr_guard.settings import Settings
from lmr_guard.workshop import Structure, searched_forms

__all__ = ["READINGS", "ask_students", "render", "scores"]

_SPACES: tuple[Space, ...] = ("patch", "additive")
_CUT = "l1-"
# From which on a first look at a form is followed.
_FOLLOWED = 1.6


def ask_students(subject: Subject) -> dict[str, Any]:
    """Sizes of every class on the forms of a network and on its student.

    Raises:
        GuardError: A step could not be done.
    """
    member, repair = subject.member, subject.clean.repair
    config, one = Settings(seed=member.seed), (InversionSettings(steps=1),)
    look, deep = (one, one) if subject.tiny else (inversion.LOOK, inversion.DEEP)
    plain = subject.trained.classifier.clone()
    received = config.working(plain, repair)
    drawn, near = generator(member, "students"), nearness(received, repair)
    start = process_time()
    classes = inversion.candidates(received, recognised(received, repair), look[0], drawn)
    found = {"received": _sizes(received, repair, near, drawn, classes=classes, stages=(deep,))}
    least = config.localize.min_accuracy * accuracy(plain, repair).value
    for name, form in searched_forms(plain, subject.clean, config.recipes, Structure(plain)):
        if accuracy(form, repair).value >= least:
            model = config.working(form, repair)
            model = levelled(received, model, repair) if name.startswith(_CUT) else model
            found[name] = _sizes(model, repair, near, drawn, classes=classes, stages=(look, deep))
    searched, start = process_time() - start, process_time()
    settings = StudentSettings()
    if subject.tiny:
        settings = StudentSettings(steps=2, batch=2, width=2, enough=0.0)
    student = taught(received, repair, settings, drawn)
    told = None
    if student is not None:
        plain_near = torch.ones_like(near)
        told = {
            "ca": accuracy(student, subject.clean.select).value,
            "sizes": _sizes(student, repair, plain_near, drawn, classes=classes, stages=(deep,)),
        }
    return {
        "classes": classes.tolist(),
        "nearness": [round(float(each), 3) for each in near],
        "sizes": found,
        "student": told,
        "settings": {"tiny": subject.tiny, "student": asdict(settings)},
        "processor_seconds": {
            "searches": round(searched, 2),
            "student": round(process_time() - start, 2),
        },
    }


def _sizes(
    model: Classifier,
    images: Labelled,
    near: Tensor,
    drawn: torch.Generator,
    *,
    classes: Tensor,
    stages: Sequence[Sequence[InversionSettings]],
) -> dict[str, list[float]]:
    """Of each space what the last stage came to that was made."""
    known = recognised(model, images)
    found: dict[str, list[float]] = {}
    for space in _SPACES:
        search = Search("it", model, known, space, classes, near)
        for stage in stages:
            if not search.found or search.score >= _FOLLOWED:
                search.add(stage, drawn)
        found[space] = [float(f"{size:.4g}") for size in search.found[-1].sizes]
    return found


# --- reading ------------------------------------------------------------------------------------


def _today(strange: Tensor, near: Tensor, _natural: Tensor) -> Tensor:
    return strange / near


def _taken_off(strange: Tensor, near: Tensor, natural: Tensor) -> Tensor:
    return strange / near.maximum(natural.clamp(max=MOST))


def _ratio(strange: Tensor, _near: Tensor, natural: Tensor) -> Tensor:
    return strange / natural.clamp(1 / MOST, MOST)


READINGS: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = MappingProxyType(
    {"today": _today, "taken off": _taken_off, "ratio": _ratio}
)
"""How strangeness, nearness and the student's strangeness of classes make a score."""


def scores(record: Record, reading: str) -> Tensor | None:
    """The highest score of each class over forms and spaces; None where nobody was taught."""
    if record["student"] is None:
        return None
    near = torch.tensor(record["nearness"])[record["classes"]]
    made = [
        READINGS[reading](
            strangeness(torch.tensor(sizes)),
            near,
            strangeness(torch.tensor(record["student"]["sizes"][space])),
        )
        for form in record["sizes"].values()
        for space, sizes in form.items()
    ]
    highest = torch.zeros(len(record["nearness"]))
    highest[record["classes"]] = torch.stack(made).amax(dim=0)
    return highest


def render(records: Sequence[Record]) -> Iterator[RenderableType]:
    """Every calibration network, and what each reading is worth at the limit that honest ones set.

    With so few honest networks that limit is no estimate of anything; readings compare by it.
    """
    kept = [r for r in records if r["member"]["half"] == "calibration" and r["took"] is not False]
    table = framed_table("calibration half", ["network"], tuple(READINGS))
    for record in kept:
        table.add_row(_name(record), *(_told(record, reading) for reading in READINGS))
    yield table
    for reading in READINGS:
        yield Text(_worth(kept, reading))


def _worth(records: Sequence[Record], reading: str) -> str:
    honest, right = [], []
    for record in records:
        found, target = scores(record, reading), record["member"]["target"]
        if found is not None and target is None:
            honest.append(float(found.max()))
        elif found is not None:
            right.append(float(found[target]) if int(found.argmax()) == target else 0.0)
    limit = max(honest, default=0.0)
    above = sum(value > limit for value in right)
    return (
        f"{reading}: of {len(right)} backdoored networks {sum(v > 0 for v in right)} are led by "
        f"the attacker's class, {above} above the highest of {len(honest)} honest ones, {limit:.2f}"
    )


def _name(record: Record) -> str:
    m = record["member"]
    return f"{m['dataset']} {m['network']} {m['attack'] or 'honest'} s{m['seed']}"


def _told(record: Record, reading: str) -> str:
    found, target = scores(record, reading), record["member"]["target"]
    if found is None:
        return "-"
    leading = int(found.argmax())
    most = f"{float(found[leading]):.2f} for {leading}"
    return most if target is None else f"{most}; {float(found[target]):.2f} for its {target}"
