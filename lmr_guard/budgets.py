# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""How much searching a run can afford: quick for a first answer, standard, thorough.

A budget decides how long triggers are searched for and on how many forms, nothing else: repairs,
limits and what must pass are the same. What each gives up is measured in docs/methods/budgets.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from lmr_guard.localize import ListeningSettings, LocalizeSettings
from lmr_guard.localize.inversion import DEEP

__all__ = ["BUDGETS", "Budget", "Searching"]

# A short and a long start in place of two each.
_PAIR = DEEP[1::2]

Budget = Literal["quick", "standard", "thorough"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Searching:
    """What a budget decides.

    Args:
        localize: Of the model as received.
        listening: Of each file.
    """

    localize: LocalizeSettings = field(default_factory=LocalizeSettings)
    listening: ListeningSettings = field(default_factory=ListeningSettings)


BUDGETS: Mapping[Budget, Searching] = MappingProxyType(
    {
        "quick": Searching(
            localize=LocalizeSettings(deep=_PAIR, forms="none"),
            listening=ListeningSettings(deep=_PAIR),
        ),
        "standard": Searching(),
        "thorough": Searching(
            localize=LocalizeSettings(look=DEEP, deep=DEEP, forms="all"),
            listening=ListeningSettings(look=DEEP, refused=True),
        ),
    }
)
"""Quick asks only the model as received, from two starts in place of four: what sleeps there is
refused where a file's own search hears it, but not named and repaired. Thorough searches every form
and every file, refused ones too, as deeply as the model as received."""
