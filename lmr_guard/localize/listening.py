# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Does what would ship listen to a trigger that nobody has shown us?

``localize`` asks the model as received; this asks each form that would ship, anew. Spaces that
show a strange class at first look are dug into, and the strangest class counts. The limit
is the policy's, and ``verify`` judges. A backdoor that none of the three spaces of ``inversion``
comes near is not found; docs/methods/listening.md has the numbers.
"""

from dataclasses import dataclass, replace

import torch

from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Labelled
from lmr_guard.errors import ConfigError
from lmr_guard.localize.inversion import DEEP, LOOK, InversionSettings, starts_in
from lmr_guard.localize.nearness import nearness
from lmr_guard.localize.searches import search_spaces
from lmr_guard.localize.spaces import SPACES
from lmr_guard.localize.telling import haste, stillness
from lmr_guard.results import Listening

__all__ = ["ListeningSettings", "listen"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ListeningSettings:
    """How each artefact is searched.

    Args:
        look: The first look at each space.
        deep: How a search that shows something is made again.
        doubt: Score below which it is not: the artefact does not listen there.
        images: Clean images at most that patterns are searched on.
        refused: Whether a file that lost too much clean accuracy to ship is searched all the same,
            for what the report can say of it.
    """

    look: tuple[InversionSettings, ...] = LOOK
    deep: tuple[InversionSettings, ...] = DEEP
    doubt: float = 1.6
    images: int = 300
    refused: bool = False

    def __post_init__(self) -> None:
        """Raises ConfigError where a value is out of range."""
        for space in SPACES:
            starts_in(space, self.look)
            starts_in(space, self.deep)
        if self.doubt < 1 or self.images < 2:
            raise ConfigError(
                f"expected doubt >= 1 and images >= 2, got {self.doubt} and {self.images}"
            )


def listen(
    model: Classifier,
    report: Labelled,
    settings: ListeningSettings,
    generator: torch.Generator,
    *,
    received: Classifier | None = None,
) -> Listening:
    """The strangest class of one form, and the pattern that it listens to.

    Args:
        model: The form in torch; not touched. Of an int8 file, that with rounded weights. See
            ``telling.hindrance`` for what should not be searched.
        report: Clean images that no repair has learnt from.
        settings: See ``ListeningSettings``.
        generator: CPU generator; decides candidates, starts and images.
        received: What the form was made from, whose ``nearness`` counts; None takes the form's.

    Raises:
        StageError: All images are of one class.
    """
    few = report.subset(torch.arange(min(len(report), settings.images)))
    near = nearness(received or model, few)
    found = search_spaces("itself", model.clone(), few, settings.look, generator, near=near)
    searches = list(found)
    for search in searches:
        if search.score >= settings.doubt:
            search.add(settings.deep, generator)
    top = max(searches, key=lambda search: search.score)
    return Listening(
        target=top.leading,
        strangeness=round(top.score, 4),
        pattern=replace(top.pattern(top.leading), origin=top.form),
        evidence=tuple(record for search in searches for record in search.records()),
        hindrance=haste(settings.look) or stillness(searches),
        patterns=tuple(
            replace(search.pattern(k), origin=search.form)
            for search in searches
            for k in search.classes.tolist()
        ),
    )
