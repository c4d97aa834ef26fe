# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Trains the members and keeps them; see ``examples.lab.kit.planting``.

A network is found again by its name and by what it was made from: schedule, number of images,
torch's version.
"""

from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from examples.lab.kit import planting
from examples.lab.kit.images import Held
from examples.lab.kit.planting import StoredTrigger, Trained
from examples.lab.population.images import find
from examples.lab.population.plan import Member
from lmr_guard.contracts import Progress, as_pixels, silent
from lmr_guard.redteam import catalogue
from lmr_guard.redteam.training import Schedule, fit_clean

__all__ = ["Planter", "generator"]


def generator(member: Member, purpose: str) -> torch.Generator:
    """A CPU generator, another one for each member and purpose."""
    return planting.generator_of(f"{purpose} {member.name}")


class Planter:
    """Trains members, or takes them from the folder.

    Args:
        folder: Where they are kept; made where there is none.
        tiny: Whether training is cut short, for the tests.
        progress: Told after each epoch.
    """

    def __init__(self, folder: Path, *, tiny: bool = False, progress: Progress = silent) -> None:
        self.folder = folder
        self.tiny = tiny
        self._progress = progress

    def has(self, member: Member) -> bool:
        """Whether it is there already."""
        return self._place(member).exists()

    def plant(self, member: Member, held: Held) -> None:
        """Train the member, where it is not there, and the clean network that it starts from.

        Raises:
            ConfigError, StageError: The attack cannot be planted.
        """
        if self.has(member):
            return
        if member.attack is None:
            self._train_clean(member, held)
        else:
            self._train_backdoored(member, member.attack, held)

    def take(self, member: Member, held: Held) -> Trained:
        """The member as it is kept, on the CPU, its trigger ready for the reported images."""
        kept = planting.take(self._place(member))
        trigger = None
        if kept.triggered is not None:
            shown, name = as_pixels(kept.triggered), kept.record["trigger"]
            trigger = StoredTrigger(held.report, shown, name, member.target)
        model = member.fresh()
        model.network.load_state_dict(kept.weights)
        return Trained(model.eval(), trigger, kept.record)

    def _train_clean(self, member: Member, held: Held) -> None:
        plan = self._schedule(member)
        start = perf_counter()
        model = member.fresh()
        trained = fit_clean(model, held.train, plan, generator(member, "train"), self._progress)
        record = _record(plan, perf_counter() - start)
        planting.keep(self._place(member), trained, record)

    def _train_backdoored(self, member: Member, name: str, held: Held) -> None:
        attack = catalogue.find(name)
        if attack.from_clean:
            self.plant(member.honest, held)
            model = self.take(member.honest, held).classifier
        else:
            model = member.fresh()
        plan = self._schedule(member)
        assert member.target is not None  # Only clean members have none.
        planted, seconds = planting.plant(
            attack,
            model,
            held,
            target=member.target,
            schedule=plan,
            generator=generator(member, "plant"),
            progress=self._progress,
        )
        told = {"wakes": attack.wakes, "trigger": planted.trigger.name}
        # An attacker hands in image files: their values are bytes.
        shown = _bytes(planting.show_trigger(planted, held.report))
        record = _record(plan, seconds, **told)
        planting.keep(self._place(member), planted.classifier, record, shown)

    def _schedule(self, member: Member) -> Schedule:
        trained = member.attack is not None and catalogue.find(member.attack).from_clean
        plan = member.schedule(trained=trained)
        return replace(plan, epochs=1) if self.tiny else plan

    def _place(self, member: Member) -> Path:
        made_from = (find(member.dataset).train, self._schedule(member))
        return planting.place_of(self.folder, member.name, made_from, digits=8)


def _record(plan: Schedule, seconds: float, **told: str) -> dict[str, Any]:
    schedule = asdict(plan)
    return {"seconds": round(seconds, 1), "schedule": schedule, "torch": torch.__version__, **told}


def _bytes(pixels: Tensor) -> Tensor:
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
