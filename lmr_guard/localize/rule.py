# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Which class is the suspect, if any? Looked for on the model and on its compressed forms.

A backdoor that sleeps in one form is awake in another, so every form is asked. The rule:

1. *Inversion*: in each form and each space, every class has a *strangeness*, how much smaller a
   pattern it needs than the others. The few strangest searches are repeated until it is clear
   whether their medians reach ``sure``; the highest median of a class is its score.
2. *Unlearning*: where some class comes to ``doubt``, the model as received unlearns. If in every
   run it falls back to one class ``unlearned`` times more than to any other, and that class comes
   to ``doubt``, it is the suspect, though another may be stranger.
3. Otherwise the class with the highest score is the suspect if that is ``sure`` or more, or if it
   is ``doubt`` or more and most runs name it when the form in question unlearns.
4. *Drift*: otherwise each compressed form is asked whether clean images move towards one class
   ``drift`` times more than towards any other; that much counts as ``sure``.
5. Otherwise nobody is.

With fewer than five classes 2 and 4 are left out. Scores are ratios: 1 is ordinary, 3 is a third of
the usual size. A high score is no proof.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Labelled, Method, Progress, Suspicion, silent
from lmr_guard.errors import ConfigError
from lmr_guard.localize import inversion, unlearning
from lmr_guard.localize.drift import drift, lead
from lmr_guard.localize.inversion import InversionSettings
from lmr_guard.localize.searches import FEWEST_CLASSES, Search, search_spaces
from lmr_guard.localize.unlearning import UnlearningSettings
from lmr_guard.measure import accuracy

__all__ = ["LocalizeSettings", "named", "suspect"]

# Probability on images of other classes that an unlearned model leaves to a class by chance.
_RESIDUE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalizeSettings:
    """How classes are suspected.

    Args:
        inversion: How patterns are searched for.
        unlearning: How a form unlearns.
        confirm: Searches that are repeated, the strangest first.
        repeats: How often at most, with another seed each time.
        sure: Score from which on the leading class is the suspect, >= 1.
        doubt: Strangeness from which on unlearning is asked, in [1, sure].
        unlearned: Lead (see ``drift.lead``) in every run of unlearning from which on a class needs
            not be the strangest, > 0.
        drift: Lead of a drift that counts as ``sure``, > 0.
        min_accuracy: Compressed forms below this share of the received model's clean accuracy
            are not searched: collapsed networks say nothing.
        min_drifting: The same share for the drift, which says more of weaker forms.
    """

    inversion: InversionSettings = field(default_factory=InversionSettings)
    unlearning: UnlearningSettings = field(default_factory=UnlearningSettings)
    confirm: int = 3
    repeats: int = 2
    sure: float = 2.5
    doubt: float = 1.8
    unlearned: float = 6.0
    drift: float = 2.5
    min_accuracy: float = 0.85
    min_drifting: float = 0.5

    def __post_init__(self) -> None:
        """Raises ConfigError where a value is out of range."""
        if self.confirm < 1 or self.repeats < 0:
            raise ConfigError(
                f"expected confirm >= 1 and repeats >= 0, got {self.confirm} and {self.repeats}"
            )
        if not 1 <= self.doubt <= self.sure:
            raise ConfigError(
                f"expected 1 <= doubt <= sure, got doubt {self.doubt} and sure {self.sure}"
            )
        if min(self.unlearned, self.drift) <= 0:
            raise ConfigError(
                f"expected unlearned and drift above 0, got {self.unlearned} and {self.drift}"
            )


@dataclass(frozen=True, slots=True, eq=False)
class _Drifted:
    """One compressed form by its drift; what counts reads like that of a ``Search``.

    Args:
        form: Its name.
        lead: Of each class; see ``drift.lead``.
        unit: What a lead of 1 counts.
    """

    form: str
    lead: Tensor
    unit: float

    @property
    def strangeness(self) -> Tensor:
        return self.lead * self.unit

    @property
    def score(self) -> float:
        return float(self.strangeness.max())

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


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """One run of unlearning.

    Args:
        form: Which one unlearned.
        lr: Learning rate.
        repeat: Number of the run at this rate.
        named: The class of the highest mean log-probability.
        lead: Of each class, how far the form fell back to it; nowhere where the run did not
            reach chance.
        steps: That it took.
        reached: Whether it reached chance.
    """

    form: str
    lr: float
    repeat: int
    named: int
    lead: Tensor
    steps: int
    reached: bool

    def record(self) -> dict[str, object]:
        return {
            "by": "unlearning",
            "form": self.form,
            "lr": self.lr,
            "repeat": self.repeat,
            "class": self.named,
            "lead": [round(float(each), 2) for each in self.lead],
            "steps": self.steps,
            "reached_chance": self.reached,
        }


def named(target: int, num_classes: int) -> Suspicion:
    """The suspicion of a user who knows the class. Raises ConfigError where it is none."""
    if not 0 <= target < num_classes:
        raise ConfigError(f"expected a suspect class in [0, {num_classes}), got {target}")
    return Suspicion(target=target, scores=(), method=Method.NAMED, agreement=1.0)


def suspect(
    classifier: Classifier,
    repair: Labelled,
    settings: LocalizeSettings,
    generator: torch.Generator,
    *,
    forms: Sequence[tuple[str, Classifier]] = (),
    progress: Progress = silent,
) -> Suspicion:
    """The class that patterns reach with strangely little, or clean images drift to, or None.

    Args:
        classifier: As received; not touched.
        repair: Clean images of two classes or more; nothing else is looked at.
        settings: See ``LocalizeSettings``.
        generator: CPU generator; seeds the single searches and runs.
        forms: Compressed forms of the classifier, by name; not touched.
        progress: Told after each search.

    Returns:
        ``scores`` as the module docstring says, 1 for classes that were not searched;
        ``agreement`` the share of the searches that were repeated and of the unlearning runs
        that name the leading class, or of the drifts where these decide; ``evidence`` one record
        per search, drift or run.

    Raises:
        StageError: All images are of one class.
    """
    received = classifier.clone()
    own = accuracy(received, repair).value
    copies = [(name, form.clone()) for name, form in forms]
    shares = [accuracy(form, repair).value / own if own else 0.0 for _, form in copies]
    drifted = [
        _Drifted(name, lead(drift(received, form, repair)), settings.sure / settings.drift)
        for (name, form), share in zip(copies, shares, strict=True)
        if share >= settings.min_drifting and classifier.num_classes >= FEWEST_CLASSES
    ]
    asked = [("received", received)] + [
        each for each, share in zip(copies, shares, strict=True) if share >= settings.min_accuracy
    ]
    searches = _search_all(asked, repair, settings, generator, progress)
    agreeing: list[_Run] = []
    if (
        classifier.num_classes >= FEWEST_CLASSES
        and float(_highest(searches).max()) >= settings.doubt
    ):
        agreeing = _agreeing_runs(received, repair, settings, generator)
    return _judge(searches, repair, settings, generator, agreeing=agreeing, drifted=drifted)


def _search_all(
    asked: Sequence[tuple[str, Classifier]],
    repair: Labelled,
    settings: LocalizeSettings,
    generator: torch.Generator,
    progress: Progress,
) -> list[Search]:
    """Every form in every space, the strangest first; the first few of them repeated."""
    total = len(asked) * len(inversion.SPACES) + settings.confirm * settings.repeats
    searches: list[Search] = []
    for name, model in asked:
        for search in search_spaces(name, model, repair, settings.inversion, generator):
            searches.append(search)
            progress("localize", len(searches), total)
    done = len(searches)
    searches.sort(key=lambda search: search.score, reverse=True)
    for search in searches[: settings.confirm]:
        while not search.settled(settings.sure, 1 + settings.repeats):
            search.add(settings.inversion, generator)
            done += 1
            progress("localize", done, total)
    progress("localize", total, total)
    return searches


def _judge(
    searches: Sequence[Search],
    repair: Labelled,
    settings: LocalizeSettings,
    generator: torch.Generator,
    *,
    agreeing: Sequence[_Run] = (),
    drifted: Sequence[_Drifted] = (),
) -> Suspicion:
    """Steps 2 to 5 of the rule; of the searches only the first few were repeated and count."""
    confirmed = searches[: settings.confirm]
    scores = _highest(confirmed)
    leading, method = int(scores.argmax()), Method.INVERSION
    target = leading if float(scores[leading]) >= settings.sure else None
    runs: list[_Run] = []
    certain = _class_of_all_runs(searches, agreeing, settings)
    if certain is not None:
        target = leading = certain
        method = Method.UNLEARNING
        scores[certain] = _highest(searches)[certain]
    elif target is None and float(scores[leading]) >= settings.doubt:
        method = Method.UNLEARNING
        decisive = max(confirmed, key=lambda search: search.score)
        runs = _voting_runs(decisive, repair, settings.unlearning, generator, leading)
        agree = sum(run.reached and run.named == leading for run in runs)
        target = leading if 2 * agree > len(_run_plan(settings.unlearning)) else None
    votes = [search.leading == leading for search in confirmed]
    votes += [run.named == leading for run in (*agreeing, *runs) if run.reached]
    if target is None and drifted:
        furthest = max(drifted, key=lambda form: form.score)
        scores = torch.stack([scores, *(form.strangeness for form in drifted)]).amax(dim=0)
        if furthest.score >= settings.sure:
            target, method = furthest.leading, Method.DRIFT
            votes = [form.leading == target for form in drifted]
    found = [record for search in searches for record in search.records()]
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
        patterns=() if target is None else _patterns(searches, target, settings),
        classes=repair.classes,
    )


def _highest(searches: Sequence[Search]) -> Tensor:
    """Of each class: its highest strangeness, 1 where it was not searched or is not strange."""
    highest = torch.ones(searches[0].model.num_classes)
    for search in searches:
        highest[search.classes] = torch.maximum(highest[search.classes], search.strangeness)
    return highest


def _class_of_all_runs(
    searches: Sequence[Search], agreeing: Sequence[_Run], settings: LocalizeSettings
) -> int | None:
    """The class that every run fell back to and that comes to ``doubt`` in some search."""
    if len(agreeing) < len(_run_plan(settings.unlearning)):
        return None
    far = _least(agreeing)
    named = int(far.argmax())
    enough = float(far[named]) >= settings.unlearned
    return named if enough and float(_highest(searches)[named]) >= settings.doubt else None


def _agreeing_runs(
    received: Classifier, repair: Labelled, settings: LocalizeSettings, generator: torch.Generator
) -> list[_Run]:
    """Runs of unlearning, as long as one class is fallen back to far enough in all of them."""
    runs: list[_Run] = []
    for run in _each_run("received", received, repair, settings.unlearning, generator):
        runs.append(run)
        if float(_least(runs).max()) < settings.unlearned:
            break
    return runs


def _voting_runs(
    search: Search,
    repair: Labelled,
    settings: UnlearningSettings,
    generator: torch.Generator,
    leading: int,
) -> list[_Run]:
    """Runs of unlearning, until most cannot name the leading class any more."""
    runs: list[_Run] = []
    for run in _each_run(search.form, search.model, repair, settings, generator):
        runs.append(run)
        against = sum(not each.reached or each.named != leading for each in runs)
        if 2 * against >= len(_run_plan(settings)):
            break
    return runs


def _each_run(
    form: str,
    model: Classifier,
    repair: Labelled,
    settings: UnlearningSettings,
    generator: torch.Generator,
) -> Iterator[_Run]:
    """All runs, as they are asked for.

    Batch norm with batch statistics, for frozen ones mislead.
    """
    for lr, repeat in _run_plan(settings):
        seed = int(torch.randint(2**31, (1,), generator=generator))
        logits, steps, reached = unlearning.unlearn(
            model, repair, settings, lr=lr, frozen_bn=False, seed=seed
        )
        far = lead(unlearning.fallback(logits, repair.labels), noise=_RESIDUE)
        yield _Run(
            form=form,
            lr=lr,
            repeat=repeat,
            named=unlearning.named_by(logits),
            lead=far if reached else torch.zeros_like(far),
            steps=steps,
            reached=reached,
        )


def _least(runs: Sequence[_Run]) -> Tensor:
    """Of each class: its lead in the run in which that is smallest, shape (K,)."""
    return torch.stack([run.lead for run in runs]).amin(dim=0)


def _run_plan(settings: UnlearningSettings) -> list[tuple[float, int]]:
    """Rate and number of each run."""
    return [(lr, repeat) for lr in settings.learning_rates for repeat in range(settings.seeds)]


def _patterns(
    searches: Sequence[Search], target: int, settings: LocalizeSettings
) -> tuple[inversion.Pattern, ...]:
    """What was found for the suspect, one per search, where it is strange.

    In a form where the backdoor sleeps the smallest pattern is a large, ordinary one, which goes
    on to work after the best repair.
    """
    strange = [each for each in searches if float(_highest([each])[target]) >= settings.doubt]
    return tuple(
        replace(each.pattern(target), origin=each.form) for each in strange[: settings.confirm]
    )
