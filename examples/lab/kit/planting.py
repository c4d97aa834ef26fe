# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Networks that are trained once and kept in a folder outside the repository.

Kept are the weights and, because a trigger may be a program, the triggered reporting images. A
network is found again by its name and by what it was made from; whoever changes an attack's code
must empty the folder.
"""

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from examples.lab.kit.images import Held
from examples.lab.kit.measuring import synchronised
from lmr_guard.arithmetic import is_native
from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Labelled, Progress, Source
from lmr_guard.errors import ConfigError
from lmr_guard.files import atomic
from lmr_guard.redteam.catalogue import Attack
from lmr_guard.redteam.training import Planted, Schedule

__all__ = [
    "QUICKEST",
    "Kept",
    "StoredTrigger",
    "Trained",
    "generator_of",
    "keep",
    "place_of",
    "plant",
    "show_trigger",
    "take",
]

QUICKEST: Final[Literal["float32", "bfloat16"]] = (
    "bfloat16" if is_native(torch.device("cpu")) else "float32"
)
"""What convolutions train fastest in on this processor; emulated, bfloat16 is the slower one."""

# No parameter can have this name.
_TRIGGERED = "triggered images"


class StoredTrigger:
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
class Trained:
    """A network, the trigger of its backdoor on the reporting images, and how it was made.

    Args:
        classifier: In eval mode.
        trigger: None where the network is clean.
        record: Seconds and schedule of the training, and what the attack needs.
    """

    classifier: Classifier
    trigger: StoredTrigger | None
    record: dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """What a file of the folder holds.

    Args:
        weights: By the name of the parameter or buffer.
        triggered: Reporting images as they were kept; None where there is no trigger.
        record: As in ``Trained``.
    """

    weights: dict[str, Tensor]
    triggered: Tensor | None
    record: dict[str, Any]


def generator_of(words: str) -> torch.Generator:
    """A CPU generator that follows from a text, another one for each text."""
    return torch.Generator().manual_seed(zlib.crc32(words.encode()))


def place_of(folder: Path, name: str, made_from: Sequence[object], digits: int) -> Path:
    """Where a network is kept; no other torch, and nothing else it was made from, shares it.

    Args:
        folder: Of all networks.
        name: What is readable of it.
        made_from: Beside the version of torch; values whose ``repr`` tells them apart.
        digits: Of the digest in the name.
    """
    digest = hashlib.sha256(repr((torch.__version__, *made_from)).encode()).hexdigest()
    return folder / f"{name}-{digest[:digits]}.safetensors"


def plant(
    attack: Attack,
    start: Classifier,
    held: Held,
    *,
    target: int,
    schedule: Schedule,
    generator: torch.Generator,
    progress: Progress,
) -> tuple[Planted, float]:
    """The backdoored network with its trigger, and the seconds that it took.

    Args:
        attack: What is planted.
        start: New or trained weights, as the attack needs them; not touched.
        held: The attacker's images are trained on.
        target: The attacker's class.
        schedule: Of each training run.
        generator: CPU generator.
        progress: Told after each epoch.

    Raises:
        ConfigError, StageError: The attack cannot be planted.
    """
    begun = synchronised(start.device.type)
    planted = attack.plant(
        start,
        held.train,
        target=target,
        schedule=schedule,
        generator=generator,
        progress=progress,
    )
    return planted, synchronised(start.device.type) - begun


def show_trigger(planted: Planted, report: Labelled) -> Tensor:
    """The triggered form of each image, float32 on the CPU."""
    return torch.cat([pixels.cpu() for pixels, _ in planted.trigger.batches(report)])


def keep(
    place: Path, model: Classifier, record: Mapping[str, Any], triggered: Tensor | None = None
) -> None:
    """Write one network, complete or not at all; the folder is made where there is none.

    Args:
        place: See ``place_of``.
        model: On any device.
        record: How it was made, as JSON holds it.
        triggered: Reporting images, of whatever type they are to come back in.

    Raises:
        StageError: The file system refused.
    """
    tensors = {name: value.cpu().contiguous() for name, value in model.network.state_dict().items()}
    if triggered is not None:
        tensors[_TRIGGERED] = triggered.cpu().contiguous()
    place.parent.mkdir(parents=True, exist_ok=True)
    with atomic(place) as file:
        file.write(save(tensors, {"told": json.dumps(record)}))


def take(place: Path) -> Kept:
    """What ``keep`` has written."""
    with safetensors.safe_open(place, framework="pt") as file:
        record = json.loads(file.metadata()["told"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    triggered = tensors.pop(_TRIGGERED, None)
    return Kept(tensors, triggered, record)
