# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Can a search for triggers tell anything about this model? Where not, nothing found is nothing.

A search compares classes. It tells nothing of a model with too few of them, of one that sends most
images to a single class anyway, and of one in which patterns do not move: a step function at
the input, saturated units or a few steps only leave every class where it started, and all look
alike. So before a search and after it is asked whether it could have found something. Sentences are
reasons for a report: they go on from "no search could tell anything: ".
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Labelled
from lmr_guard.localize.inversion import InversionSettings, starts_in
from lmr_guard.localize.searches import FEWEST_CLASSES, Search
from lmr_guard.localize.spaces import SPACES
from lmr_guard.measure import mean_over_others, predict
from lmr_guard.results import Method, Suspicion

__all__ = ["FEWEST_STEPS", "haste", "hindered", "hindrance", "stillness"]

FEWEST_STEPS = 20
"""Below that many steps a search is no evidence; a size can shrink to a tenth in 20."""

# Of the clean images of other classes, that one class may take as they are.
_MOST = 0.5
# Of the classes, that some pattern must reach.
_FEWEST = 0.5


def hindrance(classifier: Classifier, images: Labelled) -> str | None:
    """Why a search would tell nothing, seen before it; None where it may tell something.

    Args:
        classifier: In eval mode; not touched.
        images: Clean images.
    """
    count = classifier.num_classes
    if count < FEWEST_CLASSES:
        return f"{count} classes are too few to compare, {FEWEST_CLASSES} or more are needed"
    logits = predict(classifier, images)
    if not bool(logits.isfinite().all()):
        return "some logits of clean images are not finite numbers"
    taken = mean_over_others(_one_hot(logits), images.labels)
    most = int(taken.argmax())
    if float(taken[most]) < _MOST:
        return None
    return f"class {most} takes {taken[most]:.0%} of the clean images of other classes as they are"


def haste(starts: Sequence[InversionSettings]) -> str | None:
    """Why searches made so tell nothing: sizes have no time to part in a few steps."""
    longest = min(max(each.steps for each in starts_in(space, starts)) for space in SPACES)
    if longest >= FEWEST_STEPS:
        return None
    return f"{longest} steps are too few for sizes to part, {FEWEST_STEPS} or more are needed"


def stillness(searches: Sequence[Search]) -> str | None:
    """Why what was searched tells nothing, seen in it; None where patterns moved.

    A patch or an additive pattern that may be as large as the image reaches any class of a
    network that follows its gradients. Half of the classes at least must be reached in one of
    the spaces.

    Args:
        searches: Of one form, one or more.
    """
    reached = max(searches, key=lambda search: search.reached.value).reached
    if reached.value >= _FEWEST:
        return None
    return (
        f"patterns of any size reached {reached.hits} of {reached.trials} classes: the network "
        "does not follow its gradients, or the search had too few steps"
    )


def hindered(why: str, classes: tuple[str, ...], found: Suspicion | None = None) -> Suspicion:
    """Nobody is suspected, for nobody could be.

    Args:
        why: See ``hindrance`` and ``stillness``.
        classes: Names of the classes in index order.
        found: What the searches came to that tell nothing; None where there were none, and no
            class is strange.
    """
    unasked = Suspicion(None, (1.0,) * len(classes), Method.HINDERED, classes=classes)
    nobody = found or unasked
    told: dict[str, object] = {"by": "hindrance", "why": why}
    return replace(nobody, method=Method.HINDERED, evidence=(*nobody.evidence, told))


def _one_hot(logits: Tensor) -> Tensor:
    landed = logits.argmax(dim=1)
    return torch.nn.functional.one_hot(landed, logits.shape[1]).float()
