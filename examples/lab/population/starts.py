# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What a short and a long start are worth: every form of a network is searched from four starts.

``inversion.LOOK`` was chosen on what this prints of the calibration half: a first look has one
start in each space, and what it shows decides whether the others are made at all.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from time import process_time
from types import MappingProxyType
from typing import Any, Literal

import torch
from rich.console import RenderableType

from examples.lab.kit.records import Record
from examples.lab.kit.tables import framed_table, share
from examples.lab.population.planting import generator
from examples.lab.population.standing import RECORDED
from examples.lab.population.subjects import Subject
from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Labelled
from lmr_guard.localize import inversion
from lmr_guard.localize.drift import levelled
from lmr_guard.localize.inversion import InversionSettings, strangeness
from lmr_guard.localize.listening import ListeningSettings
from lmr_guard.localize.nearness import nearness
from lmr_guard.localize.searches import PATCHED, outstanding, reads_patches, recognised
from lmr_guard.localize.spaces import SPACES, Space
from lmr_guard.measure import accuracy
from lmr_guard.release.policy import Policy
from lmr_guard.settings import Settings
from lmr_guard.workshop import Structure, searched_forms

__all__ = ["LOOKS", "ask_starts", "heard", "render", "standing_out"]

_CUT = "l1-"
# Two short ones and two long ones; an additive pattern comes to the same from all.
_SHORT_START = InversionSettings(spaces=("patch", "warp"))
_LONG_START = InversionSettings(steps=100, batch=4)
_FOUR = (
    *2 * (_SHORT_START,),
    replace(_LONG_START, spaces=_SHORT_START.spaces),
    _LONG_START,
)
# Of the four starts of a space that depends on them the first of each kind.
_SHORT, _LONG = 0, 2
Look = Literal["short", "long", "long for patches", "all"]
LOOKS: Mapping[Look, Mapping[Space, Sequence[int]]] = MappingProxyType(
    {
        "short": {"patch": (_SHORT,), "warp": (_SHORT,)},
        "long": {"patch": (_LONG,), "warp": (_LONG,)},
        "long for patches": {"patch": (_LONG,), "warp": (_SHORT,)},
        "all": {"patch": range(4), "warp": range(4)},
    }
)
"""First looks by the starts that they make; ``"all"`` digs everywhere."""


def ask_starts(subject: Subject) -> dict[str, Any]:
    """Sizes of every class by every start, on the model as received and all its compressed forms.

    Raises:
        GuardError: A step could not be done.
    """
    member, repair = subject.member, subject.clean.repair
    config = Settings(seed=member.seed).within("thorough")
    starts = (InversionSettings(steps=1),) * 4 if subject.tiny else _FOUR
    plain = subject.trained.classifier.clone()
    received, drawn = config.working(plain, repair), generator(member, "starts")
    start, near = process_time(), nearness(received, repair)
    least = config.localize.min_accuracy * accuracy(plain, repair).value
    forms = {}
    named = [("received", plain)]
    named += searched_forms(plain, subject.clean, config, Structure(plain))
    for name, form in named:
        if accuracy(form, repair).value >= least:
            model = config.working(form, repair)
            model = levelled(received, model, repair) if name.startswith(_CUT) else model
            forms[name] = _sizes(model, repair, starts, drawn)
    return {
        "sizes": forms,
        "nearness": [round(float(each), 3) for each in near],
        "patched": reads_patches(received),
        "settings": {"tiny": subject.tiny},
        "processor_seconds": round(process_time() - start, 1),
    }


def _sizes(
    model: Classifier,
    images: Labelled,
    starts: Sequence[InversionSettings],
    drawn: torch.Generator,
) -> dict[str, Any]:
    known = recognised(model, images)
    classes = inversion.candidates(model, known, starts[0], drawn)
    found: dict[str, Any] = {"classes": classes.tolist()}
    for space in SPACES:
        made = [replace(each, spaces=(space,)) for each in starts if space in each.spaces]
        each = [
            inversion.invert(model, known, space, (one,), drawn, classes=classes).sizes
            for one in made
        ]
        found[space] = [[float(f"{size:.5g}") for size in sizes] for sizes in each]
    return found


def standing_out(record: Record, form: str, space: Space, starts: Sequence[int]) -> float:
    """How far the leading class of a form stands out by the least of some starts in a space."""
    found = record["sizes"][form]
    rows = torch.tensor(found[space])
    sizes = rows[-1] if len(rows) == 1 else rows[list(starts)].min(dim=0).values
    near = torch.tensor(record["nearness"])[torch.tensor(found["classes"])]
    counted = strangeness(sizes) ** RECORDED[space] / near
    return float(outstanding(counted).max()) / (PATCHED if record["patched"] else 1.0)


def heard(record: Record, form: str, look: Look) -> tuple[bool, int]:
    """Whether the search of a file would refuse a form, and the searches that were made again."""
    highest, again = 1.0, 0
    doubt = ListeningSettings().doubt
    for space in SPACES:
        first = standing_out(record, form, space, LOOKS[look].get(space, (-1,)))
        if first >= doubt or look == "all":
            again += 1
            first = standing_out(record, form, space, range(4))
        highest = max(highest, first)
    return highest >= Policy().max_strangeness, again


def render(records: Sequence[Record]) -> Iterator[RenderableType]:
    """For each first look: forms that are refused, and searches that were made again for it."""
    told = "Forms that a search of them refuses, and searches dug into, of three each"
    table = framed_table(told, ("half", "networks"), ("forms", *LOOKS))
    for half in ("calibration", "reported"):
        for word, group in (
            ("honest", [r for r in records if r["took"] is None]),
            ("backdoored", [r for r in records if r["took"]]),
        ):
            forms = [(r, f) for r in group if r["member"]["half"] == half for f in r["sizes"]]
            if not forms:
                continue
            cells = []
            for look in LOOKS:
                found = [heard(record, form, look) for record, form in forms]
                refused = share(sum(hit for hit, _ in found), len(forms))
                cells.append(f"{refused}; {sum(again for _, again in found)}")
            table.add_row(half, f"{word}, {_networks(forms)}", str(len(forms)), *cells)
    yield table


def _networks(forms: Sequence[tuple[Record, str]]) -> int:
    return len({record["name"] for record, _ in forms})
