# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""How long a run will take: a pass through the network, timed, times the passes that are asked for.

A *pass* is one image forward and backward to its pixels; a step of training costs three for each of
its images and one forward, which is a third (measured: docs/performance.md). Which searches are
followed and how many learning rates are tried depends on what is found, so there are two numbers.
"""

import statistics
import time
from dataclasses import dataclass

import torch

from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Clean, Labelled
from lmr_guard.localize import spaces
from lmr_guard.localize.inversion import InversionSettings, starts_in
from lmr_guard.localize.telling import hindrance
from lmr_guard.repel import RepelSettings
from lmr_guard.settings import Settings

__all__ = [
    "Forecast",
    "Passes",
    "Stages",
    "attempt_passes",
    "forecast",
    "passes",
    "search_passes",
    "seconds_per_pass",
    "stages",
]

_FORWARD = 1 / 3
_TRAINING = 3 + _FORWARD
_VALUES = 1 << 21  # of pixels in one timed batch
_BATCH = 64
_SHARES = 5  # at which the damage of a group is measured
_SCORED = 128  # images that it is measured on
_REPLAYS = 4  # patterns that a file is tried with, beside known triggers
_RANDOM = 336 * 24  # random patterns, and the images that each is tried on
_PROBED = 12 * 100 * 4  # lured images on each point of the way of a repair, its twins included
_POINTS = 4  # of that way that are tried


@dataclass(frozen=True, slots=True)
class Passes:
    """Images forward and backward.

    Args:
        least: Where nothing is found: no search is followed and nothing repaired.
        most: Where every search is followed and every learning rate tried.
    """

    least: float
    most: float

    def __add__(self, other: "Passes") -> "Passes":
        """Of both."""
        return Passes(self.least + other.least, self.most + other.most)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """What each stage of a run asks for, in their order."""

    localize: Passes
    repel: Passes
    compress: Passes
    listen: Passes
    verify: Passes


@dataclass(frozen=True, slots=True)
class Forecast:
    """Seconds of a run on this machine, as it is loaded now.

    Args:
        least: See ``Passes``.
        most: See ``Passes``.
        per_image: Seconds of one pass.
    """

    least: float
    most: float
    per_image: float


def forecast(
    classifier: Classifier, clean: Clean, settings: Settings, *, triggers: int
) -> Forecast:
    """The time of ``pipeline.guard`` with these settings, but for reading and writing files.

    Args:
        classifier: As received; not touched.
        clean: The three parts; a few images of ``repair`` are timed.
        settings: Of the run.
        triggers: How many are known.
    """
    unit = seconds_per_pass(settings.working(classifier, clean.repair), clean.repair)
    searched = hindrance(classifier, clean.repair) is None
    count = passes(classifier, clean, settings, triggers=triggers, searched=searched)
    return Forecast(count.least * unit, count.most * unit, unit)


def seconds_per_pass(model: Classifier, images: Labelled, *, rounds: int = 5) -> float:
    """Seconds of one image forward and backward to its pixels; the median of some batches.

    Args:
        model: In eval mode, on its device; not touched.
        images: Clean images; one batch is taken, the same image more than once if need be.
        rounds: Batches that are timed, after one that is not.
    """
    shape = model.preprocessing
    values = shape.channels * shape.height * shape.width
    count = max(1, min(_BATCH, _VALUES // values))
    pixels = images.pixels[torch.arange(count) % len(images)].to(model.device)
    taken = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        pixels.requires_grad_(True)
        torch.autograd.grad(model(pixels).sum(), pixels)
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:]) / count


def passes(
    classifier: Classifier, clean: Clean, settings: Settings, *, triggers: int, searched: bool
) -> Passes:
    """What a run asks for in all; see ``stages``."""
    asked = stages(classifier, clean, settings, triggers=triggers, searched=searched)
    return asked.localize + asked.repel + asked.compress + asked.listen + asked.verify


def stages(
    classifier: Classifier, clean: Clean, settings: Settings, *, triggers: int, searched: bool
) -> Stages:
    """What a run asks for, stage by stage. Uses no randomness.

    Args:
        classifier: Its K and its layers count.
        clean: Only the sizes of the parts count.
        settings: Of the run.
        triggers: How many are known.
        searched: Whether a search could tell anything, see ``telling.hindrance``.
    """
    looked = settings.repair and not settings.suspects and searched
    classes = classifier.num_classes
    return Stages(
        localize=_localizing(classes, settings) if looked else Passes(0, 0),
        repel=_repelling(settings, looked=looked),
        compress=_compressing(classifier, clean, settings),
        listen=_listening(classes, settings) if searched else Passes(0, 0),
        verify=_verifying(clean, settings, triggers),
    )


def search_passes(classes: int, starts: tuple[InversionSettings, ...]) -> dict[spaces.Space, int]:
    """Passes of one search of each space, in the order in which they are made.

    Args:
        classes: K.
        starts: See ``inversion.invert``.
    """
    found: dict[spaces.Space, int] = {}
    for space in spaces.SPACES:
        made = starts_in(space, starts)
        found[space] = sum(each.steps * each.batch * min(classes, each.most) for each in made)
    return found


def _localizing(classes: int, settings: Settings) -> Passes:
    how = settings.localize
    forms = settings.searches_rounded + len(settings.searched_ratios)
    deep, look = search_passes(classes, how.deep), search_passes(classes, how.look)
    least = sum(deep.values()) + forms * sum(look.values())
    followed = min(how.confirm, len(look) * forms) * max(deep.values())
    asked = how.unlearning
    runs = 2 * len(asked.learning_rates) * asked.seeds * asked.max_steps * asked.batch * _TRAINING
    random = (1 + forms) * _RANDOM * _FORWARD  # tried on the model as received and on each form
    return Passes(least, least + followed + runs + random)


def _repelling(settings: Settings, *, looked: bool) -> Passes:
    """Nothing at least where a class has yet to be found, of which there may be one."""
    if not settings.repair or not (looked or settings.suspects):
        return Passes(0, 0)
    searches, attempt = attempt_passes(settings.repel)
    named, rates = len(settings.suspects), len(settings.repel.learning_rates)
    return Passes(named * (searches + attempt), max(named, 1) * (searches + attempt * rates))


def attempt_passes(how: RepelSettings) -> tuple[float, float]:
    """Passes of a repair before its first learning rate, and those of each."""
    searches = 2 * how.lure_steps * how.batch if how.lures else 0
    epochs = how.phase1_epochs + how.phase2_epochs
    attempt = epochs * (how.pass_steps or 8) * how.batch * _TRAINING + _PROBED * _POINTS * _FORWARD
    return float(searches), attempt


def _compressing(classifier: Classifier, clean: Clean, settings: Settings) -> Passes:
    """Cuts, refits and distillations; of layer groups there are as many as convolutions at most."""
    cuts = {recipe.prune for recipe in settings.recipes if recipe.prune}
    layers = sum(isinstance(m, torch.nn.Conv2d | torch.nn.Linear) for m in classifier.modules())
    scored = min(len(clean.select), _SCORED)
    damage = _SHARES * layers * scored * _FORWARD if cuts else 0.0
    fitted = [cut for cut in cuts if cut.refit == "layers"]
    refit = len(fitted) * 3 * len(clean.repair) * _FORWARD
    rivals = sum(
        cut.annealing_steps * min(len(clean.select), cut.calibration_images) * _FORWARD
        + 3 * len(clean.repair) * _FORWARD
        for cut in fitted
        if cut.rival and cut.shares == "damage"
    )
    # Twice the steps where a cut is dear.
    learnt = sum(2 * cut.distil * _BATCH * (1 + 2 * _FORWARD) for cut in cuts)
    rounded = sum(
        min(len(clean.repair), recipe.int8.calibration_images) * _FORWARD
        + (len(clean.repair) * _FORWARD if recipe.int8.by_layers else 0.0)
        for recipe in settings.recipes
        if recipe.int8
    )
    return Passes(damage / 2 + refit + rounded, damage + refit + rivals + learnt + rounded)


def _listening(classes: int, settings: Settings) -> Passes:
    """Of every file: nobody knows before which will be refused for their accuracy, and spared."""
    if settings.listening is None:
        return Passes(0, 0)
    forms = len(settings.recipes)
    look = forms * sum(search_passes(classes, settings.listening.look).values())
    return Passes(
        look, look + forms * sum(search_passes(classes, settings.listening.deep).values())
    )


def _verifying(clean: Clean, settings: Settings, triggers: int) -> Passes:
    """Each file sees all images once, once under each trigger and pattern, and a few at random."""
    image = len(settings.recipes) * len(clean.report) * _FORWARD
    random = len(settings.recipes) * _RANDOM * _FORWARD
    return Passes(image * (1 + triggers) + random, image * (1 + triggers + _REPLAYS) + random)
