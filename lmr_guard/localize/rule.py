# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Which class is the suspect, if any? Looked for on the model and on its compressed forms.

A backdoor that sleeps in one form is awake in another, so every form is asked. The rule:

1. *Inversion*: in each space every class has a *strangeness*, how much smaller a pattern it needs
   than the others, and than its ``nearness`` explains, and *stands out* by what of that the next
   class of the search does not show too. The model as received is searched deeply,
   its compressed forms at first look, and deeply where a class is strange there, or *wakes* when
   weights are rounded: patches and additive patterns both make it stranger than in the model as
   received. The highest of a class in deep searches is its score.
2. *Unlearning*: where the strangeness of some class comes to ``doubt``, whatever others come to,
   the model as received unlearns. If in every run it falls back to one class ``unlearned`` times
   more than to any other, and that class is so strange, it is the suspect, though another may
   stand out more.
3. Otherwise the class with the highest score is the suspect if that is ``sure`` or more, or if it
   is ``doubt`` or more and most runs name it when the form in question unlearns.
4. Otherwise the class is that weak patterns drawn at random carry images to, in the model as
   received or in a form that was not cut, or else in two forms that were; see ``chance``.
5. Otherwise nobody is.
6. Where a score names the suspect, up to two other classes that come to ``sure`` are suspect too.

To which class clean images drift in a compressed form is told as evidence. It accuses nobody: a
cut of an honest network may send them to one class too. Cut forms are levelled before they are
searched. Rounding hardly moves an honest network, so what a rounded form drifts to is left in it.

With fewer than five classes 2 is left out; ``telling`` says where nobody should be looked for at
all. Scores are ratios: 1 is ordinary, 3 is a third of the usual size. A high score is no proof.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Labelled, Progress, silent
from lmr_guard.errors import ConfigError
from lmr_guard.localize import inversion
from lmr_guard.localize.chance import met
from lmr_guard.localize.drawing import drawing
from lmr_guard.localize.drift import drift, lead, levelled
from lmr_guard.localize.inversion import DEEP, LOOK, InversionSettings, starts_in
from lmr_guard.localize.nearness import nearness
from lmr_guard.localize.probability import probability
from lmr_guard.localize.runs import Run, agreeing_runs, least, number_of, voting_runs
from lmr_guard.localize.searches import FEWEST_CLASSES, Search, search_spaces
from lmr_guard.localize.spaces import SPACES, Space
from lmr_guard.localize.telling import hindered, stillness
from lmr_guard.localize.unlearning import UnlearningSettings
from lmr_guard.measure import accuracy
from lmr_guard.results import Drawing, Method, Suspicion

__all__ = ["Forms", "LocalizeSettings", "named", "suspect"]

Forms = Literal["none", "some", "all"]

# That are replayed on every file, for each suspect.
_PATTERNS = 3
# Suspects beside the first.
_OTHERS = 2
# In which a class that wakes is stranger; warps of honest networks differ too much.
_WAKING: tuple[Space, ...] = ("patch", "additive")


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalizeSettings:
    """How classes are suspected.

    Args:
        look: The first look at a compressed form.
        deep: How the model as received is searched, and forms that show something.
        forms: Which compressed forms are searched: ``"none"``; ``"some"``, that is, rounded
            weights, a mild and a strong cut; or ``"all"`` cuts of the run.
        unlearning: How a form unlearns.
        confirm: Searches of forms that are made again deeply at most, the strangest first.
        sure: Score from which on the leading class is the suspect, >= 1.
        doubt: Score from which on a first look is followed, and unlearning is asked about the
            leading class, in [1, sure]; also the strangeness, whatever other classes come to, that
            a class needs which all runs of unlearning name.
        woken: First looks at a form that was not cut are followed too where some class is so many
            times stranger than in the model as received, >= 1; see ``_waking``.
        unlearned: Lead (see ``drift.lead``) in every run of unlearning from which on a class needs
            not be the strangest, > 0.
        min_accuracy: Compressed forms below this share of the received model's clean accuracy
            are not searched: collapsed networks say nothing.
        min_drifting: The same share for the drift, which says more of weaker forms.
    """

    look: tuple[InversionSettings, ...] = LOOK
    deep: tuple[InversionSettings, ...] = DEEP
    forms: Forms = "some"
    unlearning: UnlearningSettings = field(default_factory=UnlearningSettings)
    confirm: int = 3
    sure: float = 2.0
    doubt: float = 1.8
    woken: float = 1.3
    unlearned: float = 6.0
    min_accuracy: float = 0.85
    min_drifting: float = 0.5

    def __post_init__(self) -> None:
        """Raises ConfigError where a value is out of range."""
        for space in SPACES:
            starts_in(space, self.look)
            starts_in(space, self.deep)
        if self.forms not in ("none", "some", "all"):
            raise ConfigError(f"expected forms 'none', 'some' or 'all', got {self.forms!r}")
        if self.confirm < 0:
            raise ConfigError(f"expected confirm >= 0, got {self.confirm}")
        if not 1 <= self.doubt <= self.sure:
            raise ConfigError(
                f"expected 1 <= doubt <= sure, got doubt {self.doubt} and sure {self.sure}"
            )
        if self.woken < 1:
            raise ConfigError(f"expected woken >= 1, got {self.woken}")
        if self.unlearned <= 0:
            raise ConfigError(f"expected unlearned above 0, got {self.unlearned}")


@dataclass(frozen=True, slots=True, eq=False)
class _Drifted:
    """One compressed form by its drift.

    Args:
        form: Its name.
        lead: Of each class; see ``drift.lead``.
    """

    form: str
    lead: Tensor

    @property
    def leading(self) -> int:
        return int(self.lead.argmax())

    def record(self) -> dict[str, object]:
        return {
            "by": "drift",
            "form": self.form,
            "class": self.leading,
            "lead": [round(float(each), 2) for each in self.lead],
        }


def named(targets: Sequence[int], num_classes: int) -> Suspicion:
    """The suspicion of a user who knows the classes.

    Args:
        targets: One class or more, in the order in which they are to be repelled.
        num_classes: K.

    Raises:
        ConfigError: One is no class of the model.
    """
    for target in targets:
        if not 0 <= target < num_classes:
            raise ConfigError(f"expected a suspect class in [0, {num_classes}), got {target}")
    first, *others = targets
    return Suspicion(
        target=first, scores=(), method=Method.NAMED, agreement=1.0, others=tuple(others)
    )


def suspect(
    classifier: Classifier,
    repair: Labelled,
    settings: LocalizeSettings,
    generator: torch.Generator,
    *,
    forms: Sequence[tuple[str, Classifier]] = (),
    progress: Progress = silent,
) -> Suspicion:
    """The class that patterns reach with strangely little, or None.

    Args:
        classifier: As received; not touched. See ``telling.hindrance`` for what should not be
            searched.
        repair: Clean images of two classes or more; nothing else is looked at.
        settings: See ``LocalizeSettings``.
        generator: CPU generator; seeds the single searches and runs.
        forms: Compressed forms of the classifier, by name; not touched.
        progress: Told after each search.

    Returns:
        ``scores`` as the module docstring says, 1 for classes that were not searched;
        ``agreement`` the share of the deep searches and of the unlearning runs that name the
        suspect, or else the leading class, of random patterns that of the forms in which some carry
        to it; ``evidence`` one record per search, drift, run or form that random patterns met.
        ``Method.HINDERED`` where nobody is suspected and the searches of the model as received
        reached hardly any class.

    Raises:
        StageError: All images are of one class.
    """
    received = classifier.clone()
    own = accuracy(received, repair).value
    copies = [(name, form.clone()) for name, form in forms]
    shares = [accuracy(form, repair).value / own if own else 0.0 for _, form in copies]
    drifted = [
        _Drifted(name, lead(drift(received, form, repair)))
        for (name, form), share in zip(copies, shares, strict=True)
        if share >= settings.min_drifting and classifier.num_classes >= FEWEST_CLASSES
    ]
    able = [
        pair for pair, share in zip(copies, shares, strict=True) if share >= settings.min_accuracy
    ]
    cut = [name for name, form in able if _is_cut(form, received)]
    asked = [("received", received)] + [
        (name, levelled(received, form, repair) if name in cut else form) for name, form in able
    ]
    looks, deep = _search_all(asked, repair, settings, generator, progress)
    agreeing: list[Run] = []
    strangest = float(_strangest(deep).max())
    if classifier.num_classes >= FEWEST_CLASSES and strangest >= settings.doubt:
        agreeing = agreeing_runs(
            received, repair, settings.unlearning, generator, far=settings.unlearned
        )
    found = _judge(
        deep, repair, settings, generator, looks=looks, agreeing=agreeing, drifted=drifted
    )
    if found.target is None:
        found = met(found, [("received", received), *able], cut, repair, generator)
    why = stillness([search for search in deep if search.form == "received"])
    if why is None or found.target is not None:
        return replace(found, drawings=_drawn(found, received))
    return hindered(why, repair.classes, found)


def _drawn(found: Suspicion, received: Classifier) -> tuple[Drawing, ...]:
    """What the suspect's patterns look like; drawn are only those that a search here found."""
    patterns = [each for each in found.patterns if isinstance(each, inversion.Pattern)]
    return tuple(drawing(each, received.preprocessing) for each in patterns)


def _is_cut(form: Classifier, received: Classifier) -> bool:
    """Whether the form lost channels. Uses no randomness."""
    sizes = [[each.shape for each in model.network.parameters()] for model in (form, received)]
    return sizes[0] != sizes[1]


def _search_all(
    asked: Sequence[tuple[str, Classifier]],
    repair: Labelled,
    settings: LocalizeSettings,
    generator: torch.Generator,
    progress: Progress,
) -> tuple[list[Search], list[Search]]:
    """First looks that were not followed, and deep searches, the strangest first of each.

    The first that is asked is the model as received, which is searched deeply at once.
    """
    near = nearness(asked[0][1], repair)
    each = len(SPACES)
    total = each * len(asked) + settings.confirm
    searches: list[Search] = []
    for number, (name, model) in enumerate(asked):
        how = settings.look if number else settings.deep
        for search in search_spaces(name, model, repair, how, generator, near=near):
            searches.append(search)
            progress("localize", len(searches), total)
    deep, looks = searches[:each], searches[each:]
    looks.sort(key=lambda search: search.score, reverse=True)
    awake = _awake(looks, deep, settings)
    telling = [look for look in looks if look.score >= settings.doubt or look in awake]
    followed = telling[: settings.confirm]
    for done, search in enumerate(followed, start=len(searches) + 1):
        search.add(settings.deep, generator)
        progress("localize", done, total)
    progress("localize", total, total)
    deep = sorted((*deep, *followed), key=lambda search: search.score, reverse=True)
    return [look for look in looks if look not in followed], deep


def _awake(
    looks: Sequence[Search], asleep: Sequence[Search], settings: LocalizeSettings
) -> list[Search]:
    """Of forms that were not cut the looks that a class wakes in."""
    awake: list[Search] = []
    for form in dict.fromkeys(look.form for look in looks):
        waking = [look for look in looks if look.form == form and look.space in _WAKING]
        if not _is_cut(waking[0].model, asleep[0].model):
            awake += waking if _waking(waking, asleep) >= settings.woken else []
    return awake


def _waking(looks: Sequence[Search], asleep: Sequence[Search]) -> float:
    """How many times stranger than in the model as received some class is, at most.

    The geometric mean over the spaces of the looks: honest networks differ by chance in one of
    them, hardly in both. All looks are of one form and of the same classes.
    """
    sleeping = {search.space: search for search in asleep}
    woken = torch.stack([look.woken(sleeping[look.space]) for look in looks])
    return float(woken.log().mean(dim=0).exp().max())


def _judge(
    deep: Sequence[Search],
    repair: Labelled,
    settings: LocalizeSettings,
    generator: torch.Generator,
    *,
    looks: Sequence[Search] = (),
    agreeing: Sequence[Run] = (),
    drifted: Sequence[_Drifted] = (),
) -> Suspicion:
    """Steps 2 to 4 of the rule; first looks count for nothing."""
    scores = _highest(deep)
    leading, method = int(scores.argmax()), Method.INVERSION
    target = leading if float(scores[leading]) >= settings.sure else None
    runs: list[Run] = []
    certain = _class_of_all_runs(_strangest(deep), agreeing, settings)
    if certain is not None:
        target, method = certain, Method.UNLEARNING
    elif target is None and float(scores[leading]) >= settings.doubt:
        method = Method.UNLEARNING
        asked = deep[0].form, deep[0].model
        runs = voting_runs(asked, repair, settings.unlearning, generator, leading=leading)
        agree = sum(run.reached and run.named == leading for run in runs)
        target = leading if 2 * agree > number_of(settings.unlearning) else None
    others = _others(scores, leading, settings) if target == leading and not runs else ()
    leading = leading if target is None else target
    votes = [search.leading == leading for search in deep]
    votes += [run.named == leading for run in (*agreeing, *runs) if run.reached]
    found = [record for search in (*deep, *looks) for record in search.records()]
    return Suspicion(
        target=target,
        scores=tuple(round(float(score), 4) for score in scores),
        method=method,
        agreement=round(sum(votes) / len(votes), 4),
        evidence=(
            *found,
            *(form.record() for form in drifted),
            *(run.record() for run in (*agreeing, *runs)),
        ),
        patterns=tuple(
            pattern
            for each in (() if target is None else (target, *others))
            for pattern in _patterns((*deep, *looks), each, settings)
        ),
        others=others,
        probability=_probability(scores, leading),
        classes=repair.classes,
    )


def _others(scores: Tensor, leading: int, settings: LocalizeSettings) -> tuple[int, ...]:
    """The classes after the leading one that come to ``sure`` as well."""
    order = scores.argsort(descending=True, stable=True).tolist()
    strange = [k for k in order if k != leading and float(scores[k]) >= settings.sure]
    return tuple(strange[:_OTHERS])


def _probability(scores: Tensor, leading: int) -> float | None:
    """What the score of the leading class is worth; runs of unlearning may name another."""
    highest = float(scores.max())
    return round(probability(highest), 2) if float(scores[leading]) == highest else None


def _highest(searches: Sequence[Search]) -> Tensor:
    """Of each class: how far it stands out at most, 1 where it was not searched or does not."""
    highest = torch.ones(searches[0].model.num_classes)
    for search in searches:
        highest[search.classes] = torch.maximum(highest[search.classes], search.outstanding)
    return highest


def _strangest(searches: Sequence[Search]) -> Tensor:
    """Of each class: its strangeness at most, 0 where it was not searched."""
    strangest = torch.zeros(searches[0].model.num_classes)
    for search in searches:
        own = search.strangeness
        strangest[search.classes] = torch.maximum(strangest[search.classes], own)
    return strangest


def _class_of_all_runs(
    strangest: Tensor, agreeing: Sequence[Run], settings: LocalizeSettings
) -> int | None:
    """The class that every run fell back to and that is strange."""
    if len(agreeing) < number_of(settings.unlearning):
        return None
    far = least(agreeing)
    named = int(far.argmax())
    enough = float(far[named]) >= settings.unlearned
    return named if enough and float(strangest[named]) >= settings.doubt else None


def _patterns(
    searches: Sequence[Search], target: int, settings: LocalizeSettings
) -> tuple[inversion.Pattern, ...]:
    """What was found for the suspect, one per search, where it is strange.

    In a form where the backdoor sleeps the smallest pattern is a large, ordinary one, which goes
    on to work after the best repair.
    """
    strange = [each for each in searches if float(_strangest([each])[target]) >= settings.doubt]
    return tuple(replace(each.pattern(target), origin=each.form) for each in strange[:_PATTERNS])
