# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Which class is the suspect, if any? Looked for on the model and on its compressed forms.

A backdoor that sleeps in one form is awake in another, so every form is asked. The rule:

1. *Inversion*: in each form and each space, every class has a *strangeness*, how much smaller a
   pattern it needs than the others. The few strangest searches are repeated until it is clear
   whether their medians reach ``sure``.
2. A class with a score of ``sure`` or more is the suspect.
3. Between ``doubt`` and ``sure``, the form in question also unlearns: the class is the suspect if
   most of those runs fall back to it.
4. *Drift*: otherwise, and with five classes or more, each compressed form is asked whether clean
   images move towards one class ``drift`` times more than towards any other; that much counts as
   ``sure``.
5. Otherwise nobody is.

Scores are ratios: 1 is ordinary, 3 is a third of the usual size. A high score is no proof.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lmr_guard import inversion, unlearning
from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Labelled, Progress, Suspicion, silent
from lmr_guard.drift import FEWEST, drift, lead
from lmr_guard.errors import ConfigError
from lmr_guard.inversion import Config as InversionConfig
from lmr_guard.measure import accuracy
from lmr_guard.searches import Search, begun
from lmr_guard.unlearning import Config as UnlearningConfig

__all__ = ["Config", "named", "suspect"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """How classes are suspected.

    Args:
        inversion: How patterns are searched for.
        unlearning: How a form unlearns where there is doubt.
        confirm: Searches that are repeated, the strangest first.
        repeats: How often at most, with another seed each time.
        sure: Score from which on the leading class is the suspect, >= 1.
        doubt: Score from which on unlearning is asked, in [1, sure].
        drift: Lead (see ``drift.lead``) from which on a class is as suspect as with ``sure``, > 0.
        min_accuracy: Compressed forms below this share of the received model's clean accuracy
            are not searched: collapsed networks say nothing.
        min_drifting: The same share for the drift, which says more of weaker forms.
    """

    inversion: InversionConfig = field(default_factory=InversionConfig)
    unlearning: UnlearningConfig = field(default_factory=UnlearningConfig)
    confirm: int = 3
    repeats: int = 2
    sure: float = 2.0
    doubt: float = 1.8
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
        if self.drift <= 0:
            raise ConfigError(f"expected drift above 0, got {self.drift}")


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


def named(target: int, num_classes: int) -> Suspicion:
    """The suspicion of a user who knows the class. Raises ConfigError where it is none."""
    if not 0 <= target < num_classes:
        raise ConfigError(f"expected a suspect class in [0, {num_classes}), got {target}")
    return Suspicion(target=target, scores=(), method="named by the user", agreement=1.0)


def suspect(
    classifier: Classifier,
    repair: Labelled,
    config: Config,
    generator: torch.Generator,
    *,
    forms: Sequence[tuple[str, Classifier]] = (),
    progress: Progress = silent,
) -> Suspicion:
    """The class that patterns reach with strangely little, or clean images drift to, or None.

    Args:
        classifier: As received; not touched.
        repair: Clean images of two classes or more; nothing else is looked at.
        config: See ``Config``.
        generator: CPU generator; seeds the single searches and runs.
        forms: Compressed forms of the classifier, by name; not touched.
        progress: Told after each search.

    Returns:
        ``scores`` as the module docstring says, 1 for classes that were not searched;
        ``agreement`` the share of the searches that were repeated and of the unlearning runs
        that name the leading class, or of the drifts where these decide; ``evidence`` one record
        a search, drift or run.

    Raises:
        StageError: All images are of one class.
    """
    received = classifier.clone()
    own = accuracy(received, repair).value
    copies = [(name, form.clone()) for name, form in forms]
    shares = [accuracy(form, repair).value / own if own else 0.0 for _, form in copies]
    drifted = [
        _Drifted(name, lead(drift(received, form, repair)), config.sure / config.drift)
        for (name, form), share in zip(copies, shares, strict=True)
        if share >= config.min_drifting and classifier.num_classes >= FEWEST
    ]
    asked = [("received", received)] + [
        each for each, share in zip(copies, shares, strict=True) if share >= config.min_accuracy
    ]
    searches = _searched(asked, repair, config, generator, progress)
    return _judged(searches, drifted, repair, config, generator)


def _searched(
    asked: Sequence[tuple[str, Classifier]],
    repair: Labelled,
    config: Config,
    generator: torch.Generator,
    progress: Progress,
) -> list[Search]:
    """Every form in every space, the strangest first; the first few of them repeated."""
    total = len(asked) * len(inversion.SPACES) + config.confirm * config.repeats
    searches: list[Search] = []
    for name, model in asked:
        for search in begun(name, model, repair, config.inversion, generator):
            searches.append(search)
            progress("localize", len(searches), total)
    done = len(searches)
    searches.sort(key=lambda search: search.score, reverse=True)
    for search in searches[: config.confirm]:
        while not search.settled(config.sure, 1 + config.repeats):
            search.add(config.inversion, generator)
            done += 1
            progress("localize", done, total)
    progress("localize", total, total)
    return searches


def _judged(
    searches: Sequence[Search],
    drifted: Sequence[_Drifted],
    repair: Labelled,
    config: Config,
    generator: torch.Generator,
) -> Suspicion:
    """Steps 2 to 5 of the rule; of the searches only the first few were repeated and count."""
    confirmed = searches[: config.confirm]
    scores = torch.ones(searches[0].model.num_classes)
    for search in confirmed:
        scores[search.classes] = torch.maximum(scores[search.classes], search.strangeness)
    leading, method = int(scores.argmax()), "inversion"
    votes = [search.leading == leading for search in confirmed]
    runs: list[dict[str, object]] = []
    target = leading if float(scores[leading]) >= config.sure else None
    if target is None and float(scores[leading]) >= config.doubt:
        method = "inversion and unlearning"
        decisive = max(confirmed, key=lambda search: search.score)
        runs = _unlearned(decisive, repair, config.unlearning, generator, leading)
        agree = [run["class"] == leading for run in runs if run["reached_chance"]]
        votes += agree
        target = leading if 2 * sum(agree) > len(agree) else None
    if target is None and drifted:
        furthest = max(drifted, key=lambda form: form.score)
        scores = torch.stack([scores, *(form.strangeness for form in drifted)]).amax(dim=0)
        if furthest.score >= config.sure:
            target, method = furthest.leading, "drift"
            votes = [form.leading == target for form in drifted]
    found = [record for search in searches for record in search.records()]
    return Suspicion(
        target=target,
        scores=tuple(round(float(score), 4) for score in scores),
        method=method,
        agreement=round(sum(votes) / len(votes), 4),
        evidence=(*found, *(form.record() for form in drifted), *runs),
        patterns=() if target is None else _patterns(confirmed, target, config.doubt),
    )


def _unlearned(
    search: Search,
    repair: Labelled,
    config: UnlearningConfig,
    generator: torch.Generator,
    leading: int,
) -> list[dict[str, object]]:
    """One record a run, until most cannot name the leading class any more.

    Batch norm with batch statistics, for frozen ones mislead.
    """
    planned = [(lr, repeat) for lr in config.learning_rates for repeat in range(config.seeds)]
    records: list[dict[str, object]] = []
    against = 0
    for lr, repeat in planned:
        if 2 * against >= len(planned):
            break
        seed = int(torch.randint(2**31, (1,), generator=generator))
        logits, steps, reached = unlearning.unlearn(
            search.model, repair, config, lr=lr, frozen_bn=False, seed=seed
        )
        named = unlearning.named_by(logits)
        against += reached and named != leading
        records.append(
            {
                "by": "unlearning",
                "form": search.form,
                "lr": lr,
                "repeat": repeat,
                "class": named,
                "steps": steps,
                "reached_chance": reached,
            }
        )
    return records


def _patterns(
    confirmed: Sequence[Search], target: int, least: float
) -> tuple[inversion.Pattern, ...]:
    """What was found for the suspect, one a search, where it is strange.

    In a form where the backdoor sleeps the smallest pattern is a large, ordinary one, which goes
    on to work after the best repair.
    """
    return tuple(
        replace(search.pattern(target), origin=search.form)
        for search in confirmed
        if search.leading == target and search.score >= least
    )
