# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Trains the members and keeps them in a folder outside the repository.

Kept are the weights and, because a trigger may be a program, the triggered reported images. A
network is found again by its name and by what it was made from: schedule, number of images,
torch's version. Whoever changes an attack's code must empty the folder.
"""

import hashlib
import json
import zlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from examples.population.halves import fresh, schedule
from examples.population.images import DATASETS
from examples.population.plan import Member
from examples.reproduce.data import Held
from examples.reproduce.plants import Stored
from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Progress, silent
from lmr_guard.files import atomic
from lmr_guard.redteam import catalogue
from lmr_guard.redteam.training import Schedule, fit_clean

__all__ = ["Grown", "Nursery", "generator"]

# No parameter can have this name.
_TRIGGERED = "triggered images"


@dataclass(frozen=True, slots=True, eq=False)
class Grown:
    """A trained member.

    Args:
        classifier: On the CPU, in eval mode.
        trigger: On the reported images; None where it is clean.
        record: Seconds and schedule of the training, and what the attack needs.
    """

    classifier: Classifier
    trigger: Stored | None
    record: dict[str, Any]


def generator(member: Member, purpose: str) -> torch.Generator:
    """A CPU generator, another one for each member and purpose."""
    return torch.Generator().manual_seed(zlib.crc32(f"{purpose} {member.name}".encode()))


class Nursery:
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

    def grow(self, member: Member, held: Held) -> None:
        """Train the member, where it is not there, and the clean network that it starts from.

        Raises:
            ConfigError, StageError: The attack cannot be planted.
        """
        if self.has(member):
            return
        if member.attack is None:
            self._grow_clean(member, held)
        else:
            self._grow_backdoored(member, member.attack, held)

    def take(self, member: Member, held: Held) -> Grown:
        """The member as it is kept, its trigger ready for the reported images."""
        tensors, told = _read(self._place(member))
        shown = tensors.pop(_TRIGGERED, None)
        trigger = None
        if shown is not None:
            trigger = Stored(held.report, shown.float() / 255, told["trigger"], member.target)
        model = fresh(member.network, member.dataset, member.seed)
        model.network.load_state_dict(tensors)
        return Grown(model, trigger, told)

    def _grow_clean(self, member: Member, held: Held) -> None:
        plan = self._schedule(member)
        start = perf_counter()
        model = fresh(member.network, member.dataset, member.seed)
        trained = fit_clean(model, held.train, plan, generator(member, "train"), self._progress)
        self._keep(member, _weights(trained), plan, start)

    def _grow_backdoored(self, member: Member, name: str, held: Held) -> None:
        attack = catalogue.find(name)
        if attack.from_clean:
            self.grow(member.honest, held)
            model = self.take(member.honest, held).classifier
        else:
            model = fresh(member.network, member.dataset, member.seed)
        plan = self._schedule(member)
        start = perf_counter()
        assert member.target is not None  # Only clean members have none.
        planted = attack.plant(
            model,
            held.train,
            target=member.target,
            schedule=plan,
            generator=generator(member, "plant"),
            progress=self._progress,
        )
        shown = torch.cat([pixels for pixels, _ in planted.trigger.batches(held.report)])
        # An attacker hands in image files: their values are bytes.
        tensors = {**_weights(planted.classifier), _TRIGGERED: _bytes(shown)}
        told = {"wakes": attack.wakes, "trigger": planted.trigger.name}
        self._keep(member, tensors, plan, start, **told)

    def _schedule(self, member: Member) -> Schedule:
        trained = member.attack is not None and catalogue.find(member.attack).from_clean
        plan = schedule(member.half, member.network, member.dataset, trained=trained)
        return replace(plan, epochs=1) if self.tiny else plan

    def _keep(
        self,
        member: Member,
        tensors: dict[str, Tensor],
        plan: Schedule,
        start: float,
        **told: str,
    ) -> None:
        seconds = round(perf_counter() - start, 1)
        record = {"seconds": seconds, "schedule": asdict(plan), "torch": torch.__version__, **told}
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic(self._place(member)) as file:
            file.write(save(tensors, {"told": json.dumps(record)}))

    def _place(self, member: Member) -> Path:
        count = DATASETS[member.dataset].train
        made_from = repr((torch.__version__, count, self._schedule(member)))
        digest = hashlib.sha256(made_from.encode()).hexdigest()[:8]
        return self.folder / f"{member.name}-{digest}.safetensors"


def _bytes(pixels: Tensor) -> Tensor:
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8).cpu().contiguous()


def _weights(model: Classifier) -> dict[str, Tensor]:
    return {name: value.cpu().contiguous() for name, value in model.network.state_dict().items()}


def _read(place: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safetensors.safe_open(place, framework="pt") as file:
        told = json.loads(file.metadata()["told"])
        return {name: file.get_tensor(name) for name in file.keys()}, told  # noqa: SIM118
