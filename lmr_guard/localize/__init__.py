# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Which class is suspect, if any, and does what would ship listen to a trigger nobody has shown?"""

from lmr_guard.localize.listening import ListeningSettings, listen
from lmr_guard.localize.rule import Forms, LocalizeSettings, named, suspect
from lmr_guard.localize.telling import hindered, hindrance

__all__ = [
    "Forms",
    "ListeningSettings",
    "LocalizeSettings",
    "hindered",
    "hindrance",
    "listen",
    "named",
    "suspect",
]
