# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The networks, and images that they tell apart although nobody has trained them.

Weights are drawn by a seed. Batch norms take their statistics from the images, and the head is
fitted to the classes in one step, by least squares on what comes into it: the guard refuses
networks that do not recognise the images.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lmr_guard.classifier import Classifier, find_head
from lmr_guard.contracts import Labelled
from lmr_guard.errors import InputError
from lmr_guard.received.architectures import Architecture
from lmr_guard.received.load import build

__all__ = ["CLASSES", "SUBJECTS", "Subject", "images", "write"]

CLASSES = 5
_SIDE = 64
_OWN = 0  # takes images of its own size alone
_RIDGE = 1e-3


@dataclass(frozen=True, slots=True)
class Subject:
    """One architecture.

    Args:
        name: As ``--arch`` takes it.
        side: Rows and columns of its images; 0 for those it was made for.
    """

    name: str
    side: int = _SIDE

    @property
    def architecture(self) -> Architecture:
        """What a user says of its checkpoint."""
        size = (3, self.side, self.side) if self.side else None
        return Architecture(self.name, num_classes=CLASSES, input_size=size)


_TESTS = (
    "byobnet resnet efficientnet efficientnet_gn efficientnet_ln efficientnet_evos nfnet vit vit2 "
    "vit3 vit4 vit_relpos convnext convnext2 convnext3 mambaout coatnet maxvit"
)
_SMALL = (
    "timm:resnet10t timm:lcnet_035 torchvision:squeezenet1_1 torchvision:resnet18 timm:tinynet_e "
    "torchvision:shufflenet_v2_x0_5 timm:ghostnet_050 timm:mobilenetv3_small_050 "
    "torchvision:mnasnet0_5 torchvision:mobilenet_v2 torchvision:swin_t timm:mobilevit_xxs "
    "torchvision:mobilenet_v3_small torchvision:regnet_x_400mf timm:edgenext_xx_small"
)
SUBJECTS = (
    *(Subject(f"timm:test_{name}", _OWN) for name in _TESTS.split()),
    *(Subject(name) for name in _SMALL.split()),
)
"""timm's ``test_`` networks are those of its own tests: every block of a family, and tiny."""


def images(side: int, each: int, *, seed: int = 0) -> Labelled:
    """Coloured patches, of another pattern for each class, under noise.

    Args:
        side: Rows and columns.
        each: Images of each class.
        seed: Of all that is drawn.
    """
    drawn = torch.Generator().manual_seed(seed)
    patterns = torch.rand(CLASSES, 3, 4, 4, generator=drawn)
    labels = torch.arange(each * CLASSES) % CLASSES
    shown = F.interpolate(patterns, size=(side, side))[labels]
    noise = torch.rand(shown.shape, generator=drawn)
    pixels = (255 * (0.7 * shown + 0.3 * noise)).to(torch.uint8)
    return Labelled(pixels, labels, tuple("abcde"))


def write(subject: Subject, path: Path, each: int) -> Labelled:
    """A checkpoint of bare weights; returns images that its network recognises.

    Args:
        subject: Which network.
        path: Where its weights go, as safetensors.
        each: Images of each class.

    Raises:
        InputError: It cannot be built, or has no head.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network, shape, _ = build(subject.architecture, {})
        model = Classifier(network, shape, CLASSES).eval()
        clean = images(shape.height, each)
        _settle(model, clean.pixels)
        _fit_head(model, clean)
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_file(state, path)
    return clean


@torch.no_grad()
def _settle(model: Classifier, pixels: Tensor) -> None:
    """Batch norms by the statistics of all images."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.momentum = None
        norm.reset_running_stats()
        norm.train()
    model(pixels)
    model.eval()


@torch.no_grad()
def _fit_head(model: Classifier, clean: Labelled) -> None:
    _, head = find_head(model, model.example(), CLASSES)
    seen: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    try:
        model(clean.pixels)
    finally:
        handle.remove()
    features = seen[-1]
    if isinstance(head, nn.Conv2d):  # what it puts out is averaged over the image
        features = features.mean(dim=(2, 3))
    centre, scale = features.mean(dim=0), features.std(dim=0).mean()
    if not bool(scale > 0):
        raise InputError("expected features that differ from image to image, got the same")
    x = (features - centre).double() / scale
    wanted = F.one_hot(clean.labels, CLASSES).double() - 1 / CLASSES
    normal = x.T @ x + _RIDGE * len(x) * torch.eye(x.shape[1], dtype=torch.float64)
    weight = 10 * torch.linalg.solve(normal, x.T @ wanted).T.float() / scale
    head.weight.copy_(weight.view_as(head.weight))
    if head.bias is not None:
        head.bias.copy_(-(weight @ centre))
