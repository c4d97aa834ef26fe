# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What a network puts out, seen on clean images: logits, and of which size, or probabilities.

Localize and repel reckon with margins of logits of the size that cross-entropy leaves. A network
may end in a softmax or in sigmoids, and its logits may be any multiple of that; ``understood``
returns the same network as a ``Classifier`` whose logits are of the usual kind and size, and
``Classifier.as_received`` leads back to what was received.

The size is a temperature, Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017): the
``T`` that makes ``softmax(z / T)`` most likely on clean images, with labels smoothed as by Platt,
"Probabilistic Outputs for Support Vector Machines" (1999), so that it exists where all are right.
Nine networks of ``examples.lab.strong``, looked at by hand, had 1.4 to 2.0; nothing is done from
0.1 to 10. Beyond, logits are divided by the nearest power of ten, or rather by the power of two
next to it: a division that loses no bit can be taken back, and weights that nobody changed keep
their digest.
"""

from math import log2, log10
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lmr_guard.classifier import Classifier, Ending, Kind, find_head, scale_head
from lmr_guard.contracts import Labelled
from lmr_guard.errors import InputError
from lmr_guard.measure import predict

__all__ = ["described", "kind_of", "last_function", "temperature", "understood"]

_USUAL = (0.1, 10.0)
_SUM = 1e-3
# Temperatures are looked for among powers of two: steps to a doubling, doublings to each side.
_FINEST, _WIDEST = 4, 40


def understood(classifier: Classifier, clean: Labelled) -> Classifier:
    """A copy whose ``forward`` yields logits of usual size, whatever the network puts out.

    Uses no randomness. A network with logits of usual size comes back as it is.

    Args:
        classifier: In eval mode; left as it is. What it says of its ending is not relied upon.
        clean: ``select``: what it puts out is looked at on these.
    """
    model = classifier.as_received()
    outputs = predict(model, clean)
    ending = Ending(kind=kind_of(outputs, last_function(model)))
    unit = _unit(ending.logits(outputs), clean.labels)
    head_unit = 1.0 if unit == 1 else _unit(_head_outputs(model, clean), clean.labels)
    scale_head(model, 1 / head_unit)
    model.ending = Ending(kind=ending.kind)
    rest = 1.0 if unit == 1 else _unit(predict(model, clean), clean.labels)
    model.ending = Ending(kind=ending.kind, unit=rest, head_unit=head_unit)
    return model


def described(ending: Ending) -> tuple[str, ...]:
    """What a reader of a report must know of an ending that is not logits of usual size."""
    told = []
    if ending.kind != "logits":
        told.append(
            f"The network puts out {ending.kind}: it was searched and repaired on the logits "
            "behind them, and the files put out what it did."
        )
    if (factor := ending.unit * ending.head_unit) != 1:
        told.append(
            f"Its logits are about {factor:.3g} times those of usual networks: it was searched "
            "and repaired on logits divided by that, and the files put out what it did."
        )
    return tuple(told)


def kind_of(outputs: Tensor, last: str | None) -> Kind:
    """What outputs (N, K) of clean images are.

    Args:
        outputs: Finite, of many images: one row may be anything by chance.
        last: The torch function that made them, where it is known. It tells sigmoids, which look
            like any numbers in [0, 1]; the others show in their sums.
    """
    ones = torch.ones(len(outputs))
    if bool(((outputs >= 0) & (outputs <= 1)).all()):
        if torch.allclose(outputs.sum(dim=1), ones, atol=_SUM):
            return "probabilities"
        return "sigmoids" if last == "sigmoid" else "logits"
    if bool((outputs <= 0).all()) and torch.allclose(outputs.exp().sum(dim=1), ones, atol=_SUM):
        return "log-probabilities"
    return "logits"


def temperature(logits: Tensor, labels: Tensor) -> float:
    """The ``T`` among powers of ``2 ** (1/4)`` at which ``softmax(z / T)`` is most likely.

    Labels are smoothed: ``(n + 1) / (n + K)`` on the class itself, n images, K classes.

    Args:
        logits: Shape (N, K), finite.
        labels: Shape (N,).
    """
    z, (n, k) = logits.double(), logits.shape
    targets = torch.full((n, k), 1 / (n + k), dtype=torch.float64)
    targets.scatter_(1, labels[:, None], (n + 1) / (n + k))
    steps = torch.arange(-_WIDEST * _FINEST, _WIDEST * _FINEST + 1) / _FINEST
    losses = torch.stack(
        [-(targets * (z / 2**step).log_softmax(dim=1)).sum(dim=1).mean() for step in steps.double()]
    )
    near = steps[losses <= losses.min() + 1e-6]
    return float(2 ** near[near.abs().argmin()])


class _Last(TorchFunctionMode):
    """Remembers the torch function that made the last tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.name: str | None = None

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401 - whatever torch was asked for
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.name = str(getattr(func, "__name__", ""))
        return made


@torch.no_grad()
def last_function(classifier: Classifier) -> str | None:
    """Name of the torch function whose result the network returns; None where none was seen."""
    pixels = classifier.normalise(classifier.example())
    last = _Last()
    with last:
        classifier.network(pixels)
    return last.name


def _head_outputs(model: Classifier, clean: Labelled) -> Tensor:
    """What the head puts out (N, K), averaged over positions; zeros where there is no head."""
    try:
        _, head = find_head(model, model.example(), model.num_classes)
    except InputError:
        return torch.zeros(len(clean), model.num_classes)
    seen: list[Tensor] = []

    def remember(module: nn.Module, given: object, made: Tensor) -> None:
        del module, given
        positions = (
            made.detach().cpu() if isinstance(head, nn.Linear) else made.cpu().movedim(1, -1)
        )
        seen.append(positions.reshape(len(made), -1, model.num_classes).mean(dim=1))

    handle = head.register_forward_hook(remember)
    predict(model, clean)
    handle.remove()
    return torch.cat(seen)


def _unit(logits: Tensor, labels: Tensor) -> float:
    """What to divide logits by, a power of two; 1 where they are of usual size."""
    if not bool(logits.isfinite().all()):
        return 1.0
    found = temperature(logits, labels)
    if _USUAL[0] <= found <= _USUAL[1]:
        return 1.0
    return float(2 ** round(log2(10 ** round(log10(found)))))
