# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Networks with every kind of coupling between channels, and images for them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.models import (
    ConvNeXt,
    MobileNetV2,
    SqueezeNet,
    VisionTransformer,
    densenet,
    vgg,
)
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.compress import prune
from lmr_guard.compress.recipes import PruneL1
from lmr_guard.contracts import Labelled

K = 5
CLASSES = tuple("abcde")


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.PReLU(8),
        nn.Conv2d(8, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, K),
    )


def resnet() -> nn.Module:
    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=K)


def resnext() -> nn.Module:
    return ResNet(Bottleneck, [1, 1, 1, 1], num_classes=K, groups=4, width_per_group=4)


def mobilenet() -> nn.Module:
    setting = [[1, 8, 1, 1], [6, 12, 2, 2], [6, 16, 2, 2]]
    return MobileNetV2(num_classes=K, inverted_residual_setting=setting, width_mult=0.5)


def vgg11() -> nn.Module:
    """VGG-11's shape; torchvision's own class cannot have a small classifier."""
    return nn.Sequential(
        vgg.make_layers([8, "M", 16, 16, "M", 16, "M"], batch_norm=True),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 2 * 2, 20),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(20, K),
    )


def squeezenet() -> nn.Module:
    network = SqueezeNet("1_1", num_classes=K)
    nn.init.normal_(network.classifier[1].weight)
    return network


def dense() -> nn.Module:
    return densenet.DenseNet(8, (2, 2), 16, num_classes=K)


def vit() -> nn.Module:
    network = VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=K)
    nn.init.normal_(network.heads[0].weight)
    return network


def convnext() -> nn.Module:
    blocks = [CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)]
    return ConvNeXt(blocks, layer_scale=1.0, num_classes=K)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    f.__name__: f
    for f in (plain, resnet, resnext, mobilenet, vgg11, squeezenet, dense, vit, convnext)
}
UNCOUPLED = {"vit", "convnext"}  # Their residual stream passes layer norms and stays whole.


def classifier(name: str, seed: int = 0) -> Classifier:
    """The network with weights and BN statistics that make every channel matter."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = wrap(NETWORKS[name]())
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                nn.init.normal_(module.bias)
                module.running_mean.normal_(std=0.2)
                module.running_var.uniform_(0.5, 1.5)
    return model


def wrap(network: nn.Module) -> Classifier:
    size = Preprocessing(height=32, width=32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.2))
    return Classifier(network, size, K).eval()


def noise(count: int = 8, seed: int = 1) -> Labelled:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return Labelled(images, torch.arange(count) % K, CLASSES)


def grey(count: int, seed: int, classes: str) -> Labelled:
    """Grey noise of 8 x 8 pixels, of the classes in turn."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return Labelled(images, torch.arange(count) % len(classes), tuple(classes))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def uniform(model: Classifier, ratio: float = 0.4) -> prune.PrunePlan:
    return prune.plan(model, PruneL1(ratio=ratio, shares="uniform"), noise(0), generator())


class Lopsided(nn.Module):
    """Class k is where channel k of ``vital`` is bright; ``idle`` is computed and ignored.

    Cutting any channel of ``vital`` costs a class, cutting ``idle`` costs nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.vital, self.idle = nn.Conv2d(3, K, 32), nn.Conv2d(3, 15, 32)
        self.head = nn.Linear(K + 15, K)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.cat([self.vital(images), self.idle(images)], dim=1)
        logits: Tensor = self.head(features.flatten(1))
        return logits


def lopsided() -> tuple[Classifier, Labelled]:
    network = Lopsided()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        for k in range(K):
            network.vital.weight[k, 0, k, 0] = 1 + k / 10
            network.head.weight[k, k] = 1
        network.idle.weight[:, 1, 0, 0] = 1
    images = torch.zeros(20, 3, 32, 32, dtype=torch.uint8)
    labels = torch.arange(20) % K
    images[torch.arange(20), 0, labels, 0] = 200
    model = Classifier(network, Preprocessing(height=32, width=32), K).eval()
    return model, Labelled(images, labels, CLASSES)
