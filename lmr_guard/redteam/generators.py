# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Small networks from images to images, for triggers that are learned."""

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmr_guard.contracts import Labelled, as_pixels
from lmr_guard.errors import ConfigError
from lmr_guard.redteam.training import EpochProgress, Schedule, augment, silent_epochs
from lmr_guard.training import private_randomness

__all__ = ["AnyNetwork", "Autoencoder", "descent", "device_of", "frozen", "learn", "made"]

AnyNetwork = TypeVar("AnyNetwork", bound=nn.Module)

# Channels are normalised in this many groups.
_GROUPS = 4


class Autoencoder(nn.Module):
    """Images (N, C, H, W) to maps (N, outputs, H, W), each image on its own.

    Twice halved and doubled again, with shortcuts between equal sizes. What is normalised is
    normalised within an image, so that training and use are the same.

    Args:
        channels: Of the images.
        outputs: How many maps; their values are unbounded.
        width: Channels at full resolution, a multiple of 4; twice as many at each half.

    Raises:
        ConfigError: The width is no multiple of 4.
    """

    def __init__(self, channels: int, outputs: int, width: int = 16) -> None:
        super().__init__()
        if width < 1 or width % _GROUPS:
            raise ConfigError(f"expected a width that is a multiple of {_GROUPS}, got {width}")
        self.down = nn.ModuleList(
            [_block(channels, width), _block(width, 2 * width, 2), _block(2 * width, 4 * width, 2)]
        )
        self.up = nn.ModuleList([_block(4 * width, 2 * width), _block(2 * width, width)])
        self.last = nn.Conv2d(width, outputs, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """The maps of the images."""
        features, levels = images, []
        for block in self.down:
            features = block(features)
            levels.append(features)
        for block, level in zip(self.up, (levels[1], levels[0]), strict=True):
            features = F.interpolate(block(features), size=level.shape[-2:]) + level
        maps: Tensor = self.last(features)
        return maps


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1),
        nn.GroupNorm(_GROUPS, outputs),
        nn.LeakyReLU(0.1),
    )


def made(
    make: Callable[[], AnyNetwork], generator: torch.Generator, device: torch.device
) -> AnyNetwork:
    """A fresh network on ``device``; the CPU generator decides its first weights."""
    with private_randomness(generator, torch.device("cpu")):
        network = make()
    return network.to(device)


def frozen(network: AnyNetwork) -> AnyNetwork:
    """The same network, in eval mode and no longer to be trained."""
    return network.eval().requires_grad_(False)


def device_of(network: nn.Module) -> torch.device:
    """Where a network with parameters lives."""
    return next(network.parameters()).device


def descent(network: nn.Module, lr: float, schedule: Schedule, images: int) -> Callable[[], None]:
    """What moves a network by the gradients it has, and forgets them: one step of Adam a call.

    Args:
        network: Whose parameters move.
        lr: Learning rate of the first step; over all steps it falls linearly to a twentieth.
        schedule: Says with ``images``, of the training data, how many steps there will be.
        images: How many there are.
    """
    steps = schedule.epochs * -(-images // schedule.batch)
    # Nguyen and Tran's betas: a generator follows an aim that moves.
    optimiser = torch.optim.Adam(network.parameters(), lr, betas=(0.5, 0.9))
    cooling = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.05, max(1, steps))

    def step() -> None:
        optimiser.step()
        optimiser.zero_grad()
        cooling.step()

    return step


def learn(
    network: nn.Module,
    data: Labelled,
    loss: Callable[[Tensor], Tensor],
    schedule: Schedule,
    generator: torch.Generator,
    *,
    progress: EpochProgress = silent_epochs,
) -> None:
    """Minimise ``loss`` of pixels over ``data`` with Adam, in place; it ends up frozen.

    Args:
        network: Whose parameters move.
        data: The attacker's training images.
        loss: Called with augmented pixels on the network's device.
        schedule: Epochs, batch and augmentation; ``lr`` is Adam's, see ``descent``.
        generator: CPU generator for order and augmentation.
        progress: Told after each epoch.
    """
    step = descent(network, schedule.lr, schedule, len(data))
    images = data.images.to(device_of(network))
    for epoch in range(schedule.epochs):
        for index in torch.randperm(len(data), generator=generator).split(schedule.batch):
            pixels = as_pixels(images[index.to(images.device)])
            loss(augment(pixels, schedule, generator)).backward()
            step()
        progress(epoch + 1, schedule.epochs)
    frozen(network)
