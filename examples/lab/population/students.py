# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Would ``localize`` be right more often if it took off what a student shows as well?

Every form of a network is searched as ``localize`` does, and two students of it (``student``) as
the model as received. A class that is strange in both is so by nature. Read as the rule has it
today, with a student's strangeness taken off where it is above 1, and by the ratio of the two,
which also raises classes that are hard to reach by nature.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from time import process_time
from types import MappingProxyType
from typing import Any, Literal

import torch
from rich.console import RenderableType
from rich.text import Text
from torch import Tensor

from examples.lab.kit.records import Record
from examples.lab.kit.tables import framed_table
from examples.lab.population.planting import generator
from examples.lab.population.show import called
from examples.lab.population.student import StudentSettings, taught
from examples.lab.population.subjects import Subject
from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Labelled
from lmr_guard.localize import inversion
from lmr_guard.localize.drift import levelled
from lmr_guard.localize.inversion import InversionSettings, strangeness
from lmr_guard.localize.nearness import MOST, nearness
from lmr_guard.localize.searches import Search, recognised
from lmr_guard.localize.spaces import Space
from lmr_guard.measure import accuracy
from lmr_guard.settings import Settings
from lmr_guard.workshop import Structure, searched_forms

__all__ = ["READINGS", "ask_students", "render", "scores"]

_SPACES: tuple[Space, ...] = ("patch", "additive")
_KINDS: tuple[Literal["labels", "answers"], ...] = ("labels", "answers")
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
    for name, form in searched_forms(plain, subject.clean, config, Structure(plain)):
        if accuracy(form, repair).value >= least:
            model = config.working(form, repair)
            model = levelled(received, model, repair) if name.startswith(_CUT) else model
            found[name] = _sizes(model, repair, near, drawn, classes=classes, stages=(look, deep))
    searched, start = process_time() - start, process_time()
    small: dict[str, Any] = {"steps": 2, "batch": 2, "width": 2, "enough": 0.0}
    students: dict[str, dict[str, object] | None] = {}
    for by in _KINDS:
        settings = StudentSettings(by=by, **(small if subject.tiny else {}))
        student = taught(received, repair, settings, drawn)
        students[by] = None
        if student is not None:
            ones = torch.ones_like(near)
            students[by] = {
                "ca": accuracy(student, subject.clean.select).value,
                "sizes": _sizes(student, repair, ones, drawn, classes=classes, stages=(deep,)),
            }
    return {
        "classes": classes.tolist(),
        "nearness": [round(float(each), 3) for each in near],
        "sizes": found,
        "students": students,
        "settings": {"tiny": subject.tiny, "student": asdict(settings) | {"by": _KINDS}},
        "processor_seconds": {
            "searches": round(searched, 2),
            "students": round(process_time() - start, 2),
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


def _taken_off(strange: Tensor, near: Tensor, natural: Tensor) -> Tensor:
    return strange / near.maximum(natural.clamp(max=MOST))


def _ratio(strange: Tensor, _near: Tensor, natural: Tensor) -> Tensor:
    return strange / natural.clamp(1 / MOST, MOST)


READINGS: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = MappingProxyType(
    {"taken off": _taken_off, "ratio": _ratio}
)
"""How strangeness, nearness and a student's strangeness of classes make a score."""


def scores(record: Record, reading: str | None = None, by: str = "labels") -> Tensor | None:
    """The highest score of each class over forms and spaces.

    Args:
        record: Of ``ask_students``.
        reading: Of ``READINGS``; None for strangeness over nearness, as the rule has it today.
        by: What the student was told.

    Returns:
        Shape (K,), 0 for classes that were not searched; None where nobody was taught.
    """
    student = record["students"][by]
    if reading is not None and student is None:
        return None
    near = torch.tensor(record["nearness"])[record["classes"]]
    made = []
    for form in record["sizes"].values():
        for space, sizes in form.items():
            strange = strangeness(torch.tensor(sizes))
            if reading is None:
                made.append(strange / near)
            else:
                natural = strangeness(torch.tensor(student["sizes"][space]))
                made.append(READINGS[reading](strange, near, natural))
    highest = torch.zeros(len(record["nearness"]))
    highest[record["classes"]] = torch.stack(made).amax(dim=0)
    return highest


def render(records: Sequence[Record]) -> Iterator[RenderableType]:
    """Every calibration network, and what each reading is worth at the limit that honest ones set.

    With so few honest networks that limit is no estimate of anything; readings compare by it.
    """
    kept = [r for r in records if r["member"]["half"] == "calibration" and r["took"] is not False]
    ways: dict[str, Callable[[Record], Tensor | None]] = {"today": scores}
    ways |= {
        f"{by}, {reading}": partial(scores, reading=reading, by=by)
        for by in _KINDS
        for reading in READINGS
    }
    table = framed_table("calibration half", ["network"], tuple(ways))
    for record in kept:
        target = record["member"]["target"]
        table.add_row(
            called(record["member"]), *(_told(way(record), target) for way in ways.values())
        )
    yield table
    for name, way in ways.items():
        yield Text(f"{name}: {_worth([(r['member']['target'], way(r)) for r in kept])}")


def _worth(found: Sequence[tuple[int | None, Tensor | None]]) -> str:
    told = [(target, each) for target, each in found if each is not None]
    honest = [float(each.max()) for target, each in told if target is None]
    limit = max(honest, default=0.0)
    leads = [(t, each) for t, each in told if t is not None and int(each.argmax()) == t]
    above = sum(float(each[t]) > limit for t, each in leads)
    return (
        f"of {len(told) - len(honest)} backdoored networks {len(leads)} are led by the attacker's "
        f"class, {above} above the highest of {len(honest)} honest ones, {limit:.2f}"
    )


def _told(found: Tensor | None, target: int | None) -> str:
    if found is None:
        return "-"
    leading = int(found.argmax())
    most = f"{float(found[leading]):.2f} {leading}"
    return most if target is None else f"{most} ({float(found[target]):.2f} {target})"
