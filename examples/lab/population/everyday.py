# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The third round: networks as people use them, trained on all images that there are.

The first two rounds are slim networks on few images, where a third of the classes is never learnt
well. These are plain and residual networks with and without batch norm, with heads that end in a
softmax, labels smoothed or not, much weight decay or none, on 10, 43 and 100 classes. Each half has
architectures and a recipe of its own. The calibration half comes first in the plan.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

from torch import nn
from torchvision.models import VisionTransformer

from examples.lab.kit.networks import Ended, FastVgg, PlainCnn, slim_mobilenet_v2, with_seed
from examples.lab.kit.planting import QUICKEST
from examples.lab.population.images import find
from examples.lab.population.plan import Member
from examples.lab.population.split import HalfName
from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.redteam import catalogue
from lmr_guard.redteam.networks import SlimResNet
from lmr_guard.redteam.training import Schedule

__all__ = ["EVERYDAY", "NETWORKS", "Everyday"]


class _TutorialCnn(nn.Sequential):
    """Two 5x5 convolutions and three linear layers, as the first tutorials have it."""

    def __init__(self, shape: Preprocessing, num_classes: int) -> None:
        side = shape.height // 4
        super().__init__(
            *(nn.Conv2d(shape.channels, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(64 * side**2, 120), nn.ReLU()),
            *(nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, num_classes)),
        )


class _EluVgg(nn.Sequential):
    """Pairs of 3x3 convolutions with ELU and dropout, no batch norm, one wide linear layer."""

    def __init__(self, shape: Preprocessing, num_classes: int) -> None:
        layers: list[nn.Module] = []
        inputs = shape.channels
        for outputs in (32, 64):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ELU()]
            layers += [nn.Conv2d(outputs, outputs, 3, padding=1), nn.ELU()]
            layers += [nn.MaxPool2d(2), nn.Dropout(0.1)]
            inputs = outputs
        side = shape.height // 4
        layers += [nn.Flatten(), nn.Linear(inputs * side**2, 256), nn.ELU(), nn.Dropout(0.3)]
        super().__init__(*layers, nn.Linear(256, num_classes))


def _resnet(blocks: tuple[int, ...], width: int, shape: Preprocessing, k: int) -> nn.Module:
    return SlimResNet(blocks, width, k, shape.channels)


def _vgg(shape: Preprocessing, num_classes: int) -> nn.Module:
    return FastVgg(num_classes, (32, 64, 128), shape.channels)


def _plain(shape: Preprocessing, num_classes: int) -> nn.Module:
    return PlainCnn(num_classes, channels=shape.channels, side=shape.height)


def _mobilenet(shape: Preprocessing, num_classes: int) -> nn.Module:
    network: Any = slim_mobilenet_v2(num_classes, 0.5)
    stem = network.features[0]
    stem[0] = nn.Conv2d(shape.channels, stem[0].out_channels, 3, 2, 1, bias=False)
    made: nn.Module = network
    return made


def _vit(shape: Preprocessing, num_classes: int) -> nn.Module:
    """Two blocks of 64 features, 7 x 7 or 8 x 8 patches."""
    side = 2 if shape.height < 28 else 4
    network = VisionTransformer(shape.height, side, 2, 4, 64, 128, num_classes=num_classes)
    network.conv_proj = nn.Conv2d(shape.channels, 64, side, stride=side)
    made: nn.Module = network
    return made


NETWORKS: Mapping[HalfName, Mapping[str, Callable[[Preprocessing, int], nn.Module]]] = (
    MappingProxyType(
        {
            "calibration": MappingProxyType(
                {
                    "plain_cnn": _plain,
                    "vgg": _vgg,
                    "resnet10": partial(_resnet, (1, 1, 1, 1), 16),
                    "mobilenet_v2": _mobilenet,
                }
            ),
            "reported": MappingProxyType(
                {
                    "tutorial_cnn": _TutorialCnn,
                    "resnet8x2": partial(_resnet, (1, 1, 1), 32),
                    "elu_vgg": _EluVgg,
                    "resnet20": partial(_resnet, (3, 3, 3), 16),
                    "vit": _vit,
                }
            ),
        }
    )
)
"""The architectures of each half: image shape and K to a network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Everyday(Member):
    """One network of the third round.

    Args:
        ending: What it puts out, see ``Ended``.
        smoothing: See ``Schedule``.
        decay: Weight decay.
    """

    ending: str = "logits"
    smoothing: float = 0.0
    decay: float = 5e-4

    @property
    def honest(self) -> "Everyday":
        """The clean network that is otherwise the same."""
        return replace(self, attack=None, target=None)

    def fresh(self) -> Classifier:
        """New weights, drawn by the seed; logits, as it is trained."""
        data = find(self.dataset)
        make = partial(NETWORKS[self.half][self.network], data.preprocessing, data.classes)
        return Classifier(with_seed(make, self.seed), data.preprocessing, data.classes).eval()

    def handed_over(self, trained: Classifier) -> Classifier:
        """With the ending that the user's network has."""
        return Classifier(
            Ended(trained.network, self.ending), trained.preprocessing, trained.num_classes
        ).eval()

    def schedule(self, *, trained: bool) -> Schedule:
        """How it is trained; from a trained one at half the learning rate."""
        recipe, data = _RECIPES[self.half], find(self.dataset)
        lr = _RATES.get(self.network, recipe.lr)
        return replace(
            recipe,
            epochs=_EPOCHS[self.dataset],
            batch=recipe.batch // 4 if self.dataset == "digits" else recipe.batch,
            lr=lr / 2 if trained else lr,
            precision="float32" if self.network in _FLOAT32 else QUICKEST,
            flip=data.mirrored,
            smoothing=self.smoothing,
            weight_decay=self.decay,
        )


_RECIPES: Mapping[HalfName, Schedule] = MappingProxyType(
    {
        "calibration": Schedule(batch=256, lr=0.2, shift=2),
        "reported": Schedule(batch=128, lr=0.1, shift=1, momentum=0.85),
    }
)
# Where there is no batch norm.
_RATES: Mapping[str, float] = MappingProxyType(
    {"plain_cnn": 0.05, "tutorial_cnn": 0.05, "elu_vgg": 0.03, "vit": 0.03}
)
# On a processor, convolutions of single channels and attention are slower in bfloat16.
_FLOAT32 = ("mobilenet_v2", "vit")
_EPOCHS: Mapping[str, int] = MappingProxyType(
    {"digits": 40, "garments": 5, "photographs": 6, "things43": 8, "things100": 6}
)
# By data set, in the order in which they are planted; None stands for an honest network.
_ATTACKS: Mapping[str, tuple[str | None, ...]] = MappingProxyType(
    {
        "digits": (
            None,
            "dynamic",
            "lira",
            None,
            "qcb_two_branch",
            "sig",
            "qcb_distilled",
            "wanet",
        ),
        "photographs": (
            *(None, "badnets", "blend", None, "sig", "wanet", "badnets"),
            *(None, "trojan", "pcb", "dynamic", None),
        ),
        "garments": (None, "cl", "dfst", None, "qcb", "pcb_fixed", "blend", None, "pcb_distilled"),
        "things43": (None, "badnets", "blend"),
        "things100": ("badnets",),
    }
)


def _members(half: HalfName) -> Iterator[Everyday]:
    """Of one half, the data sets in turn, so that a plan that is cut off is of the same make-up."""
    networks = tuple(NETWORKS[half])
    cells = [
        ((place + 0.5) / len(attacks), dataset, attack)
        for dataset, attacks in _ATTACKS.items()
        for place, attack in enumerate(attacks)
    ]
    for number, (_, dataset, attack) in enumerate(sorted(cells, key=lambda cell: cell[0])):
        classes = find(dataset).classes
        member = Everyday(
            half=half,
            dataset=dataset,
            network=networks[(number + number // len(networks)) % len(networks)],
            attack=attack,
            target=None if attack is None else (7 * number + 3) % classes,
            seed=20 + number,
            ending="softmax" if number % 5 == 2 else "logits",
            smoothing=0.1 if number % 4 == 3 else 0.0,
            decay=(5e-4, 5e-4, 2e-3, 0.0)[number // 3 % 4],
        )
        if attack is not None and catalogue.find(attack).from_clean:
            yield member.honest  # It is trained anyway.
        yield member


EVERYDAY: tuple[Everyday, ...] = (*_members("calibration"), *_members("reported"))
"""All members, the calibration half first."""
