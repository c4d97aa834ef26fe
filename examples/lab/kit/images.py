# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Who holds which images: the attacker, the defender, and whoever reports.

The digits of scikit-learn need no data folder, so that every experiment can do with them.
"""

from dataclasses import dataclass

import torch

from lmr_guard import demo
from lmr_guard.classifier import Preprocessing
from lmr_guard.contracts import Labelled

__all__ = ["DIGITS", "Held", "digits", "hold"]

DIGITS = Preprocessing(channels=1, height=16, width=16, mean=(0.3,), std=(0.35,))
"""How networks see scikit-learn's digits."""


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """Who holds what; no image is in two of them.

    Args:
        train: The attacker's.
        pool: What defence images are drawn from.
        report: What numbers are reported on.
    """

    train: Labelled
    pool: Labelled
    report: Labelled


def hold(
    train: Labelled,
    rest: Labelled,
    generator: torch.Generator,
    *,
    pool: int,
    report: int | None = None,
) -> Held:
    """The held-out images divided at random.

    Args:
        train: Left as it is.
        rest: Held-out images.
        generator: Decides which of them are where.
        pool: Number of them that the defender may draw from.
        report: Number of them that are reported on, at most; None takes all others.
    """
    order = torch.randperm(len(rest), generator=generator)
    end = None if report is None else pool + report
    return Held(train, rest.subset(order[:pool]), rest.subset(order[pool:end]))


def digits(seed: int) -> Held:
    """900 digits for the attacker, one half of the others for each of the other two."""
    train, rest = demo.digits(seed)
    generator = torch.Generator().manual_seed(seed)
    return hold(train, rest, generator, pool=round(len(rest) / 2))
