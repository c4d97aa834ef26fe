# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What the guard publishes of the population by default; see ``examples.lab.kit.shipping``.

An honest network has no trigger to be drilled with, for want of which the default policy publishes
none of its forms. Counted there are the forms that nothing else withholds.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from examples.lab.kit.measuring import both
from examples.lab.kit.records import Record
from examples.lab.kit.shipping import shipped
from examples.lab.kit.tables import framed_table
from examples.lab.population.show import called
from examples.lab.population.split import HALVES
from examples.lab.population.subjects import Subject
from lmr_guard.compress import recipes
from lmr_guard.release.policy import Policy
from lmr_guard.repel import RepelSettings
from lmr_guard.settings import Settings

__all__ = ["ask_ship", "render", "withheld"]

_REPORTED = 1500
# What the default policy says where no trigger was given.
_WANTING = "triggers"


def ask_ship(subject: Subject) -> dict[str, Any]:
    """Every form by the guard's default settings, on up to 1500 images; the trigger is the audit's.

    Raises:
        GuardError: A stage could not be done.
    """
    settings = Settings(threads=1, seed=subject.member.seed)
    if subject.tiny:
        settings = Settings(
            threads=1,
            suspect=subject.member.target,
            repel=RepelSettings(lure_steps=1, pass_steps=1, phase2_epochs=1),
            listening=None,
            recipes=recipes.parse(["float32"]),
            policy=Policy(require=("float32",)),
        )
    found = shipped(subject.trained, subject.clean, _REPORTED, settings)
    return {**found, "settings": {"tiny": subject.tiny, "reported": _REPORTED}}


def withheld(record: Record) -> dict[str, list[str]]:
    """Of each form what withholds it; nothing where it is published, or would be with a trigger."""
    honest = record["member"]["target"] is None
    return {
        name: [check for check in form["failed"] if not (honest and check == _WANTING)]
        for name, form in record["variants"].items()
    }


def render(records: Sequence[Record]) -> Iterator[RenderableType]:
    """A line per network that is honest or whose attack took, and counts over each half."""
    for half in HALVES:
        own = [r for r in records if r["took"] is not False and r["member"]["half"] == half]
        if own:
            columns = ("named", "received", "float32", "l1-0.3", "forms that ship")
            title = f"{half} half, CA / ASR (upper bound), per cent"
            table = framed_table(title, ["network"], columns, wrap=False)
            for record in own:
                table.add_row(*_row(record))
            yield table
            yield Text(f"{half} half: {_summed(own)}")


def _row(record: Record) -> tuple[str, ...]:
    member, checks = record["member"], withheld(record)
    suspect = "nobody" if record["suspect"] is None else str(record["suspect"])
    wanted = "" if member["target"] is None else f" ({member['target']})"
    forms = (record["received"], *(record["variants"].get(f) for f in ("float32", "l1-0.3")))
    told = (_told(form) for form in forms)
    ships = sum(not why for why in checks.values())
    return called(member), f"{suspect}{wanted}", *told, f"{ships} of {len(checks)}"


def _told(form: Mapping[str, Any] | None) -> str:
    return "-" if form is None else both(form["ca"], form["asr"][0] if form["asr"] else None)


def _summed(records: Sequence[Record]) -> str:
    checks = [withheld(record) for record in records]
    ships = Counter(name for forms in checks for name, why in forms.items() if not why)
    reasons = Counter(check for forms in checks for why in forms.values() for check in why)
    some = sum(any(not why for why in forms.values()) for forms in checks)
    told = ", ".join(f"{name} of {count}" for name, count in ships.items())
    why = ", ".join(f"{check} {count}" for check, count in reasons.most_common())
    return (
        f"of {len(records)} networks {some} ship in some form ({told or 'none'}); "
        f"forms are withheld for {why or 'nothing'}"
    )
