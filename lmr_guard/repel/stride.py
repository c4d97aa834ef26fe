# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""How far to go from the received weights to the repaired ones: no farther than it takes.

What a repair does to the backdoor it does first, what it costs in clean accuracy comes with the
rest of the way: on the straight line between received and repaired weights the attack is often
dead where most of the loss is not yet paid. So other lures for the suspect class, which were found
on the received model but which the repair has not seen, are tried on points of that line, and the
nearest is looked for at which they have lost nearly all of the pull that they lose at all: images
that they carry off, and logits by which they draw the others nearer, for a trigger that is no lure
goes on to work where lures carry off nothing any more. Half as far again is gone where they still
carry off some, or where it costs nothing, beyond the repaired weights too: what suppresses goes on
to do so along the line. Of
patches and warps the kind is asked that carries off most to begin with; not veils, which carry off
most images of honest models too. Nothing here sees a real trigger.

Source of weights between two fine-tuned states: Wortsman et al., "Robust fine-tuning of zero-shot
models" (CVPR 2022), there for accuracy under shift.
"""

from bisect import bisect_left
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Labelled, Rate, Twin
from lmr_guard.measure import accuracy
from lmr_guard.repel.losses import suspect_margin
from lmr_guard.repel.lures import Lures
from lmr_guard.repel.settings import RepelSettings
from lmr_guard.repel.trainer import lures_for, through

__all__ = ["Probe", "Stride", "between", "probe", "shortest"]

_KINDS = (6, 0, 6)
_IMAGES = 100
_FEW = 20
_RARE = 6
_CHANCE = 0.05
_WAKES = 0.1
_FARTHER = 1.5
_HELD = 0.1
_MOST = 1 / 3


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """Lures that the repair has not seen, and the images to try them on.

    Args:
        lures: For the suspect class, found on the received model and its twins.
        images: That the lures were not searched on, of all classes; those of others than the
            suspect are lured.
        suspect: ``c``.
        twins: The forms in which the lures are tried as well.
        seed: Of what the twins draw, the same each time.
    """

    lures: Lures
    images: Labelled
    suspect: int
    twins: tuple[Twin, ...]
    seed: int

    @torch.no_grad()
    def pulls(self, model: Classifier) -> Tensor:
        """What lures do to the images, (2, kinds, forms), the mean of each kind.

        First the share that they carry off, then the mean margin of the suspect class, in logits.

        Args:
            model: In eval mode; the forms are the model itself and its twins.
        """
        pixels = self._outside().to(model.device)
        changed = torch.stack(list(self.lures.each(pixels)), dim=1).flatten(0, 1)
        itself = torch.cat([model(part) for part in changed.split(256)])
        drawn, parameters = torch.Generator().manual_seed(self.seed), dict(model.named_parameters())
        forms = [self.pulls_in(model, twin(parameters, drawn)) for twin in self.twins]
        return torch.stack([self._by_kind(itself), *forms], dim=2)

    @torch.no_grad()
    def pulls_in(self, model: Classifier, form: dict[str, Tensor]) -> Tensor:
        """The same for one form, (2, kinds), on a part of the images.

        Many clean images beside a few keep the batch statistics ordinary.
        """
        clean = self.images.pixels.to(model.device)
        outside = self._outside()[:_FEW].to(model.device)
        lured = torch.stack(list(self.lures.each(outside)), dim=1).flatten(0, 1)
        logits = [
            through(model, form, torch.cat([clean, part]))[len(clean) :]
            for part in lured.split(max(1, len(clean) // _RARE))
        ]
        return self._by_kind(torch.cat(logits))

    def _outside(self) -> Tensor:
        return self.images.pixels[self.images.labels != self.suspect]

    def _by_kind(self, logits: Tensor) -> Tensor:
        """Of images under each lure in turn, (images x lures, K)."""
        hits = (logits.argmax(dim=1) == self.suspect).float()
        told = torch.stack([hits, suspect_margin(logits, self.suspect).float()])
        means = told.view(2, -1, len(self.lures)).mean(dim=1).cpu()
        kinds = means.split(self.lures.kinds, dim=1)
        return torch.stack([kind.mean(dim=1) for kind in kinds if kind.shape[1]], dim=1)


def probe(
    received: Classifier,
    images: tuple[Labelled, Labelled],
    suspect: int,
    settings: RepelSettings,
    *,
    twins: tuple[Twin, ...],
    generator: torch.Generator,
) -> Probe | None:
    """New lures for the suspect class of a model, and the twins in which they have to be tried.

    These are the twins in which they pull more than in the received model with the same statistics:
    where a backdoor sleeps until the model is compressed. Others follow the model. None where
    settings ask for no lures or for all of the way, or nothing can be tried.

    Args:
        received: In eval mode; left as it is.
        images: What they are searched on, and what they will be tried on.
        suspect: ``c``.
        settings: How they are searched.
        twins: As for ``repel``.
        generator: CPU generator; its state does not change.
    """
    own, tried = images
    if not settings.strides or not bool((tried.labels != suspect).any()):
        return None
    model, drawn = received.clone(), generator.clone_state()
    searched = own.subset(own.labels != suspect)
    lures = lures_for(
        model, searched, suspect, settings, twins=twins, generator=drawn, kinds=_KINDS
    )
    if lures is None:
        return None
    seed = int(torch.randint(2**31, (1,), generator=drawn))
    count = min(len(tried), _IMAGES)
    few = tried.subset(torch.arange(count) * len(tried) // count)
    found = Probe(lures, few, suspect, (), seed)
    usual, parameters = found.pulls_in(model, {}), dict(model.named_parameters())
    awake = [
        twin
        for twin in twins
        if bool((found.pulls_in(model, twin(parameters, drawn)) > usual + _WAKES)[0].any())
    ]
    return replace(found, twins=tuple(awake))


def between(received: Classifier, repaired: Classifier, share: float) -> Classifier:
    """Weights and statistics ``share`` of the way from one model to another of its kind."""
    model, end = received.clone(), repaired.state_dict()
    model.load_state_dict(
        {
            name: torch.lerp(start, end[name], share) if start.is_floating_point() else end[name]
            for name, start in received.state_dict().items()
        }
    )
    return model.eval()


@dataclass(frozen=True, slots=True, eq=False)
class Stride:
    """One point on the way.

    Args:
        share: Of the way, above 0; above 1 it lies beyond the repaired weights.
        model: In eval mode.
        pull: Share of the images that lures carry off, in the form where it is the most.
        clean: On ``select``.
    """

    share: float
    model: Classifier
    pull: float
    clean: Rate

    @property
    def worth(self) -> float:
        """Images that are carried off count as much as those that are lost."""
        return self.clean.value - self.pull


@dataclass(frozen=True, slots=True, eq=False)
class _Way:
    """What lures pull along it, each form by itself: hits and margins, (2, forms).

    Args:
        asked: The kind that carries off most in each form of the received model.
        start: What it pulls there.
        end: What it pulls in the repaired one.
    """

    tried: Probe
    asked: Tensor
    start: Tensor
    end: Tensor

    @classmethod
    def of(cls, tried: Probe, received: Classifier, repaired: Classifier) -> "_Way":
        """Both ends of it."""
        start = tried.pulls(received)
        asked = start[0].argmax(dim=0).expand(2, 1, -1)
        end = tried.pulls(repaired)
        return cls(tried, asked, start.gather(1, asked)[:, 0], end.gather(1, asked)[:, 0])

    def pulls(self, model: Classifier) -> Tensor:
        """What is pulled at a point, (2, forms)."""
        return self.tried.pulls(model).gather(1, self.asked)[:, 0]

    def is_gone(self, pulls: Tensor, left: float) -> bool:
        """Whether no more than this share of what the whole way takes is left in any form."""
        hits, margins = self.end + left * (self.start - self.end)
        return bool((pulls[0] <= hits.clamp_min(_CHANCE)).all() and (pulls[1] <= margins).all())

    def suppresses(self, pulls: Tensor) -> bool:
        """Whether lures carry off far fewer images than in the received model, in every form."""
        return bool((pulls[0] <= (_MOST * self.start[0]).clamp_min(_CHANCE)).all())


def _asks_more(here: Stride, farther: Stride) -> bool:
    """Lures still carry off some images, or to go on costs none."""
    return here.pull > _HELD or farther.clean.hits >= here.clean.hits


def shortest(
    received: Classifier,
    repaired: Classifier,
    select: Labelled,
    settings: RepelSettings,
    tried: Probe | None,
) -> tuple[tuple[Stride, ...], bool]:
    """The points on the way that were looked at, and whether the last, the one to take, suppresses.

    The nearest at which lures have lost their pull is searched for by halving. Where they still
    carry off some images there, or where no image of ``select`` is lost by it, half as far again is
    gone, since lures are not the trigger; the part beyond the repaired weights only where the same
    holds of these, and where that is worth more than they are.

    Args:
        received: Start of the way.
        repaired: Its end, which is the last point where no nearer one will do.
        select: Clean images; what is lost of them decides how far again is gone.
        settings: ``strides`` and ``pull``.
        tried: Lures that the repair has not seen; None goes all of the way.
    """
    if tried is None:
        return (Stride(1.0, repaired, 0.0, accuracy(repaired, select)),), True
    way, seen = _Way.of(tried, received, repaired), dict[float, tuple[Stride, Tensor]]()

    def look(share: float) -> tuple[Stride, Tensor]:
        if share not in seen:
            model = between(received, repaired, share)
            pulls = way.pulls(model)
            point = Stride(share, model, float(pulls[0].max()), accuracy(model, select))
            seen[share] = (point, pulls)
        return seen[share]

    def is_enough(share: float) -> bool:
        return way.is_gone(look(share)[1], settings.pull)

    nearest = (*settings.strides, 1.0)[bisect_left(settings.strides, True, key=is_enough)]
    taken, pulls = look(nearest)
    farther = round(nearest * _FARTHER, 4)
    point = look(min(1.0, farther))
    if _asks_more(taken, point[0]):
        taken, pulls = point
        if farther > 1:
            beyond = look(farther)
            if _asks_more(taken, beyond[0]) and beyond[0].worth > taken.worth:
                taken, pulls = beyond
    others = [point for point, _ in seen.values() if point is not taken]
    return (*others, taken), way.suppresses(pulls)
