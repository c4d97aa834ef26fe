# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Which class is the suspect, if any? Looked for on the model and on its compressed forms.

A backdoor that sleeps in one form is awake in another, so every form is asked. The rule:

1. In each form and each space of ``inversion``, every class has a *strangeness*: how much smaller a
   pattern it needs than the other classes do. Of warps the fourth root counts: on honest networks
   some class differs there by as much as ten.
2. The few searches with the strangest class are repeated with other seeds; a class's score is the
   highest of its medians over the repeats.
3. A class with a score of ``sure`` or more is the suspect.
4. Between ``doubt`` and ``sure``, the form in question also unlearns: the class is the suspect if
   most of those runs fall back to it.
5. Otherwise nobody is.

Scores are ratios: 1 is ordinary, 3 is a third of the usual size. A high score is no proof.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch
from torch import Tensor

from lmr_guard import inversion, unlearning
from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Labelled, Progress, Suspicion, silent
from lmr_guard.errors import ConfigError
from lmr_guard.inversion import Config as InversionConfig
from lmr_guard.measure import accuracy, predict
from lmr_guard.unlearning import Config as UnlearningConfig

__all__ = ["Config", "named", "recognised", "suspect"]


_POWERS: Mapping[inversion.Space, float] = MappingProxyType(
    {"patch": 1.0, "additive": 1.0, "warp": 0.25}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """How classes are suspected.

    Args:
        inversion: How patterns are searched for.
        unlearning: How a form unlearns where there is doubt.
        confirm: Searches that are repeated, the strangest first.
        repeats: How often, with another seed each time.
        sure: Score from which on the leading class is the suspect, >= 1.
        doubt: Score from which on unlearning is asked, in [1, sure].
        min_accuracy: Compressed forms below this share of the received model's clean accuracy
            are left out: collapsed networks say nothing.
    """

    inversion: InversionConfig = field(default_factory=InversionConfig)
    unlearning: UnlearningConfig = field(default_factory=UnlearningConfig)
    confirm: int = 3
    repeats: int = 2
    sure: float = 2.0
    doubt: float = 1.8
    min_accuracy: float = 0.85

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


@dataclass(slots=True, eq=False)
class _Search:
    """All searches of one form in one space."""

    form: str
    model: Classifier
    images: Labelled
    space: inversion.Space
    classes: Tensor
    found: list[inversion.Found] = field(default_factory=list)

    def add(self, config: InversionConfig, generator: torch.Generator) -> None:
        """One more search."""
        self.found.append(
            inversion.invert(
                self.model, self.images, self.space, config, generator, classes=self.classes
            )
        )

    @property
    def strangeness(self) -> Tensor:
        """Of each searched class: the median over the repeats, as it counts in this space."""
        all_repeats = torch.stack([inversion.strangeness(found.sizes) for found in self.found])
        power: Tensor = all_repeats.quantile(0.5, dim=0) ** _POWERS[self.space]
        return power

    @property
    def leading(self) -> int:
        return int(self.classes[self.strangeness.argmax()])


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
    """The class that patterns reach with strangely little, or None.

    Args:
        classifier: As received; not touched.
        repair: Clean images of two classes or more; nothing else is looked at.
        config: See ``Config``.
        generator: CPU generator; seeds the single searches and runs.
        forms: Compressed forms of the classifier, by name; not touched.
        progress: Told after each search.

    Returns:
        ``scores`` as the module docstring says, 1 for classes that were not searched;
        ``agreement`` the share of the searches that were repeated, and of the unlearning runs,
        that name the leading class; ``evidence`` one record a search or run.

    Raises:
        StageError: All images are of one class.
    """
    kept = _worth_asking(classifier, forms, repair, config)
    total = len(kept) * len(inversion.SPACES) + config.confirm * config.repeats
    searches: list[_Search] = []
    for name, model in kept:
        images = recognised(model, repair)
        classes = inversion.candidates(model, images, config.inversion, generator)
        for space in inversion.SPACES:
            search = _Search(name, model, images, space, classes)
            search.add(config.inversion, generator)
            searches.append(search)
            progress("localize", len(searches), total)
    done = len(searches)
    searches.sort(key=lambda search: float(search.strangeness.max()), reverse=True)
    confirmed = searches[: config.confirm]
    for search in confirmed:
        for _ in range(config.repeats):
            search.add(config.inversion, generator)
            done += 1
            progress("localize", done, total)
    progress("localize", total, total)
    return _judged(searches, confirmed, repair, config, generator)


def _judged(
    searches: Sequence[_Search],
    confirmed: Sequence[_Search],
    repair: Labelled,
    config: Config,
    generator: torch.Generator,
) -> Suspicion:
    """Steps 2 to 5 of the rule."""
    scores = torch.ones(searches[0].model.num_classes)
    for search in confirmed:
        scores[search.classes] = torch.maximum(scores[search.classes], search.strangeness)
    leading = int(scores.argmax())
    decisive = max(confirmed, key=lambda search: float(search.strangeness.max()))
    votes = [search.leading == leading for search in confirmed]
    runs: list[dict[str, object]] = []
    target = leading if float(scores[leading]) >= config.sure else None
    if target is None and float(scores[leading]) >= config.doubt:
        runs = _unlearned(decisive, repair, config.unlearning, generator)
        agree = [run["class"] == leading for run in runs if run["reached_chance"]]
        votes += agree
        target = leading if 2 * sum(agree) > len(agree) else None
    return Suspicion(
        target=target,
        scores=tuple(round(float(score), 4) for score in scores),
        method="inversion" if not runs else "inversion and unlearning",
        agreement=round(sum(votes) / len(votes), 4),
        evidence=(*(record for search in searches for record in _records(search)), *runs),
        patterns=() if target is None else _patterns(confirmed, target, config.doubt),
    )


def _unlearned(
    search: _Search, repair: Labelled, config: UnlearningConfig, generator: torch.Generator
) -> list[dict[str, object]]:
    """One record a run; batch norm with batch statistics, for frozen ones mislead."""
    records: list[dict[str, object]] = []
    for lr in config.learning_rates:
        for repeat in range(config.seeds):
            seed = int(torch.randint(2**31, (1,), generator=generator))
            logits, steps, reached = unlearning.unlearn(
                search.model, repair, config, lr=lr, frozen_bn=False, seed=seed
            )
            records.append(
                {
                    "by": "unlearning",
                    "form": search.form,
                    "lr": lr,
                    "repeat": repeat,
                    "class": unlearning.named_by(logits),
                    "steps": steps,
                    "reached_chance": reached,
                }
            )
    return records


def _records(search: _Search) -> list[dict[str, object]]:
    records: list[dict[str, object]] = []
    for repeat, found in enumerate(search.found):
        strange = inversion.strangeness(found.sizes)
        records.append(
            {
                "by": "inversion",
                "form": search.form,
                "space": search.space,
                "repeat": repeat,
                "class": int(found.classes[strange.argmax()]),
                "strangeness": round(float(strange.max()), 4),
                "classes": found.classes.tolist(),
                "sizes": [float(f"{size:.4g}") for size in found.sizes],
            }
        )
    return records


def _patterns(
    confirmed: Sequence[_Search], target: int, least: float
) -> tuple[inversion.Pattern, ...]:
    """What was found for the suspect, one a search, where it is strange.

    In a form where the backdoor sleeps the smallest pattern is a large, ordinary one, which goes
    on to work after the best repair.
    """
    return tuple(
        replace(pattern, origin=search.form)
        for search in confirmed
        if search.leading == target and float(search.strangeness.max()) >= least
        for pattern in search.found[0].patterns
        if pattern.target == target
    )


def recognised(model: Classifier, repair: Labelled) -> Labelled:
    """The images that a form gets right: on the others it needs no pattern to be wrong.

    All of them where the right ones are of less than two classes.
    """
    right = predict(model, repair).argmax(dim=1) == repair.labels
    enough = len(repair.labels[right].unique()) > 1
    return repair.subset(right) if enough else repair


def _worth_asking(
    classifier: Classifier,
    forms: Sequence[tuple[str, Classifier]],
    repair: Labelled,
    config: Config,
) -> list[tuple[str, Classifier]]:
    received = classifier.clone()
    least = accuracy(received, repair).value * config.min_accuracy
    copies = [(name, form.clone()) for name, form in forms]
    awake = [(name, form) for name, form in copies if accuracy(form, repair).value >= least]
    return [("received", received), *awake]
