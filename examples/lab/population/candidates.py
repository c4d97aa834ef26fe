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
from dataclasses import asdict
from time import process_time
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from examples.lab.population.patterns import KINDS, Budgets, Question, clip_rows, search
from examples.lab.population.planting import generator
from examples.lab.population.subjects import Subject
from lmr_guard.classifier import Classifier, find_head
from lmr_guard.localize import inversion, searches, spaces
from lmr_guard.localize.drift import drift
from lmr_guard.localize.inversion import InversionSettings
from lmr_guard.measure import accuracy, predict
from lmr_guard.settings import Settings
from lmr_guard.workshop import Structure, searched_forms

__all__ = ["CANDIDATES", "ask_candidates"]

_MARGIN_STEPS, _STARTS, _MARGIN_RATE = 40, 6, 0.1
# The head alone is cheap: it gets more and smaller steps.
_LATENT = InversionSettings(steps=120, shrink=0.93, grow=1.05)


def ask_candidates(subject: Subject) -> dict[str, Any]:
    """For each form and candidate one value per class; they see what localize sees.

    Raises:
        GuardError: A step could not be done.
    """
    member, repair = subject.member, subject.clean.repair
    config = Settings(seed=member.seed)
    settings = InversionSettings(steps=1) if subject.tiny else InversionSettings()
    received = subject.trained.classifier.clone()
    forms = searched_forms(received, subject.clean, config, Structure(received))
    least = config.localize.min_accuracy * accuracy(received, repair).value
    awake = [(name, form) for name, form in forms if accuracy(form, repair).value >= least]
    drawn, seconds = generator(member, "candidates"), dict.fromkeys(CANDIDATES, 0.0)
    values = {}
    for name, model in [("received", received), *awake]:
        question = Question(model, searches.recognised(model, repair), settings, drawn)
        values[name] = _ask_all(question, seconds)
    start = process_time()
    drifts = {name: _short(drift(received, form, repair)) for name, form in forms}
    seconds["drift"] = process_time() - start
    return {
        "forms": values,
        "drift": drifts,
        "settings": {"tiny": subject.tiny, "inversion": asdict(settings)},
        "processor_seconds": {name: round(value, 3) for name, value in seconds.items()},
    }


def _ask_all(question: Question, seconds: dict[str, float]) -> dict[str, list[float]]:
    """What all candidates say of one form; the time each takes is added to its seconds."""
    values: dict[str, list[float]] = {}
    for name, ask in CANDIDATES.items():
        start = process_time()
        values |= {key: _short(found) for key, found in ask(question).items()}
        seconds[name] += process_time() - start
    return values


def _short(values: Tensor) -> list[float]:
    return [float(f"{value:.4g}") for value in values]


# --- without a search of patterns ----------------------------------------------------------------


def _margin(question: Question) -> dict[str, Tensor]:
    """Of each class the largest of its margins over a few starts, and their mean."""
    model, shape = question.model, question.model.preprocessing
    count = model.num_classes * _STARTS
    drawn = torch.rand(
        count, shape.channels, shape.height, shape.width, generator=question.generator
    )
    pixels = drawn.to(model.device).requires_grad_()
    own = torch.arange(model.num_classes, device=model.device).repeat_interleave(_STARTS)
    optimiser = torch.optim.Adam([pixels], _MARGIN_RATE, betas=(0.5, 0.9))
    best = torch.full((count,), -math.inf, device=model.device)
    for _ in range(min(_MARGIN_STEPS, 2 * question.config.steps)):
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


def _head(question: Question) -> dict[str, Tensor]:
    """Statistics of the rows of the head."""
    weight, bias = _rows(question.model)
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


# --- shifts of what the head sees ----------------------------------------------------------------


def _latent(question: Question) -> dict[str, Tensor]:
    return {"latent": _shifts(question, -math.inf)}


def _active(question: Question) -> dict[str, Tensor]:
    return {"active": _shifts(question, 0.0)}


def _shifts(question: Question, least: float) -> Tensor:
    """Size of the smallest shift of the head's inputs for each class.

    Args:
        question: See ``Question``.
        least: Below which no shifted input falls.
    """
    inputs, (weight, bias) = _inputs(question), _rows(question.model)
    spread = inputs.std(dim=0).square().mean().sqrt().clamp_min(1e-12)
    inputs, weight = inputs / spread, weight * spread
    count, width = weight.shape
    config = (
        InversionSettings(steps=question.config.steps) if question.config.steps < 2 else _LATENT
    )
    shift = 1e-3 * torch.randn(count, width, generator=question.generator)
    shift.requires_grad_()
    budgets = Budgets(count, math.sqrt(width), config)
    optimiser = torch.optim.Adam([shift], 0.1, betas=(0.5, 0.9))
    own = torch.arange(count)
    others = (question.images.labels != own[:, None]).float()
    others /= others.sum(dim=1, keepdim=True)
    for _ in range(config.steps):
        moved = (inputs + shift[:, None]).clamp_min(least)
        logits = moved @ weight.T + bias
        told = logits.log_softmax(dim=2)[own, :, own]
        (shift.grad,) = torch.autograd.grad(-(told * others).sum(), shift)
        optimiser.step()
        budgets.follow(((logits.argmax(dim=2) == own[:, None]) * others).sum(dim=1))
        clip_rows(shift, budgets.now)
    return budgets.sizes


def _inputs(question: Question) -> Tensor:
    """What the head is given for each image, (N, D); positions are averaged."""
    _, head = find_head(question.model, question.model.example(), question.model.num_classes)
    kept: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, given: kept.append(given[0].detach().cpu()))
    try:
        predict(question.model, question.images)
    finally:
        handle.remove()
    found = torch.cat(kept)
    return found.flatten(2).mean(dim=2) if found.ndim > 2 else found


# --- all of them --------------------------------------------------------------------------------


def _inverted(space: spaces.Space) -> Callable[[Question], dict[str, Tensor]]:
    def ask(question: Question) -> dict[str, Tensor]:
        found = inversion.invert(
            question.model, question.images, space, (question.config,), question.generator
        )
        return {space: found.sizes}

    return ask


def _patterned(name: str) -> Callable[[Question], dict[str, Tensor]]:
    return lambda question: {name: search(question, KINDS[name])}


CANDIDATES: Mapping[str, Callable[[Question], Mapping[str, Tensor]]] = MappingProxyType(
    {
        "margin": _margin,
        "latent": _latent,
        "active": _active,
        "head": _head,
        **{name: _patterned(name) for name in KINDS},
        **{space: _inverted(space) for space in spaces.SPACES},
    }
)
"""What is asked, and the raw values (K,) that it gives, by name."""
