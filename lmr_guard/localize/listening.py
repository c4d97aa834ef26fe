# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Does what would ship listen to a trigger that nobody has shown us?

``localize`` asks the model as received; this asks each form that would ship, anew. The search that
shows the strangest class counts, repeated with other seeds where it is strange at all. The limit
is the policy's, and ``verify`` judges. A backdoor that none of the three spaces of ``inversion``
comes near is not found; docs/methods/audit.md has the numbers.
"""

from dataclasses import dataclass, field, replace

import torch

from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Labelled, Listening
from lmr_guard.errors import ConfigError
from lmr_guard.localize.inversion import InversionSettings
from lmr_guard.localize.searches import search_spaces

__all__ = ["ListeningSettings", "listen"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ListeningSettings:
    """How each artefact is searched.

    Args:
        inversion: How patterns are searched for; its ``steps`` are what the audit costs.
        repeats: How often at most the strangest search is repeated, with another seed each time.
        doubt: Score below which it is not repeated: the artefact does not listen.
        images: Clean images at most that patterns are searched on.
    """

    inversion: InversionSettings = field(default_factory=InversionSettings)
    repeats: int = 2
    doubt: float = 1.6
    images: int = 300

    def __post_init__(self) -> None:
        """Raises ConfigError where a value is out of range."""
        if self.repeats < 0 or self.doubt < 1 or self.images < 2:
            raise ConfigError(
                "expected repeats >= 0, doubt >= 1 and images >= 2, got "
                f"{self.repeats}, {self.doubt}, {self.images}"
            )


def listen(
    model: Classifier,
    report: Labelled,
    settings: ListeningSettings,
    generator: torch.Generator,
    *,
    limit: float,
) -> Listening:
    """The strangest class of one form, and the pattern that it listens to.

    Args:
        model: The form in torch; not touched. Of an int8 file, that with rounded weights.
        report: Clean images that no repair has learnt from.
        settings: See ``ListeningSettings``.
        generator: CPU generator; decides candidates, starts and images.
        limit: The policy's, >= 1; repeats end once it is known on which side of it they come out.

    Raises:
        StageError: All images are of one class.
    """
    few = report.subset(torch.arange(min(len(report), settings.images)))
    searches = list(search_spaces("itself", model.clone(), few, settings.inversion, generator))
    top = max(searches, key=lambda search: search.score)
    if top.score >= settings.doubt:
        while not top.settled(limit, 1 + settings.repeats):
            top.add(settings.inversion, generator)
    return Listening(
        target=top.leading,
        strangeness=round(top.score, 4),
        pattern=replace(top.pattern(top.leading), origin=top.form),
        evidence=tuple(record for search in searches for record in search.records()),
    )
