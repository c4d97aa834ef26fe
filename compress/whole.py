# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Layers that keep all their channels when a network is cut: which, how many channels, and why.

What a form is called says which share of the channels went. That share is counted over all layers
that could lose channels by their nature, whether or not a tool knows how: every convolution and
linear layer that takes part, but for the head, whose outputs are the classes, and for layers of a
single unit. Layers whose channels can only go together count once.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lmr_guard.classifier import Classifier
from lmr_guard.errors import some

__all__ = ["UNSEEN", "Whole", "described", "layers", "left_whole"]

UNSEEN = "torch-pruning does not see what it is coupled to"
"""Why a layer stays whole that is in no group of a network that was traced."""


@dataclass(frozen=True, slots=True)
class Whole:
    """Channels that stay together because no tool here can cut them.

    Args:
        layer: Qualified name in the classifier of the layer that stands for them.
        channels: Its output channels.
        why: What keeps it from being cut, to stand behind its name.
        weights: Names of the weights that put these channels out, the layer's own among them.
    """

    layer: str
    channels: int
    why: str
    weights: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Plain data for a report."""
        return {"layer": self.layer, "channels": self.channels, "why": self.why}


def layers(model: Classifier, head: str) -> dict[str, int]:
    """Output channels of the weights of all layers that take part, by the name of the weight.

    A weight is a parameter of two dimensions or more whose name ends in ``weight``, so that
    convolutions of other kinds than torch's and the projections of an attention count too.

    Args:
        model: In eval mode; run once, left as it is.
        head: Name of the layer that yields the classes; it does not count.
    """
    ran: set[str] = set()
    handles = [
        module.register_forward_hook(lambda *_, name=name: ran.add(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd)
    ]
    named = dict(model.named_parameters())
    try:
        with torch.enable_grad():
            outputs = model(model.example())
            wanted: list[Tensor] = [value for value in named.values() if value.requires_grad]
            moved = _gradients(outputs, wanted)
    finally:
        for handle in handles:
            handle.remove()
    moving = {id(v) for v, gradient in zip(wanted, moved, strict=True) if gradient is not None}
    return {
        name: value.shape[0]
        for name, value in named.items()
        if value.ndim > 1
        and name.endswith("weight")
        and name.rpartition(".")[0] != head
        and (id(value) in moving or name.rpartition(".")[0] in ran)
    }


def _gradients(outputs: Tensor, wanted: list[Tensor]) -> Sequence[Tensor | None]:
    if not outputs.requires_grad:
        return [None] * len(wanted)
    return torch.autograd.grad(outputs.sum(), wanted, allow_unused=True)


def left_whole(
    counted: Mapping[str, int],
    cut: Iterable[str],
    groups: Sequence[Whole],
    unseen: str = UNSEEN,
) -> tuple[Whole, ...]:
    """What of the counted layers stays whole, each once.

    Args:
        counted: See ``layers``.
        cut: Names of the weights that lose channels.
        groups: Those that were looked at and cannot be cut; one of a single channel, or unit, is
            passed over: it has nothing to lose.
        unseen: Why the others stay whole.

    >>> a = Whole("a", 8, "feeds a LayerNorm", ("a.weight", "b.weight"))
    >>> counted = {"a.weight": 8, "b.weight": 8, "c.weight": 4, "d.weight": 6}
    >>> found = left_whole(counted, ["d.weight"], [a])
    >>> [(each.layer, each.channels) for each in found]
    [('a', 8), ('c', 4)]
    """
    left = {name: channels for name, channels in counted.items() if channels > 1}
    for name in cut:
        left.pop(name, None)
    found = []
    for group in groups:
        own = [left.pop(name) for name in group.weights if name in left]
        if own and group.channels > 1:
            # A group may hold only a part of what a layer puts out, as of a gated one.
            found.append(replace(group, channels=max(group.channels, *own)))
    rest = (Whole(n.rpartition(".")[0], c, unseen, (n,)) for n, c in left.items())
    return (*found, *rest)


def described(whole: Iterable[Whole]) -> str:
    """Which layers stay whole and why, in one line; the report's plan has all of them.

    >>> described([Whole("a", 8, "feeds a LayerNorm", ()), Whole("b", 4, "feeds a LayerNorm", ())])
    'a, b (12 channels) not cut: feeds a LayerNorm'
    """
    by_reason: dict[str, list[Whole]] = defaultdict(list)
    for each in whole:
        by_reason[each.why].append(each)
    return "; ".join(
        f"{some(each.layer for each in alike)} ({sum(each.channels for each in alike)} channels) "
        f"not cut: {why}"
        for why, alike in by_reason.items()
    )
