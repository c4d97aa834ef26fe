# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What cuts cost networks as received, with nobody suspected; see ``examples.lab.kit.cuts``."""

from typing import Any

from examples.lab.kit import cuts
from examples.lab.population.subjects import Subject

__all__ = ["ask_cuts"]


def ask_cuts(subject: Subject) -> dict[str, Any]:
    """CA uncut and cut at each ratio, in each way.

    Raises:
        StageError: The network cannot be cut.
    """
    ratios = cuts.RATIOS[-1:] if subject.tiny else cuts.RATIOS
    return {
        **cuts.cut(subject.trained.classifier, subject.clean, ratios),
        "settings": {"tiny": subject.tiny},
    }
