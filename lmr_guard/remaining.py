# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""How long a whole run still takes, from what it has done so far and what ``forecast`` counts.

The passes that searches and repairs made say how long one takes here and now; what the first file
took beside them, how long the others will. Nothing is told before something was measured. There
are two numbers, as in ``forecast``, which come together as is found what there is to find.
"""

import time
from itertools import accumulate
from typing import Protocol, runtime_checkable

from lmr_guard.classifier import Classifier
from lmr_guard.compress.recipes import Recipe
from lmr_guard.contracts import Clean, Progress
from lmr_guard.forecast import Passes, Stages, attempt_passes, search_passes, stages
from lmr_guard.localize.telling import hindrance
from lmr_guard.settings import Settings

__all__ = ["SETTLED", "Watching", "whole"]

SETTLED = "localize again"
"""The step in which a settled model is searched; see ``repairing``. Nobody knows of it before."""


@runtime_checkable
class Watching(Progress, Protocol):
    """A progress observer that wants to know of the whole run too."""

    def left(self, least: float, most: float, /) -> None:
        """Seconds that the whole run still takes, at least and at most; 0 and 0 at its end."""
        ...


def whole(
    progress: Progress, classifier: Classifier, clean: Clean, settings: Settings, triggers: int
) -> Progress:
    """An observer for ``pipeline.run_stages`` that tells ``progress`` of the whole run as well.

    Args:
        progress: Comes back as it is where it is not ``Watching``.
        classifier: As received; not touched.
        clean: The three parts.
        settings: Of the run.
        triggers: How many are known.
    """
    if not isinstance(progress, Watching):
        return progress
    searched = hindrance(classifier, clean.repair) is None
    asked = stages(classifier, clean, settings, triggers=triggers, searched=searched)
    return _Run(progress, asked, settings, classifier.num_classes)


class _Run:
    """Follows the steps of one run; a stage begins where one of its steps is told."""

    def __init__(self, progress: Watching, asked: Stages, settings: Settings, classes: int) -> None:
        self._progress, self._last = progress, time.monotonic()
        self._spent = self._made = 0.0  # seconds and passes of what is counted exactly
        self._files = _Files(asked, settings.recipes)
        self._localize = _Localize(asked.localize, settings, classes)
        self._repel = _Repel(asked.repel, settings)
        self._stage = "received"

    def __call__(self, step: str, done: int, total: int, /) -> None:
        self._progress(step, done, total)
        now = time.monotonic()
        taken, self._last = now - self._last, now
        before, self._stage = self._stage, _stage(self._stage, step)
        made = 0.0
        if self._stage == "localize":
            made = self._localize.step(done, total)
        elif self._stage == "repel":
            made = self._repel.step(step, done, total)
        elif self._stage != SETTLED:
            self._files.step(step, done, total, taken, received=self._stage == "received")
        # What unlearns between the two tells of no step.
        if made and (before, self._stage) != ("localize", "repel"):
            self._spent += taken
            self._made += made
        left = self._left()
        if left is not None:
            self._progress.left(left.least, left.most)

    def _left(self) -> Passes | None:
        """Seconds; None where nothing is known yet."""
        unit = self._spent / self._made if self._made else None
        files = self._files.left(unit)
        if self._stage == "files" or files is None:
            return files
        if unit is None:
            return None
        ahead = self._repel.left(begun=self._stage == "repel")
        if self._stage == "localize":
            ahead = ahead + self._localize.left()
        return Passes(ahead.least * unit, ahead.most * unit) + files


def _stage(before: str, step: str) -> str:
    """The stage that a step is of. A form that was cut may be repelled once more."""
    if before == "files" or step == "compress":
        return "files"
    if step == SETTLED:
        return step
    if step == "localize" or step.startswith("repel "):
        return step.partition(" ")[0]
    return before


class _Localize:
    def __init__(self, asked: Passes, settings: Settings, classes: int) -> None:
        how = settings.localize
        self._confirm = how.confirm
        self._deep = list(search_passes(classes, how.deep).values())
        self._look = list(search_passes(classes, how.look).values())
        forms = round((asked.least - sum(self._deep)) / sum(self._look))
        self._followed = min(how.confirm, len(self._look) * forms) * max(self._deep)
        self._unlearning = asked.most - asked.least - self._followed
        self._done, self._ahead = 0, 0

    def step(self, done: int, total: int) -> float:
        """Passes since the step before; 0 where that is a search that is followed."""
        forms = (total - self._confirm) // len(self._look) - 1
        known = [0, *accumulate(self._deep + forms * self._look)]
        before, self._done = self._done, done
        self._ahead = known[-1] - known[min(done, len(known) - 1)]
        if done == total:
            self._followed = 0
        elif done >= len(known):
            self._followed = max(0, self._followed - max(self._deep))
        return float(known[done] - known[before]) if done < len(known) else 0.0

    def left(self) -> Passes:
        """In passes. Runs that unlearn come after the last step, and tell of none."""
        return Passes(self._ahead, self._ahead + self._followed + self._unlearning)


class _Repel:
    def __init__(self, asked: Passes, settings: Settings) -> None:
        self._asked, self._rates = asked, len(settings.repel.learning_rates)
        self._searches, self._attempt = attempt_passes(settings.repel)
        self._epochs: dict[str, int] = {}
        self._here = 0.0

    def step(self, step: str, done: int, total: int) -> float:
        """Passes since the step before; 0 where epochs were left out."""
        first, before = not self._epochs, self._epochs.get(step, 0)
        self._epochs[step] = done
        self._here = self._attempt * (1 - done / total)
        if done - before != 1:
            return 0.0
        return self._attempt / total + (self._searches if first else 0.0)

    def left(self, *, begun: bool) -> Passes:
        """In passes; ``begun`` where an epoch was told."""
        if not begun:
            return self._asked
        others = self._attempt * (self._rates - len(self._epochs))
        return Passes(self._here, self._here + others)


class _Files:
    """The files of the model as received, and then those that would ship."""

    def __init__(self, asked: Stages, recipes: tuple[Recipe, ...]) -> None:
        self._count = self._waiting = len(recipes)
        self._least = (asked.compress.least + asked.listen.least) / self._count
        most = asked.compress.most + asked.listen.most + asked.verify.most
        self._most, self._cuts = most / self._count, asked.compress.most
        self._prunings = list(dict.fromkeys(recipe.prune for recipe in recipes))
        self._alike = [sum(r.prune == each for r in recipes) for each in self._prunings]
        self._received: list[float] = []
        self._seconds: list[float] = []
        self._now = 0.0
        self._cutting = False

    def step(self, step: str, done: int, total: int, taken: float, *, received: bool) -> None:
        """One step of ``taken`` seconds. Shares of layers are measured once for all cuts."""
        begins = step == "compress" and done == 0
        self._now = 0.0 if begins else self._now + taken * (step != "layer shares")
        if step == "compress" and done < total:
            self._waiting = sum(self._alike[done:])
            self._cutting = self._prunings[done] is not None
        elif step == "compress":
            self._waiting = 0
        elif step.startswith("verify ") and done == total:
            (self._received if received else self._seconds).append(self._now)
            self._now = 0.0
            if not received:
                self._waiting -= 1
                self._cuts = 0.0 if self._cutting else self._cuts

    def left(self, unit: float | None) -> Passes | None:
        """In seconds; ``unit`` is those of a pass. None where too little is known."""
        if not self._waiting:
            return Passes(0.0, 0.0)
        if self._seconds:
            low, high = min(self._seconds), max(self._seconds)
            more = self._cuts * (unit or 0.0)
        elif unit is not None and self._received:
            alone, more = max(self._received), 0.0
            low, high = alone + self._least * unit, alone + self._most * unit
        else:
            return None
        others = self._waiting - 1
        return Passes(
            others * low + max(0.0, low - self._now),
            others * high + max(0.0, high - self._now) + more,
        )
