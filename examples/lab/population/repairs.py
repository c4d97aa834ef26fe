# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What a repair costs and leaves over all families, where the attacker's class is given.

Counted are CA and ASR of the network as received and repaired, in float32, with weights rounded to
8 bits, and with 30 % of the channels cut by the default recipe. No trigger is visible to the repair
or to the cut.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from statistics import median
from time import process_time
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from examples.lab.kit.measuring import both, per_cent, rates
from examples.lab.kit.records import Record
from examples.lab.kit.tables import framed_table
from examples.lab.population.planting import generator
from examples.lab.population.show import called
from examples.lab.population.split import HALVES
from examples.lab.population.subjects import Subject
from lmr_guard.classifier import Classifier
from lmr_guard.compress import quantize, recipes, sweep
from lmr_guard.errors import ConfigError, StageError
from lmr_guard.repel import RepelSettings, repel
from lmr_guard.settings import Settings
from lmr_guard.workshop import Structure, repair_twins

__all__ = ["ask_repair", "render"]

_CUT = "l1-0.3"
_FORMS = ("float32", "rounded-8", _CUT)


def ask_repair(subject: Subject) -> dict[str, Any]:
    """Repel the attacker's class and measure both states.

    Raises:
        ConfigError: An honest network, which has no such class.
        GuardError: The repair could not be done.
    """
    member, clean = subject.member, subject.clean
    if member.target is None:
        raise ConfigError(f"expected a backdoored network, got {member.name}")
    model, chosen = subject.trained.classifier, Settings().recipes
    short: dict[str, Any] = {"lure_steps": 1, "pass_steps": 1, "phase2_epochs": 1}
    settings = RepelSettings(**(short if subject.tiny else {}))
    start = process_time()
    after, record = repel(
        model,
        member.target,
        clean,
        settings=settings,
        generator=generator(member, "repair"),
        twins=repair_twins(model, chosen, Structure(model)),
    )
    seconds = round(process_time() - start, 1)
    return {
        "received": _forms(subject, model),
        "repaired": _forms(subject, after),
        "history": record.history,
        "settings": {"tiny": subject.tiny, "repel": asdict(settings)},
        "processor_seconds": seconds,
    }


def _forms(subject: Subject, model: Classifier) -> dict[str, Any]:
    """Counts of each form; a network that cannot be cut has no such form."""
    clean, trigger = subject.clean, subject.trained.trigger
    forms = {"float32": model, "rounded-8": quantize.rounded(model)}
    drawn = generator(subject.member, "cut")
    try:
        for form in sweep.torch_forms(model, recipes.parse([_CUT]), clean, drawn):
            forms[_CUT] = form.classifier
    except StageError:
        pass
    return {name: rates(form, clean.report, trigger) for name, form in forms.items()}


def render(records: Sequence[Record]) -> Iterator[RenderableType]:
    """A line per network whose attack took, and what each half comes to."""
    for half in HALVES:
        own = [r for r in records if r["took"] and r["member"]["half"] == half]
        if own:
            columns = ("received float32", *_FORMS, "CPU s")
            title = f"{half} half, CA / ASR (upper bound), per cent"
            table = framed_table(title, ["network"], columns, wrap=False)
            for record in own:
                told = (_told(record["repaired"].get(form)) for form in _FORMS)
                first, spent = _told(record["received"]["float32"]), record["processor_seconds"]
                table.add_row(called(record["member"]), first, *told, f"{spent:.0f}")
            yield table
            yield Text(f"{half} half: " + "; ".join(_summed(own, form) for form in _FORMS))


def _summed(records: Sequence[Record], form: str) -> str:
    """Points lost against the received float32 network, and how often the attack is down."""
    pairs = [
        (r["received"]["float32"], r["repaired"][form]) for r in records if form in r["repaired"]
    ]
    if not pairs:
        return f"{form}: none"
    lost = [per_cent(before["ca"]) - per_cent(after["ca"]) for before, after in pairs]
    kept = [after["asr"]["upper"] for _, after in pairs]
    down = {limit: sum(upper <= limit for upper in kept) for limit in (0.02, 0.05)}
    return (
        f"{form} loses {median(lost):.1f} points in the median and {max(lost):.1f} at most, the "
        f"ASR's bound is at most 2 % in {down[0.02]} and 5 % in {down[0.05]} of {len(pairs)}"
    )


def _told(form: Mapping[str, Any] | None) -> str:
    return "-" if form is None else both(form["ca"], form["asr"])
