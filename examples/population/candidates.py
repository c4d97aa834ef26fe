# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Which other scores might tell the attacker's class? Raw values of each, class by class.

``localize`` goes by inversion. What is tried beside it, on the same forms of the same networks:

=============  ===================================================================================
``margin``     largest ``z_c - max z_k`` that an image made from noise reaches; no real images.
               Wang et al., "MM-BD" (S&P 2024), with Adam and few steps
``latent``     L2 norm of the smallest universal shift of the head's input that sends images of
               other classes to c, in units of those inputs' spread
``active``     the same where no input may become negative, as after a ReLU
``head``       norm, mean, bias of c's row of the head and its mean cosine to the other rows
``low``        inversion restricted to the 25 lowest cosines of an image
``waves``      inversion restricted to sums of straight waves, up to 8 across
``blend``      ``(1 - a) x + a p`` with one opacity for the whole image
``filter``     a 5 x 5 convolution, added to the image
``drift``      how much more probable c is to a compressed form than to the model as received, in
               the mean over images of other classes; also of forms that lost their accuracy
=============  ===================================================================================

and ``patch``, ``additive``, ``warp``: what ``localize`` does, one search each, never repeated. All
searches have the settings of ``inversion.Config``. Read by ``compare``.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from time import process_time
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from examples.population.images import defence
from examples.population.nursery import Grown, generator
from examples.population.plan import Member
from examples.population.records import FORMAT, Record
from examples.population.score import measured
from examples.reproduce.data import Held
from lmr_guard import pipeline
from lmr_guard.classifier import Classifier, find_head
from lmr_guard.contracts import Labelled
from lmr_guard.localize import inversion, searches
from lmr_guard.localize.drift import drift
from lmr_guard.localize.inversion import InversionSettings
from lmr_guard.measure import accuracy, predict
from lmr_guard.release import report

__all__ = ["CANDIDATES", "Asked", "gathered"]

_MARGIN_STEPS, _STARTS, _MARGIN_RATE = 40, 6, 0.1
# The head alone is cheap: it gets more and smaller steps.
_LATENT = InversionSettings(steps=120, shrink=0.93, grow=1.05)
_MEMORY, _SETTLE, _TAIL = 0.6, 5, 0.3


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
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


def gathered(
    member: Member, held: Held, grown: Grown, *, commit: str | None, tiny: bool = False
) -> Record:
    """The content of the member's record: for each form and candidate one value a class.

    Args:
        member: Who it is.
        held: Its images; candidates see the part that localize sees.
        grown: The trained network.
        commit: Of the code.
        tiny: Whether searches are cut short, for the tests.

    Raises:
        GuardError: A step could not be done.
    """
    clean = defence(held, generator(member, "defence"), tiny=tiny)
    _, took = measured(member, grown, clean)
    config = pipeline.GuardConfig(seed=member.seed)
    search = InversionSettings(steps=1) if tiny else config.localize.inversion
    received = grown.classifier.clone()
    forms = pipeline._forms(received, clean, config.recipes)
    least = config.localize.min_accuracy * accuracy(received, clean.repair).value
    awake = [(name, form) for name, form in forms if accuracy(form, clean.repair).value >= least]
    drawn, seconds = generator(member, "candidates"), dict.fromkeys(CANDIDATES, 0.0)
    values = {
        name: _asked(Asked(model, searches.recognised(model, clean.repair), search, drawn), seconds)
        for name, model in [("received", received), *awake]
    }
    start = process_time()
    drifts = {name: _short(drift(received, form, clean.repair)) for name, form in forms}
    seconds["drift"] = process_time() - start
    return {
        "format": FORMAT,
        "name": member.name,
        "member": asdict(member),
        "took": took,
        "forms": values,
        "drift": drifts,
        "settings": {"tiny": tiny, "inversion": asdict(search)},
        "processor_seconds": {name: round(value, 3) for name, value in seconds.items()},
        "environment": {**report.environment(), "commit": commit},
    }


def _asked(asked: Asked, seconds: dict[str, float]) -> dict[str, list[float]]:
    """What all candidates say of one form; the time each takes is added to its seconds."""
    values: dict[str, list[float]] = {}
    for name, ask in CANDIDATES.items():
        start = process_time()
        values |= {key: _short(found) for key, found in ask(asked).items()}
        seconds[name] += process_time() - start
    return values


def _short(values: Tensor) -> list[float]:
    return [float(f"{value:.4g}") for value in values]


# --- without a search of patterns ----------------------------------------------------------------


def _margin(asked: Asked) -> dict[str, Tensor]:
    """Of each class the largest of its margins over a few starts, and their mean."""
    model, shape = asked.model, asked.model.preprocessing
    count = model.num_classes * _STARTS
    drawn = torch.rand(count, shape.channels, shape.height, shape.width, generator=asked.generator)
    pixels = drawn.to(model.device).requires_grad_()
    own = torch.arange(model.num_classes, device=model.device).repeat_interleave(_STARTS)
    optimiser = torch.optim.Adam([pixels], _MARGIN_RATE, betas=(0.5, 0.9))
    best = torch.full((count,), -math.inf, device=model.device)
    for _ in range(min(_MARGIN_STEPS, 2 * asked.config.steps)):
        logits = model(pixels)
        others = logits.scatter(1, own[:, None], -math.inf).amax(dim=1)
        margins = logits.gather(1, own[:, None])[:, 0] - others
        best = torch.maximum(best, margins.detach())
        (pixels.grad,) = torch.autograd.grad(-margins.sum(), pixels)
        optimiser.step()
        with torch.no_grad():
            pixels.clamp_(0, 1)
    table = best.cpu().view(model.num_classes, _STARTS)
    return {"margin": table.amax(dim=1), "margin_mean": table.mean(dim=1)}


def _head(asked: Asked) -> dict[str, Tensor]:
    """Statistics of the rows of the head."""
    weight, bias = _rows(asked.model)
    unit = F.normalize(weight, dim=1)
    cosines = (unit @ unit.T).sum(dim=1) - 1
    return {
        "head_norm": weight.norm(dim=1),
        "head_mean": weight.mean(dim=1),
        "head_bias": bias,
        "head_cosine": cosines / (len(weight) - 1),
    }


def _rows(model: Classifier) -> tuple[Tensor, Tensor]:
    """Weight (K, D) and bias (K,) of the head, on the CPU."""
    _, head = find_head(model, model.example(), model.num_classes)
    weight = head.weight.detach().flatten(1).cpu()
    bias = torch.zeros(len(weight)) if head.bias is None else head.bias.detach().cpu()
    return weight, bias


# --- budgets that follow success ----------------------------------------------------------------


class _Budgets:
    """One a class, led as in ``inversion``."""

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


def _latent(asked: Asked) -> dict[str, Tensor]:
    return {"latent": _shifts(asked, -math.inf)}


def _active(asked: Asked) -> dict[str, Tensor]:
    return {"active": _shifts(asked, 0.0)}


def _shifts(asked: Asked, least: float) -> Tensor:
    """Size of the smallest shift of the head's inputs for each class.

    Args:
        asked: See ``Asked``.
        least: Below which no shifted input falls.
    """
    inputs, (weight, bias) = _inputs(asked), _rows(asked.model)
    spread = inputs.std(dim=0).square().mean().sqrt().clamp_min(1e-12)
    inputs, weight = inputs / spread, weight * spread
    count, width = weight.shape
    config = InversionSettings(steps=asked.config.steps) if asked.config.steps < 2 else _LATENT
    shift = 1e-3 * torch.randn(count, width, generator=asked.generator)
    shift.requires_grad_()
    budgets = _Budgets(count, math.sqrt(width), config)
    optimiser = torch.optim.Adam([shift], 0.1, betas=(0.5, 0.9))
    own = torch.arange(count)
    others = (asked.images.labels != own[:, None]).float()
    others /= others.sum(dim=1, keepdim=True)
    for _ in range(config.steps):
        moved = (inputs + shift[:, None]).clamp_min(least)
        logits = moved @ weight.T + bias
        told = logits.log_softmax(dim=2)[own, :, own]
        (shift.grad,) = torch.autograd.grad(-(told * others).sum(), shift)
        optimiser.step()
        budgets.follow(((logits.argmax(dim=2) == own[:, None]) * others).sum(dim=1))
        _within(shift, budgets.now)
    return budgets.sizes


def _inputs(asked: Asked) -> Tensor:
    """What the head is given for each image, (N, D); positions are averaged."""
    _, head = find_head(asked.model, asked.model.example(), asked.model.num_classes)
    kept: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, given: kept.append(given[0].detach().cpu()))
    try:
        predict(asked.model, asked.images)
    finally:
        handle.remove()
    found = torch.cat(kept)
    return found.flatten(2).mean(dim=2) if found.ndim > 2 else found


@torch.no_grad()
def _within(rows: Tensor, budgets: Tensor, scale: float = 1.0) -> None:
    """Each row (count, ...), in place, to a norm of at most ``scale`` times its budget."""
    norms = rows.flatten(1).norm(dim=1).clamp_min(1e-12)
    factors = (scale * budgets.to(rows) / norms).clamp(max=1)
    rows.mul_(factors.view(-1, *[1] * (rows.ndim - 1)))


# --- other patterns -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Kind:
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


def _searched(asked: Asked, kind: _Kind) -> Tensor:
    """The size of the smallest pattern for each class; see ``inversion``."""
    model, images, config = asked.model, asked.images, asked.config
    shape, classes = model.preprocessing, torch.arange(model.num_classes)
    others = [(images.labels != k).nonzero().flatten() for k in classes.tolist()]
    drawn = kind.draw((len(classes), shape.channels, shape.height, shape.width), asked.generator)
    pattern = drawn.to(model.device).requires_grad_()
    optimiser = torch.optim.Adam([pattern], kind.rate, betas=(0.5, 0.9))
    budgets = _Budgets(len(classes), kind.start, config)
    wanted = classes.to(model.device)[:, None].expand(-1, config.batch)
    for _ in range(config.steps):
        rows = torch.stack(
            [o[torch.randint(len(o), (config.batch,), generator=asked.generator)] for o in others]
        )
        chosen = images.images[rows].to(model.device).float() / 255
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


def _additive(basis: Callable[[int, int], Tensor]) -> _Kind:
    """Sums of fixed waves; the budget is the root mean square of the sum, in pixel units."""

    def draw(shape: tuple[int, int, int, int], generator: torch.Generator) -> Tensor:
        count, channels, height, width = shape
        waves = len(basis(height, width))
        return 1e-3 * torch.randn(count, channels, waves, generator=generator)

    def project(weights: Tensor, budgets: Tensor) -> None:
        _within(weights, budgets, math.sqrt(weights.shape[1]))

    def apply(weights: Tensor, _: Tensor, pixels: Tensor) -> Tensor:
        waves = basis(*pixels.shape[-2:]).to(pixels)
        pattern = torch.einsum("kcb,bhw->kchw", weights, waves)
        return pixels + pattern[:, None]

    return _Kind(0.15, 0.02, draw, project, apply)


@cache
def _low(height: int, width: int) -> Tensor:
    """The 25 lowest two-dimensional cosines, each with a mean square of 1."""
    down, across = (_cosines(torch.arange(5), side) for side in (height, width))
    return _unit(torch.einsum("ih,jw->ijhw", down, across).flatten(0, 1))


@cache
def _waves(height: int, width: int) -> Tensor:
    """Sines and cosines of 1 to 8 periods, along the rows and along the columns."""
    found = []
    for side, towards in ((height, (-1, 1)), (width, (1, -1))):
        periods = torch.arange(1, min(9, side // 2))
        # A cosine of the discrete transform makes half a period a step.
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


_KINDS: Mapping[str, _Kind] = MappingProxyType(
    {
        "low": _additive(_low),
        "waves": _additive(_waves),
        "blend": _Kind(0.3, 0.15, _draw_blend, _project_blend, _apply_blend),
        "filter": _Kind(0.3, 0.03, _draw_filter, _within, _apply_filter),
    }
)


# --- all of them --------------------------------------------------------------------------------


def _inverted(space: inversion.Space) -> Callable[[Asked], dict[str, Tensor]]:
    def ask(asked: Asked) -> dict[str, Tensor]:
        found = inversion.invert(asked.model, asked.images, space, asked.config, asked.generator)
        return {space: found.sizes}

    return ask


def _patterned(name: str) -> Callable[[Asked], dict[str, Tensor]]:
    return lambda asked: {name: _searched(asked, _KINDS[name])}


CANDIDATES: Mapping[str, Callable[[Asked], Mapping[str, Tensor]]] = MappingProxyType(
    {
        "margin": _margin,
        "latent": _latent,
        "active": _active,
        "head": _head,
        **{name: _patterned(name) for name in _KINDS},
        **{space: _inverted(space) for space in inversion.SPACES},
    }
)
"""What is asked, and the raw values (K,) that it gives, by name."""
