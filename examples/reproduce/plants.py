# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Backdoored networks, trained once and kept in a folder outside the repository.

Several tables look at one network, and a run that was cut off goes on where it stopped. Kept are
the weights and, because a trigger may be a program, the triggered reporting images as float32.
A network is found again by what it was made from: the cell's own fields, the schedule, the device
and torch's version. Whoever changes an attack's code must empty the folder.
"""

import hashlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from examples.reproduce.cells import Cell
from examples.reproduce.data import DATASETS, Held
from examples.reproduce.networks import fresh, schedule
from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Labelled, Progress, Source, silent
from lmr_guard.errors import ConfigError, InputError
from lmr_guard.files import atomic
from lmr_guard.redteam import catalogue
from lmr_guard.redteam.catalogue import Attack
from lmr_guard.redteam.training import Schedule, fit_clean

__all__ = ["Nursery", "Plant", "Stored", "generator", "synchronised"]

# No parameter can have this name.
_TRIGGERED = "triggered images"


class Stored:
    """A trigger that was put on known images beforehand; any part of them can be asked for.

    Args:
        clean: The images.
        pixels: The same images triggered, float32, shape (N, C, H, W).
        name: How records call it.
        target: The attacker's class.
    """

    source: Source = "drilled"

    def __init__(self, clean: Labelled, pixels: Tensor, name: str, target: int | None) -> None:
        self.name = name
        self.target = target
        self.pixels = pixels
        self._places = {image.numpy().tobytes(): i for i, image in enumerate(clean.images)}

    def batches(self, clean: Labelled, size: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
        """The triggered form of each clean image, with its true label.

        Raises:
            ConfigError: An image is none of those that were triggered.
        """
        places = [self._places.get(image.numpy().tobytes(), -1) for image in clean.images]
        if -1 in places:
            raise ConfigError(
                "expected images that were triggered beforehand, got another; use the report part"
            )
        rows = torch.tensor(places, dtype=torch.int64)
        for part, labels in zip(rows.split(size), clean.labels.split(size), strict=True):
            yield self.pixels[part], labels


@dataclass(frozen=True, slots=True, eq=False)
class Plant:
    """A backdoored network, its trigger on the reporting images, and how it was made.

    Args:
        classifier: On the device that was asked for.
        trigger: See ``Stored``.
        record: Seconds, device and schedule of the training, and whether it was kept from before.
    """

    classifier: Classifier
    trigger: Stored
    record: dict[str, Any]


def generator(cell: Cell, purpose: str) -> torch.Generator:
    """A CPU generator of the cell's seed, another one for each purpose and network."""
    words = (purpose, cell.dataset, cell.network, cell.attack, cell.target, cell.seed)
    return torch.Generator().manual_seed(zlib.crc32(repr(words).encode()))


def synchronised(device: str) -> float:
    """The time in seconds, after everything that the device was given is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return perf_counter()


class Nursery:
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

    def plant(self, cell: Cell, held: Held) -> Plant:
        """The cell's backdoored network.

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
        model = fresh(cell.network, DATASETS[cell.dataset], cell.scale, cell.seed)
        model = model.to(self.device)
        if place.exists():
            return _filled(model, _tensors(place)[0])
        start = synchronised(self.device)
        drawn = torch.Generator().manual_seed(cell.seed)
        trained = fit_clean(model, held.train, plan, drawn, self._progress)
        told = {"seconds": round(synchronised(self.device) - start, 2), "schedule": asdict(plan)}
        _keep(place, _weights(trained), told)
        return trained

    def _train(self, cell: Cell, attack: Attack, held: Held, plan: Schedule, place: Path) -> None:
        if attack.from_clean:
            start = self.clean(cell, held)
        else:
            start = fresh(cell.network, DATASETS[cell.dataset], cell.scale, cell.seed)
        begun = synchronised(self.device)
        planted = attack.plant(
            start.to(self.device),
            held.train,
            target=cell.target,
            schedule=plan,
            generator=generator(cell, "plant"),
            progress=self._progress,
        )
        told = {
            "seconds": round(synchronised(self.device) - begun, 2),
            "device": self.device,
            "schedule": asdict(plan),
            "from_clean": attack.from_clean,
            "wakes": attack.wakes,
            "trigger": planted.trigger.name,
        }
        shown = torch.cat([pixels.cpu() for pixels, _ in planted.trigger.batches(held.report)])
        _keep(place, {**_weights(planted.classifier), _TRIGGERED: shown}, told)

    def _load(self, cell: Cell, held: Held, place: Path) -> Plant:
        tensors, told = _tensors(place)
        shown = tensors.pop(_TRIGGERED)
        if len(shown) != len(held.report):
            raise InputError(
                f"expected {len(held.report)} triggered images, got {len(shown)} in {place}; the "
                "data folder changed, delete the file"
            )
        model = fresh(cell.network, DATASETS[cell.dataset], cell.scale, cell.seed)
        trigger = Stored(held.report, shown, told["trigger"], cell.target)
        return Plant(_filled(model, tensors).to(self.device), trigger, told)

    def _schedule(self, cell: Cell, attack: Attack, *, trained: bool) -> Schedule:
        dataset = DATASETS[cell.dataset]
        plan = schedule(cell.network, dataset, cell.scale, trained=trained, wakes=attack.wakes)
        return replace(plan, epochs=2) if self.tiny else plan

    def _place(self, cell: Cell, what: str, plan: Schedule) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        made_from = repr((torch.__version__, self.device, plan))
        digest = hashlib.sha256(made_from.encode()).hexdigest()[:10]
        parts = (cell.scale, cell.dataset, cell.network, what, f"s{cell.seed}", digest)
        return self.folder / f"{'-'.join(parts)}.safetensors"


def _weights(model: Classifier) -> dict[str, Tensor]:
    return {name: value.cpu().contiguous() for name, value in model.network.state_dict().items()}


def _filled(model: Classifier, weights: dict[str, Tensor]) -> Classifier:
    model.network.load_state_dict(weights)
    return model


def _keep(place: Path, tensors: dict[str, Tensor], told: dict[str, Any]) -> None:
    with atomic(place) as file:
        file.write(save(tensors, {"told": json.dumps(told)}))


def _tensors(place: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safetensors.safe_open(place, framework="pt") as file:
        told = json.loads(file.metadata()["told"])
        return {name: file.get_tensor(name) for name in file.keys()}, told  # noqa: SIM118
