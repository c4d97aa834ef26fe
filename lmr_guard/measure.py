# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Predictor x data -> counts. Every form of a model is measured by this code."""

from contextlib import nullcontext

import torch
from torch import Tensor

from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Hit, Inverted, Labelled, Predictor, Rate, Trigger, TriggerResult

__all__ = [
    "accuracy",
    "against_pattern",
    "against_trigger",
    "mean_over_others",
    "predict",
    "right",
    "right_per_class",
]


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
        untouched: Where the predictor puts the clean images, int64 of shape (N,): with it the
            result says how many of them land in the target without a trigger, and which other
            class gains most by it.
    """
    device = getattr(predictor, "device", torch.device("cpu"))
    predicted: list[Tensor] = []
    true: list[Tensor] = []
    for pixels, labels in trigger.batches(clean, batch):
        predicted.append(predictor(pixels.to(device)).argmax(dim=1).cpu())
        true.append(labels)
    landed, labels = torch.cat(predicted), torch.cat(true)
    if trigger.target is None:
        rates = {c: _asr(landed, labels, c) for c in range(len(clean.classes))}
        target = max(rates, key=lambda c: rates[c].value)
    else:
        target = trigger.target
    return TriggerResult(
        name=trigger.name,
        source=trigger.source,
        target=target,
        asr=_asr(landed, labels, target),
        ta=Rate(int((landed == labels).sum()), len(labels)),
        without=None if untouched is None else _asr(untouched, clean.labels, target),
        elsewhere=None
        if untouched is None or trigger.target is None
        else _elsewhere(landed, labels, untouched, clean.labels, target),
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
    asr, true = _against(predictor, clean, pattern)
    nothing = predict(predictor, clean).argmax(dim=1)
    return TriggerResult(
        name=pattern.name,
        source="inverted",
        target=pattern.target,
        asr=asr,
        ta=true,
        without=_asr(nothing, clean.labels, pattern.target),
        tried="replayed" if strangeness is None else "searched",
        strangeness=strangeness,
    )


@torch.no_grad()
def _against(predictor: Predictor, clean: Labelled, pattern: Inverted) -> tuple[Rate, Rate]:
    """ASR and TA of one pattern."""
    device = getattr(predictor, "device", torch.device("cpu"))
    parts = [predictor(pattern(pixels).to(device)) for pixels, _ in clean.batches()]
    landed = torch.cat(parts).argmax(dim=1).cpu()
    return _asr(landed, clean.labels, pattern.target), Rate(
        int((landed == clean.labels).sum()), len(clean)
    )


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
