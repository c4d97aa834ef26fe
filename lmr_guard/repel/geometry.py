# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What a trigger does in feature space, and the bound that LMR (CVPR 2026) puts on it.

Symbols of the paper: ``tau(x)`` is a triggered image, ``h`` the input of the head, ``w_j`` the
head's row of class ``j``, ``c`` the suspect class, ``b(x)`` its strongest rival at the clean image.
What a trigger does in feature space is then ``v(x) = h(tau(x)) - h(x)``, and what it does to the
margin is bounded by it::

    Delta(x) = m_c(tau(x)) - m_c(x) <= (w_c - w_b(x))^T v(x) <= ||w_c - w_b(x)|| ||v(x)|| = B(x)
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lmr_guard.classifier import Classifier, find_head
from lmr_guard.contracts import Rate
from lmr_guard.errors import ConfigError, InputError
from lmr_guard.repel.losses import suspect_margin

__all__ = ["Geometry", "geometry", "linear_geometry"]

# Share of the largest logit by which a head computed once more may miss the model's own logits:
# half precision and TF32 miss by less, anything between head and logits by more.
_SAME = 0.01


@dataclass(frozen=True, slots=True, eq=False)
class Geometry:
    """How a trigger moves images before a linear head: one row per image, float64, on the CPU.

    Args:
        margin: ``m_c(x)``, shape (N,), in logits.
        triggered_margin: ``m_c(tau(x))``, shape (N,), in logits.
        rival: ``b(x)``, int64, shape (N,); one of those that are equally strong.
        shift: ``v(x)``, shape (N, D), in units of the features.
        reach: ``||w_c - w_b(x)||``, shape (N,), in logits a unit of the features.
        along: ``(w_c - w_b(x))^T v(x)``, shape (N,), in logits.
        flip_share: ``t*(x)``, shape (N,), in [0, inf]: the smallest ``t >= 0`` for which the
            margin of ``c`` at ``h(x) + t v(x)`` is not below 0. 0 where ``c`` leads already, at
            most 1 where the trigger succeeds, inf where ``c`` does not lead anywhere on the ray.
            The reverse of the second is not true: ``c`` may lead for a while, and another class
            overtake it before ``t = 1``.
    """

    margin: Tensor
    triggered_margin: Tensor
    rival: Tensor
    shift: Tensor
    reach: Tensor
    along: Tensor
    flip_share: Tensor

    def __len__(self) -> int:
        """Number of images."""
        return len(self.margin)

    @property
    def gain(self) -> Tensor:
        """``Delta(x)``: by how much the trigger raises the margin; shape (N,), in logits."""
        return self.triggered_margin - self.margin

    @property
    def moved(self) -> Tensor:
        """``||v(x)||``, shape (N,), in units of the features."""
        return self.shift.square().sum(dim=1).sqrt()

    @property
    def bound(self) -> Tensor:
        """``B(x)``: the gain is nowhere above it; shape (N,), in logits."""
        return self.reach * self.moved

    @property
    def cosine(self) -> Tensor:
        """Of the angle between ``v`` and ``w_c - w_b``, shape (N,); 0 where one of them is 0."""
        return (self.along / self.bound).clamp(-1, 1).where(self.bound > 0, 0.0)

    @property
    def lands(self) -> Tensor:
        """Whether the triggered image lands in ``c``, ``m_c(tau(x)) > 0``; bool, shape (N,)."""
        return self.triggered_margin > 0

    @property
    def certified(self) -> Rate:
        """How many images no shift of this length can carry into ``c``: ``m_c + B <= 0``.

        That is a statement about these images, this trigger and this model, no more.
        """
        return Rate(int((self.margin + self.bound <= 0).sum()), len(self))


def geometry(
    classifier: Classifier, clean: Tensor, triggered: Tensor, suspect: int, batch: int = 256
) -> Geometry:
    """What one trigger does to a classifier's features and margins.

    Args:
        classifier: Its head is a linear layer or a 1x1 convolution that nothing but averaging
            over positions may follow; ``h`` is then the average. Not touched.
        clean: Pixels (N, C, H, W) of images outside the suspect class; the caller leaves the
            others out.
        triggered: The same images in the same order with the trigger on them.
        suspect: ``c``, in [0, K).
        batch: Images a forward pass.

    Raises:
        ConfigError: ``suspect`` is no class, or the two tensors are empty or differ in shape.
        InputError: No head was found, or the logits are not what it yields.
    """
    if not 0 <= suspect < classifier.num_classes:
        raise ConfigError(
            f"expected a suspect class in [0, {classifier.num_classes}), got {suspect}"
        )
    if clean.shape != triggered.shape or not len(clean):
        raise ConfigError(
            "expected one triggered image for each of one or more clean ones, got shapes "
            f"{tuple(clean.shape)} and {tuple(triggered.shape)}"
        )
    model = classifier.clone()
    _, head = find_head(model, model.example(), model.num_classes)
    before = _features(model, head, clean, batch)
    after = _features(model, head, triggered, batch)
    return linear_geometry(before, after, *_parameters(model, head), suspect)


def linear_geometry(
    features: Tensor, triggered: Tensor, weight: Tensor, bias: Tensor, suspect: int
) -> Geometry:
    """As ``geometry``, from features and a head: logits are ``W h + bias``.

    Args:
        features: ``h(x)``, shape (N, D).
        triggered: ``h(tau(x))``, shape (N, D).
        weight: ``W``, shape (K, D), K >= 2.
        bias: Shape (K,).
        suspect: ``c``, in [0, K).
    """
    before, after, w, offset = (t.cpu().double() for t in (features, triggered, weight, bias))
    others = torch.tensor([j for j in range(len(w)) if j != suspect])
    logits, shift = before @ w.T + offset, after - before
    gaps = logits[:, [suspect]] - logits[:, others]
    slopes = shift @ (w[suspect] - w[others]).T
    nearest = gaps.argmin(dim=1)
    rival = others[nearest]
    return Geometry(
        margin=suspect_margin(logits, suspect),
        triggered_margin=suspect_margin(after @ w.T + offset, suspect),
        rival=rival,
        shift=shift,
        reach=(w[suspect] - w[rival]).square().sum(dim=1).sqrt(),
        along=slopes.gather(1, nearest[:, None]).squeeze(1),
        flip_share=_flip_share(gaps, slopes),
    )


def _flip_share(gaps: Tensor, slopes: Tensor) -> Tensor:
    """The smallest ``t >= 0`` where no column of ``gaps + t slopes`` is below 0; else inf.

    Columns that rise say from where on they allow ``t``, columns that fall up to where; a level
    one must not be below 0 to begin with. Both of shape (N, K - 1).
    """
    crossing = -gaps / slopes
    earliest = crossing.where(slopes > 0, 0.0).amax(dim=1).clamp(min=0)
    latest = crossing.where(slopes < 0, torch.inf).amin(dim=1)
    never = ((slopes == 0) & (gaps < 0)).any(dim=1) | (earliest > latest)
    return earliest.masked_fill(never, torch.inf)


def _parameters(model: Classifier, head: nn.Linear | nn.Conv2d) -> tuple[Tensor, Tensor]:
    """``W``, (K, D), and the bias, (K,), float64, on the CPU, in the unit of the logits."""
    weight = head.weight.detach().cpu().double().flatten(1)
    bias = weight.new_zeros(len(weight)) if head.bias is None else head.bias.detach().cpu().double()
    return weight / model.ending.unit, bias / model.ending.unit


@torch.no_grad()
def _features(model: Classifier, head: nn.Linear | nn.Conv2d, pixels: Tensor, batch: int) -> Tensor:
    """``h``: inputs of the head, (N, D), float64, on the CPU. Raises InputError."""
    weight, bias = _parameters(model, head)
    inputs: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _head, given: inputs.append(given[0].cpu()))
    features = []
    for part in pixels.split(batch):
        logits = model(part.to(model.device)).cpu()
        features.append(_averaged(inputs.pop(), head))
        _require_same(features[-1] @ weight.T + bias, logits)
    handle.remove()
    return torch.cat(features)


def _averaged(inputs: Tensor, head: nn.Linear | nn.Conv2d) -> Tensor:
    """Channels last in a linear layer, second in a convolution; to (N, D), float64."""
    channels_last = inputs if isinstance(head, nn.Linear) else inputs.movedim(1, -1)
    return channels_last.reshape(len(inputs), -1, channels_last.shape[-1]).double().mean(dim=1)


def _require_same(own: Tensor, logits: Tensor) -> None:
    # A constant in a row, as a softmax leaves it, changes no margin.
    own, logits = (z - z.mean(dim=1, keepdim=True) for z in (own, logits))
    difference = (own - logits).abs().max()
    # Negated, so that what is no number is refused as well.
    if not bool(difference <= _SAME * logits.abs().max()):
        raise InputError(
            f"expected logits that the head itself yields, got some {float(difference):.3g} off; "
            "the geometry is that of a linear head with nothing but averaging behind it"
        )
