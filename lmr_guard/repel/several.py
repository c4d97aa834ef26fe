# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Several suspects: each is repelled from what the repair before left."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Clean, Progress, Twin, silent
from lmr_guard.repel.repair import repel
from lmr_guard.repel.settings import RepelSettings
from lmr_guard.results import Repair

__all__ = ["repel_each"]


def repel_each(
    classifier: Classifier,
    suspects: Sequence[int],
    clean: Clean,
    *,
    settings: RepelSettings,
    generator: torch.Generator,
    twins_of: Callable[[Classifier], Sequence[Twin]],
    progress: Progress = silent,
) -> tuple[Classifier, Repair]:
    """A copy from which one class after the other was repelled; see ``repel``.

    Args:
        classifier: As received; not touched.
        suspects: One class or more.
        clean: See ``repel``.
        settings: Of each repair.
        generator: Of all of them.
        twins_of: The compressed forms of what a repair begins with.
        progress: Told after each epoch.

    Returns:
        What the last one left, and the first record with those of the others in it.

    Raises:
        ConfigError, InputError, StageError: See ``repel``.
    """
    model, done = classifier, []
    for suspect in suspects:
        model, record = repel(
            model,
            suspect,
            clean,
            settings=settings,
            generator=generator,
            twins=twins_of(model),
            progress=progress,
        )
        done.append(record)
    return model, replace(done[0], further=tuple(done[1:]))
