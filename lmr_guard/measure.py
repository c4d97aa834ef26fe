# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Predictor x data -> counts. Every form of a model is measured by this code."""

from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Inverted, Labelled, Predictor, Rate, Trigger
from lmr_guard.results import Hit, Margins, TriggerResult

__all__ = [
    "accuracy",
    "against_pattern",
    "against_trigger",
    "carried",
    "mean_over_others",
    "predict",
    "right",
    "right_per_class",
]

_FEW = 32


@torch.no_grad()
def predict(predictor: Predictor, data: Labelled, batch: int = 256) -> Tensor:
    """Logits (N, K) of all images, on the CPU, in float32; a module must be in eval mode."""
    device = getattr(predictor, "device", torch.device("cpu"))
    with predictor.exact() if isinstance(predictor, Classifier) else nullcontext():
        return torch.cat([predictor(pixels.to(device)).cpu() for pixels, _ in data.batches(batch)])


def accuracy(predictor: Predictor, data: Labelled, batch: int = 256) -> Rate:
    """CA: how many images land in their own class. A NaN logit is a miss."""
    return right(predict(predictor, data, batch), data)


def right_per_class(logits: Tensor, data: Labelled) -> tuple[Rate, ...]:
    """CA on the images of each class, in index order; they add up to ``right``."""
    hit = (logits.argmax(dim=1) == data.labels) & logits.isfinite().all(dim=1)
    count = len(data.classes)
    hits, trials = (x.bincount(minlength=count).tolist() for x in (data.labels[hit], data.labels))
    return tuple(map(Rate, hits, trials))


def right(logits: Tensor, data: Labelled) -> Rate:
    """CA, from logits (N, K) of the images of ``data``."""
    hit = (logits.argmax(dim=1) == data.labels) & logits.isfinite().all(dim=1)
    return Rate(int(hit.sum()), len(data))


def mean_over_others(values: Tensor, labels: Tensor) -> Tensor:
    """Of each class: the mean of its column over the images of other classes; 0 without any.

    Args:
        values: One row per image and one column per class, shape (N, K).
        labels: True classes, int64, shape (N,).
    """
    others = (labels[:, None] != torch.arange(values.shape[1])).to(values)
    means: Tensor = (values * others).sum(dim=0) / others.sum(dim=0).clamp_min(1)
    return means


@torch.no_grad()
def against_trigger(
    predictor: Predictor,
    clean: Labelled,
    trigger: Trigger,
    batch: int = 256,
    untouched: Tensor | None = None,
) -> TriggerResult:
    """ASR over triggered images of other classes, TA over all triggered images.

    Where the trigger names no target, the class with the highest ASR stands for it: that can
    only overstate the attack.

    Args:
        predictor: What is measured.
        clean: The ``report`` part, where the numbers are for a report.
        trigger: The evidence.
        batch: Images a forward pass.
        untouched: Logits (N, K) of the clean images: with them the result says how many land in
            the target without a trigger, which other class gains most by it, and how near the
            images come to the target.
    """
    device = getattr(predictor, "device", torch.device("cpu"))
    outputs: list[Tensor] = []
    true: list[Tensor] = []
    for pixels, labels in trigger.batches(clean, batch):
        outputs.append(predictor(pixels.to(device)).cpu())
        true.append(labels)
    logits, labels = torch.cat(outputs), torch.cat(true)
    landed = logits.argmax(dim=1)
    if trigger.target is None:
        rates = {c: _asr(landed, labels, c) for c in range(len(clean.classes))}
        target = max(rates, key=lambda c: rates[c].value)
    else:
        target = trigger.target
    result = TriggerResult(
        name=trigger.name,
        source=trigger.source,
        target=target,
        asr=_asr(landed, labels, target),
        ta=Rate(int((landed == labels).sum()), len(labels)),
    )
    if untouched is None:
        return result
    before, own = untouched.argmax(dim=1), clean.labels
    told = trigger.target is not None
    return replace(
        result,
        without=_asr(before, own, target),
        elsewhere=_elsewhere(landed, labels, before, own, target) if told else None,
        margins=_margins(_margin(untouched, own, target), _margin(logits, labels, target)),
    )


def against_pattern(
    predictor: Predictor,
    clean: Labelled,
    pattern: Inverted,
    strangeness: float | None = None,
) -> TriggerResult:
    """ASR of a pattern that a search for triggers found, beside that of no pattern at all.

    Args:
        predictor: What is measured.
        clean: What the rates are counted on.
        pattern: See ``Suspicion.patterns`` and ``Listening.pattern``.
        strangeness: Of the pattern, where it was searched for on what ``predictor`` runs; None
            where it was found elsewhere and is replayed.
    """
    logits, untouched = _under(predictor, clean, pattern), predict(predictor, clean)
    landed, own, target = logits.argmax(dim=1), clean.labels, pattern.target
    return TriggerResult(
        name=pattern.name,
        source="inverted",
        target=target,
        asr=_asr(landed, own, target),
        ta=Rate(int((landed == own).sum()), len(clean)),
        without=_asr(untouched.argmax(dim=1), own, target),
        tried="replayed" if strangeness is None else "searched",
        strangeness=strangeness,
        margins=_margins(_margin(untouched, own, target), _margin(logits, own, target)),
    )


def carried(predictor: Predictor, clean: Labelled, pattern: Inverted) -> Rate:
    """Of a few images of other classes, those that a pattern sends to its class.

    A network is asked as a search asks it, with gradients: one that answers otherwise without them
    is not what its file is.

    Args:
        predictor: A network or a file.
        clean: The first 32 images are looked at.
        pattern: See ``Listening.patterns``.
    """
    few = clean.subset(torch.arange(min(_FEW, len(clean))))
    device = getattr(predictor, "device", torch.device("cpu"))
    exact = predictor.exact() if isinstance(predictor, Classifier) else nullcontext()
    with exact, torch.enable_grad():
        outputs = predictor(pattern(few.pixels).to(device)).detach().cpu()
    return _asr(outputs.argmax(dim=1), few.labels, pattern.target)


@torch.no_grad()
def _under(predictor: Predictor, clean: Labelled, pattern: Inverted) -> Tensor:
    """Logits (N, K) of all images under one pattern, on the CPU."""
    device = getattr(predictor, "device", torch.device("cpu"))
    parts = [predictor(pattern(pixels).to(device)) for pixels, _ in clean.batches()]
    return torch.cat(parts).cpu()


def _margin(logits: Tensor, labels: Tensor, target: int) -> Tensor:
    """The margin of ``target`` on the images of other classes; float64, shape (M,)."""
    outside = logits[labels != target]
    leading = outside.topk(min(2, outside.shape[1]))
    wins = leading.indices[:, 0] == target
    rival = torch.where(wins, leading.values[:, -1], leading.values[:, 0])
    return outside[:, target].double() - rival.double()


def _margins(clean: Tensor, triggered: Tensor) -> Margins | None:
    if not all(len(each) and bool(each.isfinite().all()) for each in (clean, triggered)):
        return None
    return Margins(_quantiles(clean), _quantiles(triggered))


def _quantiles(values: Tensor) -> tuple[float, ...]:
    """See ``Margins``; to four digits, which changes no sign."""
    ascending, tenths = values.sort().values.tolist(), Margins.TENTHS
    # -(-a // b) rounds up without leaving the whole numbers.
    ranks = [max(1, -(-len(ascending) * tenth // tenths)) for tenth in range(tenths + 1)]
    return tuple(float(f"{ascending[rank - 1]:.4g}") for rank in ranks)


def _elsewhere(
    landed: Tensor, labels: Tensor, untouched: Tensor, true: Tensor, target: int
) -> Hit | None:
    """The class other than the target that most more images land in than without the trigger."""
    hits = [
        Hit(k, _asr(landed, labels, k), _asr(untouched, true, k))
        for k in range(int(max(landed.max(), untouched.max(), labels.max())) + 1)
        if k != target
    ]
    return max(hits, key=lambda hit: hit.asr.value - hit.without.value, default=None)


def _asr(landed: Tensor, labels: Tensor, target: int) -> Rate:
    others = labels != target
    return Rate(int((landed[others] == target).sum()), int(others.sum()))
