# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""A planted network, what a defender has of it, and whether its attack took."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from examples.lab.kit.images import Held
from examples.lab.kit.measuring import rates
from examples.lab.kit.planting import Trained
from examples.lab.kit.provenance import provenance
from examples.lab.kit.records import Record
from examples.lab.population.images import defence, find
from examples.lab.population.plan import Member
from examples.lab.population.planting import generator
from lmr_guard.budgets import Budget
from lmr_guard.classifier import Classifier
from lmr_guard.compress import quantize, recipes, sweep
from lmr_guard.contracts import Clean
from lmr_guard.errors import StageError
from lmr_guard.received.ending import understood

__all__ = ["TOOK", "Subject", "prepare", "record"]

TOOK = 0.9
"""The ASR that an attack must reach in the form that wakes it."""

_BRIEF = 600
_FORMS = {"float32": "float32", "int8": "rounded-8", "pruned": "l1-0.4"}


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """One network that something is asked about.

    Args:
        member: Who it is.
        held: Who holds which images.
        trained: The network.
        clean: The defender's images, and those that rates are counted on.
        forms: Accuracy and, where there is a trigger, ASR of each form.
        took: Whether the attack took; None where the network is clean.
        tiny: Whether what is asked is cut short, for the tests.
        budget: Of the searches that are asked for.
    """

    member: Member
    held: Held
    trained: Trained
    clean: Clean
    forms: Mapping[str, Mapping[str, Any]]
    took: bool | None
    tiny: bool
    budget: Budget = "standard"


def prepare(
    member: Member,
    held: Held,
    trained: Trained,
    *,
    tiny: bool = False,
    brief: bool = False,
) -> Subject:
    """Draw the defender's images and measure each form.

    Args:
        member: Who it is.
        held: Its images.
        trained: The network.
        tiny: See ``Subject``.
        brief: Whether 600 images are enough to count on, and the form that wakes the backdoor.

    Raises:
        GuardError: A form cannot be measured.
    """
    clean = defence(held, find(member.dataset), generator(member, "defence"), tiny=tiny)
    if brief:
        first = torch.arange(min(_BRIEF, len(clean.report)))
        clean = replace(clean, report=clean.report.subset(first))
    model = understood(member.handed_over(trained.classifier), clean.select)
    trained = replace(trained, classifier=model)
    forms = {
        name: rates(form, clean.report, trained.trigger)
        for name, form in _forms(member, trained, clean, _wanted(trained, brief=brief))
    }
    took = None if member.attack is None else _took(forms, trained)
    return Subject(member, held, trained, clean, forms, took, tiny)


def record(
    subject: Subject, ask: Callable[[Subject], Mapping[str, Any]], commit: str | None
) -> Record:
    """The member's record: who it is, what was asked, and with which versions.

    Args:
        subject: See ``prepare``.
        ask: Gives what is the record's own.
        commit: Of the code.

    Raises:
        GuardError: ``ask`` could not be done.
    """
    return {
        "name": subject.member.name,
        "member": asdict(subject.member),
        "took": subject.took,
        **ask(subject),
        "environment": provenance(commit),
    }


def _wanted(trained: Trained, *, brief: bool) -> Collection[str]:
    """All forms, or the one that wakes the backdoor, if there is one."""
    if not brief:
        return _FORMS.values()
    return () if trained.trigger is None else (_FORMS[trained.record["wakes"]],)


def _forms(
    member: Member, trained: Trained, clean: Clean, wanted: Collection[str]
) -> Iterator[tuple[str, Classifier]]:
    """As received, with weights rounded to 8 bits, and with 40 % of the channels cut."""
    if "float32" in wanted:
        yield "float32", trained.classifier
    if "rounded-8" in wanted:
        yield "rounded-8", quantize.rounded(trained.classifier)
    if "l1-0.4" not in wanted:
        return
    drawn = generator(member, "compress")
    try:
        for form in sweep.torch_forms(
            trained.classifier, recipes.parse(["l1-0.4"], refit="none"), clean, drawn
        ):
            yield "l1-0.4", form.classifier
    except StageError:
        return  # A network that cannot be pruned has no such form.


def _took(forms: dict[str, dict[str, Any]], trained: Trained) -> bool:
    awake = forms.get(_FORMS[trained.record["wakes"]])
    return awake is not None and awake["asr"]["hits"] >= TOOK * awake["asr"]["trials"]
