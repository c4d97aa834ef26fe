# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Several runs of unlearning, at each rate from several seeds, and where they end early.

One run names some class of any network. What counts is whether runs agree.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Labelled
from lmr_guard.localize import unlearning
from lmr_guard.localize.drift import lead
from lmr_guard.localize.unlearning import UnlearningSettings

__all__ = ["Run", "agreeing_runs", "least", "number_of", "voting_runs"]

# Probability on images of other classes that an unlearned model leaves to a class by chance.
_RESIDUE = 0.05


@dataclass(frozen=True, slots=True, eq=False)
class Run:
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
        """Plain data for the report."""
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


def agreeing_runs(
    received: Classifier,
    repair: Labelled,
    settings: UnlearningSettings,
    generator: torch.Generator,
    *,
    far: float,
) -> list[Run]:
    """Runs of unlearning, as long as one class is fallen back to far enough in all of them.

    Args:
        received: Not touched.
        repair: Clean images.
        settings: Rates and seeds.
        generator: CPU generator; seeds the runs.
        far: The lead that is far enough.
    """
    runs: list[Run] = []
    for run in _each("received", received, repair, settings, generator):
        runs.append(run)
        if float(least(runs).max()) < far:
            break
    return runs


def voting_runs(
    form: tuple[str, Classifier],
    repair: Labelled,
    settings: UnlearningSettings,
    generator: torch.Generator,
    *,
    leading: int,
) -> list[Run]:
    """Runs of unlearning, until most cannot name the leading class any more.

    Args:
        form: Its name, and itself; not touched.
        repair: Clean images.
        settings: Rates and seeds.
        generator: CPU generator; seeds the runs.
        leading: The class that is asked about.
    """
    runs: list[Run] = []
    for run in _each(*form, repair, settings, generator):
        runs.append(run)
        against = sum(not each.reached or each.named != leading for each in runs)
        if 2 * against >= number_of(settings):
            break
    return runs


def least(runs: Sequence[Run]) -> Tensor:
    """Of each class: its lead in the run in which that is smallest, shape (K,)."""
    return torch.stack([run.lead for run in runs]).amin(dim=0)


def number_of(settings: UnlearningSettings) -> int:
    """How many runs there are, where none ends the others."""
    return len(settings.learning_rates) * settings.seeds


def _each(
    form: str,
    model: Classifier,
    repair: Labelled,
    settings: UnlearningSettings,
    generator: torch.Generator,
) -> Iterator[Run]:
    """All runs, as they are asked for.

    Batch norm with batch statistics, for frozen ones mislead.
    """
    plan = [(lr, repeat) for lr in settings.learning_rates for repeat in range(settings.seeds)]
    for lr, repeat in plan:
        seed = int(torch.randint(2**31, (1,), generator=generator))
        logits, steps, reached = unlearning.unlearn(
            model, repair, settings, lr=lr, frozen_bn=False, seed=seed
        )
        far = lead(unlearning.fallback(logits, repair.labels), noise=_RESIDUE)
        yield Run(
            form=form,
            lr=lr,
            repeat=repeat,
            named=unlearning.named_by(logits),
            lead=far if reached else torch.zeros_like(far),
            steps=steps,
            reached=reached,
        )
