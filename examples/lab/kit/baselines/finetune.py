# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Plain fine-tuning: cross-entropy on the clean images, and nothing else.

What any repair by training must beat. All weights are trained on the repair part; the last
state is taken, nothing is chosen. Passes and batch are those of LMR.
"""

from dataclasses import dataclass, field

import torch

from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Labelled
from lmr_guard.redteam.training import Schedule, fit_clean

__all__ = ["Config", "finetune"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings.

    Args:
        schedule: Of the training; the rate is LMR's gentlest but one.
    """

    schedule: Schedule = field(default_factory=lambda: Schedule(epochs=34, lr=0.01, batch=64))


def finetune(
    classifier: Classifier, repair: Labelled, config: Config, generator: torch.Generator
) -> Classifier:
    """A copy trained on ``repair``.

    Args:
        classifier: As received; not touched.
        repair: Clean images.
        config: See ``Config``.
        generator: CPU generator for order and augmentation.
    """
    return fit_clean(classifier, repair, config.schedule, generator)
