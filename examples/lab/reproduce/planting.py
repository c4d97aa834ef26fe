# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Backdoored networks of the cells, trained once.

Several tables look at one network, and a run that was cut off goes on where it stopped. A network
is found again by what it was made from: the cell's own fields, the schedule, the device and
torch's version; see ``examples.lab.kit.planting``.
"""

from dataclasses import asdict, replace
from pathlib import Path

import torch

from examples.lab.kit import planting
from examples.lab.kit.images import Held
from examples.lab.kit.measuring import synchronised
from examples.lab.kit.planting import StoredTrigger, Trained
from examples.lab.reproduce.cells import Cell
from examples.lab.reproduce.data import DATASETS
from examples.lab.reproduce.networks import new_network, schedule
from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Progress, silent
from lmr_guard.errors import InputError
from lmr_guard.redteam import catalogue
from lmr_guard.redteam.catalogue import Attack
from lmr_guard.redteam.training import Schedule, fit_clean

__all__ = ["Planter", "generator"]


def generator(cell: Cell, purpose: str) -> torch.Generator:
    """A CPU generator of the cell's seed, another one for each purpose and network."""
    words = (purpose, cell.dataset, cell.network, cell.attack, cell.target, cell.seed)
    return planting.generator_of(repr(words))


class Planter:
    """Trains networks, or takes them from the folder.

    Args:
        folder: Where they are kept; made where there is none.
        device: cpu or cuda.
        tiny: Whether training is cut short.
        progress: Told after each epoch.
    """

    def __init__(
        self, folder: Path, device: str, *, tiny: bool = False, progress: Progress = silent
    ) -> None:
        self.folder = folder
        self.device = device
        self.tiny = tiny
        self._progress = progress

    def plant(self, cell: Cell, held: Held) -> Trained:
        """The cell's backdoored network, on the device.

        Raises:
            ConfigError, StageError: The attack cannot be planted.
        """
        attack = catalogue.find(cell.attack)
        plan = self._schedule(cell, attack, trained=attack.from_clean)
        place = self._place(cell, f"{cell.attack}-t{cell.target}", plan)
        if not place.exists():
            self._train(cell, attack, held, plan, place)
        return self._load(cell, held, place)

    def clean(self, cell: Cell, held: Held) -> Classifier:
        """An honest network of the cell's architecture, on the device."""
        honest = catalogue.find("badnets")
        plan = self._schedule(cell, honest, trained=False)
        place = self._place(cell, "clean", plan)
        model = self._new(cell)
        if place.exists():
            model.network.load_state_dict(planting.take(place).weights)
            return model
        start = synchronised(self.device)
        drawn = torch.Generator().manual_seed(cell.seed)
        trained = fit_clean(model, held.train, plan, drawn, self._progress)
        told = {"seconds": round(synchronised(self.device) - start, 2), "schedule": asdict(plan)}
        planting.keep(place, trained, told)
        return trained

    def _train(self, cell: Cell, attack: Attack, held: Held, plan: Schedule, place: Path) -> None:
        planted, seconds = planting.plant(
            attack,
            self.clean(cell, held) if attack.from_clean else self._new(cell),
            held,
            target=cell.target,
            schedule=plan,
            generator=generator(cell, "plant"),
            progress=self._progress,
        )
        told = {
            "seconds": round(seconds, 2),
            "device": self.device,
            "schedule": asdict(plan),
            "from_clean": attack.from_clean,
            "wakes": attack.wakes,
            "trigger": planted.trigger.name,
        }
        shown = planting.show_trigger(planted, held.report)
        planting.keep(place, planted.classifier, told, shown)

    def _load(self, cell: Cell, held: Held, place: Path) -> Trained:
        kept = planting.take(place)
        shown = kept.triggered
        if shown is None or len(shown) != len(held.report):
            raise InputError(
                f"expected {len(held.report)} triggered images, got "
                f"{'none' if shown is None else len(shown)} in {place}; the data folder changed, "
                "delete the file"
            )
        model = self._new(cell)
        model.network.load_state_dict(kept.weights)
        trigger = StoredTrigger(held.report, shown, kept.record["trigger"], cell.target)
        return Trained(model, trigger, kept.record)

    def _new(self, cell: Cell) -> Classifier:
        made = new_network(cell.network, DATASETS[cell.dataset], cell.scale, cell.seed)
        return made.to(self.device)

    def _schedule(self, cell: Cell, attack: Attack, *, trained: bool) -> Schedule:
        dataset = DATASETS[cell.dataset]
        plan = schedule(cell.network, dataset, cell.scale, trained=trained, wakes=attack.wakes)
        return replace(plan, epochs=2) if self.tiny else plan

    def _place(self, cell: Cell, what: str, plan: Schedule) -> Path:
        parts = (cell.scale, cell.dataset, cell.network, what, f"s{cell.seed}")
        return planting.place_of(self.folder, "-".join(parts), (self.device, plan), digits=10)
