# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The first half of the order: who is suspect, and a model that is rid of it.

::

    localize -> settle -> repel

*Settle*: where a class was named by patterns that carry images to it when each weight is rounded to
the nearest, and not before, a backdoor sleeps until then. One may also where weights crowd at the
edges of the steps that they round to, whoever is named. It lives in what that rounding does to
the weights. So they are put on INT8's grid so that each layer puts out what it did
(``compress.rounding``): whoever rounds them to the nearest then leaves them as they are, and there
is nothing left to wake. Localize is asked again about the settled model, and from there classes
are repelled that it names, or whose patterns still work; mostly none is, and the repair costs
nothing.
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from lmr_guard import localize
from lmr_guard.arithmetic import plain
from lmr_guard.classifier import Classifier, weights_sha256
from lmr_guard.compress import quantize, rounding
from lmr_guard.contracts import Clean, Labelled, Progress, silent
from lmr_guard.measure import accuracy
from lmr_guard.received.inputs import Received
from lmr_guard.release.report import suspicion_record
from lmr_guard.remaining import SETTLED
from lmr_guard.repel import repel_each
from lmr_guard.results import Method, Repair, Suspicion
from lmr_guard.settings import Settings
from lmr_guard.workshop import Structure, repair_twins, searched_forms

__all__ = ["Repaired", "crowded", "localize_and_repel", "rid_of", "suspect", "told"]

# Of images that a pattern carries off when weights are rounded: how many more they are than before
# where it wakes by that, and the share and the most of them that are left where it sleeps.
_WAKES = 0.1
_MOST = 1 / 3
_CHANCE = 0.05
_IMAGES = 500
_BATCH = 256
# By chance a fifth of the weights lie near an edge of their step; so many more are no chance, nor
# is what five standard deviations of a small network are.
_NEAR = 0.2
_MORE = 0.05
_DEVIATIONS = 5


@dataclass(frozen=True, slots=True, eq=False)
class Repaired:
    """A classifier after localize, settle and repel.

    Args:
        classifier: An untouched copy where there is neither ``repair`` nor ``crowded``.
        suspicion: Who was suspected; of the settled model where nobody was before.
        repair: What was done about them; None where nobody was.
        crowded: Share of the weights that lie at edges of their steps, where that is more than
            chance puts there; see ``compress.rounding.crowding``. Then they were settled.
    """

    classifier: Classifier
    suspicion: Suspicion
    repair: Repair | None
    crowded: float | None = None

    @property
    def changed(self) -> bool:
        """Whether it is another classifier than was received."""
        return self.repair is not None or self.crowded is not None

    def to_json(self, received: Received, settings: Settings) -> dict[str, Any]:
        """The content of repair.json."""
        return {
            "model": {"path": received.name, "sha256": received.sha256},
            "weights_sha256": weights_sha256(self.classifier),
            "suspicion": suspicion_record(self.suspicion),
            "repair": None if self.repair is None else asdict(self.repair),
            "config": {"load": received.origin, "seed": settings.seed},
        }


def localize_and_repel(
    classifier: Classifier,
    clean: Clean,
    settings: Settings,
    progress: Progress = silent,
    structure: Structure | None = None,
) -> Repaired:
    """What ``guard``, ``repair`` and the hooks share; see the module.

    Args:
        classifier: As received; not touched.
        clean: ``repair`` is learnt from, ``select`` is chosen on, ``report`` is not looked at.
        settings: Its recipes say which compressed forms are looked at.
        progress: Told how far each step is.
        structure: Of ``classifier``, where the caller has it already.
    """
    if not settings.repair:
        return Repaired(classifier.clone(), Suspicion(None, (), Method.NOT_LOOKED_FOR), None)
    traced = structure or Structure(classifier)
    suspicion = suspect(classifier, clean, settings, progress, traced)
    if suspicion.target is None and crowded(classifier) is None:
        return Repaired(classifier.clone(), suspicion, None)
    return rid_of(
        classifier, suspicion, clean, settings=settings, progress=progress, structure=traced
    )


def rid_of(
    classifier: Classifier,
    suspicion: Suspicion,
    clean: Clean,
    *,
    settings: Settings,
    progress: Progress,
    structure: Structure,
) -> Repaired:
    """Settle and repel; see the module. The arguments are those of ``localize_and_repel``.

    Args:
        classifier: As received; not touched.
        suspicion: What ``suspect`` came to.
        clean: See there.
        settings: See there.
        progress: See there.
        structure: Of ``classifier``.
    """
    begun, left = classifier.clone().to(settings.device), suspicion.suspects
    crowds, woken = crowded(begun), _Carried.of(quantize.rounded(begun), clean.select, suspicion)
    settle = crowds is not None or woken.wakes(_Carried.of(begun, clean.select, suspicion))
    if settle:
        begun = rounding.settled(begun, clean.repair, settings.generator("settle"))
    if settle and not settings.suspects:
        after = _Carried.of(quantize.rounded(begun), clean.select, suspicion)
        again = suspect(begun, clean, settings, _again(progress), structure)
        if suspicion.target is None:
            suspicion, left = (again if again.suspects else suspicion), again.suspects
        else:
            asleep = woken.asleep(after)
            left = tuple(k for k in left if k in again.suspects or k not in asleep)
    done = [_settled(k, classifier, begun, clean) for k in suspicion.suspects if k not in left]
    if left:
        begun, record = repel_each(
            settings.working(begun, clean.repair),
            left,
            clean,
            settings=settings.repel,
            generator=settings.generator("repel"),
            twins_of=lambda model: repair_twins(model, settings.recipes, structure),
            progress=progress,
        )
        done += [record, *record.further]
    joined = replace(done[0], further=tuple(done[1:]), settled=settle) if done else None
    return Repaired(plain(begun.to(classifier.device)), suspicion, joined, crowds)


def crowded(classifier: Classifier) -> float | None:
    """The share of weights at edges of INT8's steps, where that is more than by chance.

    Args:
        classifier: Left as it is.
    """
    share, count = rounding.crowding(classifier)
    spread = _DEVIATIONS * math.sqrt(_NEAR * (1 - _NEAR) / max(1, count))
    return share if share > _NEAR + max(_MORE, spread) else None


def told(share: float | None) -> list[str]:
    """What a reader must know of crowded weights; nothing where there are none.

    Args:
        share: See ``crowded``.
    """
    if share is None:
        return []
    return [
        f"{100 * share:.0f} % of the weights lie within a tenth of a step of where INT8 rounds "
        f"them the other way, where chance puts {100 * _NEAR:.0f} %, as in backdoors that sleep "
        "until weights are rounded, and in networks trained with rounding; a repair settles them."
    ]


@dataclass(frozen=True, slots=True)
class _Carried:
    """Which share of the images outside its class each pattern carries off, and to which."""

    shares: tuple[tuple[int, float], ...]

    @classmethod
    @torch.no_grad()
    def of(cls, model: Classifier, images: Labelled, suspicion: Suspicion) -> "_Carried":
        """What its patterns do to one form of a classifier in eval mode."""
        few, shares = images.subset(torch.arange(min(len(images), _IMAGES))), []
        for pattern in suspicion.patterns:
            outside = few.pixels[few.labels != pattern.target].split(_BATCH)
            logits = [model(pattern(part.to(model.device))) for part in outside]
            hits = torch.cat(logits).argmax(dim=1) == pattern.target
            shares.append((pattern.target, int(hits.sum()) / max(1, len(hits))))
        return cls(tuple(shares))

    def wakes(self, before: "_Carried") -> bool:
        """Whether a pattern works in this form and slept before."""
        pairs = zip(self.shares, before.shares, strict=True)
        return any(now > was + _WAKES and was <= _MOST * now for (_, now), (_, was) in pairs)

    def asleep(self, after: "_Carried") -> set[int]:
        """Classes all of whose patterns, of which there are some, sleep in another form."""
        pairs = list(zip(self.shares, after.shares, strict=True))
        awake = {k for (k, was), (_, now) in pairs if now > max(_CHANCE, _MOST * was)}
        return {k for (k, _), _ in pairs} - awake


def _again(progress: Progress) -> Progress:
    def tell(step: str, done: int, total: int) -> None:
        del step
        progress(SETTLED, done, total)

    return tell


def _settled(suspect: int, classifier: Classifier, settled: Classifier, clean: Clean) -> Repair:
    """The record where settling was enough: no step was taken."""
    before, after = accuracy(classifier, clean.select), accuracy(settled, clean.select)
    return Repair(suspect, before, after, pruned_columns=(), phase1_steps=0, phase2_steps=0)


def suspect(
    classifier: Classifier,
    clean: Clean,
    settings: Settings,
    progress: Progress = silent,
    structure: Structure | None = None,
) -> Suspicion:
    """Localize on the model as received and on its compressed forms, or take the user's word.

    Args:
        classifier: As received; not touched.
        clean: ``repair`` is searched on, ``select`` decides what is cut.
        settings: Its recipes say which compressed forms are looked at.
        progress: Told how far it is.
        structure: Of ``classifier``, where the caller has it already.
    """
    if settings.suspects:
        return localize.named(settings.suspects, classifier.num_classes)
    model = classifier.clone().to(settings.device)
    if (why := localize.hindrance(model, clean.repair)) is not None:
        return localize.hindered(why, clean.repair.classes)
    forms = searched_forms(model, clean, settings, structure or Structure(classifier))
    return localize.suspect(
        settings.working(model, clean.repair),
        clean.repair,
        settings.localize,
        settings.generator("localize"),
        forms=[(name, settings.working(form, clean.repair)) for name, form in forms],
        progress=progress,
    )
