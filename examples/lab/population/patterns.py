# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Searches for the smallest pattern in spaces that ``localize`` does not look through.

They have the settings of ``inversion.Config``, and are led as those are.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Labelled, as_pixels
from lmr_guard.localize.inversion import InversionSettings

__all__ = [
    "KINDS",
    "Budgets",
    "Kind",
    "Question",
    "clip_rows",
    "low_waves",
    "search",
    "straight_waves",
]

_MEMORY, _SETTLE, _TAIL = 0.6, 5, 0.3


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """One form of a network and what it is asked with.

    Args:
        model: In eval mode; not touched.
        images: Clean ones that it gets right.
        config: Of the searches.
        generator: CPU generator.
    """

    model: Classifier
    images: Labelled
    config: InversionSettings
    generator: torch.Generator


class Budgets:
    """One per class, led as in ``inversion``.

    Args:
        count: Of classes.
        start: What all begin with.
        config: How fast they shrink and grow.
    """

    def __init__(self, count: int, start: float, config: InversionSettings) -> None:
        self.now = torch.full((count,), start)
        self._config = config
        self._reached = torch.zeros(count)
        self._seen: list[Tensor] = []

    def follow(self, hits: Tensor) -> None:
        """Shrink or grow after a step with these shares (count,) of success."""
        config = self._config
        self._reached = _MEMORY * self._reached + (1 - _MEMORY) * hits.cpu()
        if len(self._seen) >= _SETTLE:
            factor = torch.where(self._reached >= config.success, config.shrink, config.grow)
            self.now = self.now * factor
        self._seen.append(self.now.log())

    @property
    def sizes(self) -> Tensor:
        """Geometric mean over the last steps."""
        tail = max(1, int(_TAIL * len(self._seen)))
        return torch.stack(self._seen[-tail:]).mean(dim=0).exp()


@torch.no_grad()
def clip_rows(rows: Tensor, budgets: Tensor, scale: float = 1.0) -> None:
    """Each row (count, ...), in place, to a norm of at most ``scale`` times its budget."""
    norms = rows.flatten(1).norm(dim=1).clamp_min(1e-12)
    factors = (scale * budgets.to(rows) / norms).clamp(max=1)
    rows.mul_(factors.view(-1, *[1] * (rows.ndim - 1)))


@dataclass(frozen=True, slots=True)
class Kind:
    """One space of patterns.

    Args:
        start: First budget.
        rate: Step size of Adam.
        draw: Parameters of patterns (count, C, H, W).
        project: Parameters, in place, into budgets (count,).
        apply: Parameters and budgets to pixels (count, B, C, H, W).
    """

    start: float
    rate: float
    draw: Callable[[tuple[int, int, int, int], torch.Generator], Tensor]
    project: Callable[[Tensor, Tensor], None]
    apply: Callable[[Tensor, Tensor, Tensor], Tensor]


def search(question: Question, kind: Kind) -> Tensor:
    """The size of the smallest pattern for each class, (K,); see ``inversion``.

    Args:
        question: See ``Question``.
        kind: The space that is searched.
    """
    model, images, config = question.model, question.images, question.config
    shape, classes = model.preprocessing, torch.arange(model.num_classes)
    others = [(images.labels != k).nonzero().flatten() for k in classes.tolist()]
    drawn = kind.draw((len(classes), shape.channels, shape.height, shape.width), question.generator)
    pattern = drawn.to(model.device).requires_grad_()
    optimiser = torch.optim.Adam([pattern], kind.rate, betas=(0.5, 0.9))
    budgets = Budgets(len(classes), kind.start, config)
    wanted = classes.to(model.device)[:, None].expand(-1, config.batch)
    for _ in range(config.steps):
        rows = torch.stack(
            [
                o[torch.randint(len(o), (config.batch,), generator=question.generator)]
                for o in others
            ]
        )
        chosen = as_pixels(images.images[rows].to(model.device))
        changed = kind.apply(pattern, budgets.now.to(model.device), chosen).clamp(0, 1)
        logits = model(changed.flatten(0, 1))
        loss = F.cross_entropy(logits, wanted.flatten(), reduction="sum")
        (pattern.grad,) = torch.autograd.grad(loss, pattern)
        optimiser.step()
        hits = (logits.argmax(dim=1).view_as(wanted) == wanted).float().mean(dim=1)
        budgets.follow(hits)
        budgets.now.clamp_(max=1)
        with torch.no_grad():
            kind.project(pattern, budgets.now)
    return budgets.sizes


def _additive(basis: Callable[[int, int], Tensor]) -> Kind:
    """Sums of fixed waves; the budget is the root mean square of the sum, in pixel units."""

    def draw(shape: tuple[int, int, int, int], generator: torch.Generator) -> Tensor:
        count, channels, height, width = shape
        waves = len(basis(height, width))
        return 1e-3 * torch.randn(count, channels, waves, generator=generator)

    def project(weights: Tensor, budgets: Tensor) -> None:
        clip_rows(weights, budgets, math.sqrt(weights.shape[1]))

    def apply(weights: Tensor, _: Tensor, pixels: Tensor) -> Tensor:
        waves = basis(*pixels.shape[-2:]).to(pixels)
        pattern = torch.einsum("kcb,bhw->kchw", weights, waves)
        return pixels + pattern[:, None]

    return Kind(0.15, 0.02, draw, project, apply)


@cache
def low_waves(height: int, width: int) -> Tensor:
    """The 25 lowest two-dimensional cosines, each with a mean square of 1."""
    down, across = (_cosines(torch.arange(5), side) for side in (height, width))
    return _unit(torch.einsum("ih,jw->ijhw", down, across).flatten(0, 1))


@cache
def straight_waves(height: int, width: int) -> Tensor:
    """Sines and cosines of 1 to 8 periods, along the rows and along the columns."""
    found = []
    for side, towards in ((height, (-1, 1)), (width, (1, -1))):
        periods = torch.arange(1, min(9, side // 2))
        # A cosine of the discrete transform makes half a period per step.
        for wave in (*_cosines(2 * periods, side), *_sines(periods, side)):
            found.append(wave.view(towards).expand(height, width))
    return _unit(torch.stack(found))


def _cosines(orders: Tensor, side: int) -> Tensor:
    return torch.cos(math.pi * orders[:, None] * (torch.arange(side) + 0.5) / side)


def _sines(periods: Tensor, side: int) -> Tensor:
    return torch.sin(2 * math.pi * periods[:, None] * (torch.arange(side) + 0.5) / side)


def _unit(waves: Tensor) -> Tensor:
    return waves / waves.square().mean(dim=(1, 2), keepdim=True).sqrt()


def _draw_blend(shape: tuple[int, int, int, int], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator)


def _project_blend(pattern: Tensor, _: Tensor) -> None:
    pattern.clamp_(0, 1)


def _apply_blend(pattern: Tensor, budgets: Tensor, pixels: Tensor) -> Tensor:
    return torch.lerp(pixels, pattern[:, None], budgets.view(-1, 1, 1, 1, 1))


def _draw_filter(shape: tuple[int, int, int, int], generator: torch.Generator) -> Tensor:
    count, channels, _, _ = shape
    return 1e-3 * torch.randn(count, channels, channels, 5, 5, generator=generator)


def _apply_filter(weights: Tensor, _: Tensor, pixels: Tensor) -> Tensor:
    count, channels = weights.shape[:2]
    rows = pixels.transpose(0, 1).flatten(1, 2)
    padded = F.pad(rows, (2, 2, 2, 2), mode="replicate")
    added: Tensor = F.conv2d(padded, weights.flatten(0, 1), groups=count)
    moved: Tensor = added.unflatten(1, (count, channels))
    return pixels + moved.transpose(0, 1)


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "low": _additive(low_waves),
        "waves": _additive(straight_waves),
        "blend": Kind(0.3, 0.15, _draw_blend, _project_blend, _apply_blend),
        "filter": Kind(0.3, 0.03, _draw_filter, clip_rows, _apply_filter),
    }
)
