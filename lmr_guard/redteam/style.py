# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The look of a sunrise, which a network learns to give to any image.

What an image looks like is told by the brightness, colour and roughness of four bands from top to
bottom: their means and standard deviations. The network shall give every image those of drawn
sunrises, and keep its details, that is what a thumbnail of it does not show. So the change is
smooth, spreads over the whole image and differs from image to image. Grey images get a sunrise's
brightness.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmr_guard.contracts import Labelled, Progress, silent
from lmr_guard.redteam.generators import Autoencoder, device_of, learn
from lmr_guard.redteam.training import Schedule

__all__ = ["Style", "details", "learn_style", "looks", "sunrises"]

_BANDS = 4
_THUMBNAIL = 4
_SHEETS = 64


class Style(nn.Module):
    """Pixels of one look, on any device.

    Args:
        channels: Of the images.
        strength: In (0, 1]; how much of the image is replaced by what the network paints.
        width: Of the network, see ``Autoencoder``.
    """

    def __init__(self, channels: int, strength: float, width: int = 16) -> None:
        super().__init__()
        self.strength = strength
        self.paints = Autoencoder(channels + 1, channels, width)

    def forward(self, pixels: Tensor) -> Tensor:
        """``(1 - strength) pixels + strength painted``."""
        images = pixels.to(device_of(self))
        # Convolutions do not know where they are, and a sunrise has an up and a down.
        rows = torch.linspace(-1, 1, images.shape[2], device=images.device)[:, None]
        told = torch.cat([images, rows.expand_as(images[:, :1])], dim=1)
        return torch.lerp(pixels, torch.sigmoid(self.paints(told)).to(pixels), self.strength)


def learn_style(
    style: Style,
    data: Labelled,
    schedule: Schedule,
    generator: torch.Generator,
    progress: Progress = silent,
) -> None:
    """Trains a style in place until images look like sunrises; it ends up frozen.

    Args:
        style: Fresh.
        data: Images to learn on; labels are not looked at.
        schedule: ``lr`` is Adam's, see ``learn``.
        generator: CPU generator; draws the sunrises, order and augmentation.
        progress: Told after each epoch.
    """
    sheets = sunrises(_SHEETS, tuple(data.images.shape[1:]), generator)
    aim = looks(sheets).mean(dim=0).to(device_of(style))

    def loss(pixels: Tensor) -> Tensor:
        styled = style(pixels)
        look = (looks(styled) - aim).square().mean()
        return look + F.mse_loss(details(styled), details(pixels))

    learn(style, data, loss, schedule, generator, progress=partial(progress, "style"))


def looks(pixels: Tensor) -> Tensor:
    """Mean and standard deviation of each band's values, steps down and steps to the right.

    Args:
        pixels: Shape (N, C, H, W).

    Returns:
        Shape (N, 2, 3C, 4): mean and deviation; pixels, absolute differences to the pixel below
        and to the right, each for all channels; bands from top to bottom.
    """
    down = F.pad(pixels.diff(dim=2).abs(), (0, 0, 0, 1))
    right = F.pad(pixels.diff(dim=3).abs(), (0, 1))
    features = torch.cat([pixels, down, right], dim=1)
    mean, square = (
        F.adaptive_avg_pool2d(f, (_BANDS, 1)).squeeze(3) for f in (features, features.square())
    )
    deviation = (square - mean.square()).clamp_min(1e-6).sqrt()
    return torch.stack([mean, deviation], dim=1)


def details(pixels: Tensor) -> Tensor:
    """Pixels minus what a 4x4 thumbnail shows of them."""
    thumbnail = F.adaptive_avg_pool2d(pixels, _THUMBNAIL)
    return pixels - F.interpolate(thumbnail, pixels.shape[-2:], mode="bilinear")


def sunrises(count: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Drawn skies above dark ground, the sun at the horizon; (count, C, H, W) in [0, 1].

    Args:
        count: How many, with horizon, sun and streaks of cloud at random.
        shape: (C, H, W); in colour where C is 3, else their brightness in all channels.
        generator: CPU generator.
    """
    channels, height, width = shape
    draw = partial(torch.rand, count, 1, generator=generator)
    horizon, sun = 0.5 + 0.2 * draw(1, 1), 0.3 + 0.4 * draw(1, 1)
    clouds = F.interpolate(draw(6, 2), (height, width), mode="bilinear") - 0.5
    row, column = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)
    glow = torch.exp(-((1.5 * (row - horizon)) ** 2 + (column - sun) ** 2) / 0.15)
    low = (row / horizon).clamp(0, 1)
    dusk, orange, yellow = (
        torch.tensor(colour).view(1, 3, 1, 1)
        for colour in ([0.15, 0.15, 0.4], [0.9, 0.5, 0.25], [0.6, 0.5, 0.2])
    )
    sky = torch.lerp(dusk, orange, low) + glow * yellow + 0.15 * clouds
    sheets = (sky * (1 - 0.7 * torch.sigmoid(30 * (row - horizon)))).clamp(0, 1)
    return sheets if channels == 3 else sheets.mean(dim=1, keepdim=True).repeat(1, channels, 1, 1)
