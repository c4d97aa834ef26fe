# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Repairs, compresses, audits and gates image classifiers that may hold a backdoor.

``guard`` does the main job; ``scan``, ``repair`` and ``verify`` are its single steps, ``drill``
tries it on backdoors that it plants itself::

    report = lmr_guard.guard("model.safetensors", "images/", "release/",
                             [Patch(image, x=24, y=24, target=7)], arch="torchvision:resnet18")

Names are loaded when they are asked for, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmr_guard.evidence import Patch
    from lmr_guard.firedrill import drill
    from lmr_guard.foreign import verify
    from lmr_guard.pipeline import guard, repair, scan
    from lmr_guard.release.policy import Policy
    from lmr_guard.release.report import Report
    from lmr_guard.settings import Settings

    __version__: str

__all__ = [
    "Patch",
    "Policy",
    "Report",
    "Settings",
    "__version__",
    "drill",
    "guard",
    "repair",
    "scan",
    "verify",
]

_HOMES = {
    "Patch": "evidence",
    "Policy": "release.policy",
    "Report": "release.report",
    "Settings": "settings",
    "drill": "firedrill",
    "guard": "pipeline",
    "repair": "pipeline",
    "scan": "pipeline",
    "verify": "foreign",
}


# Hidden from type checkers, which would take every name for one of these.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """A name of the face, loaded from the module that it lives in (PEP 562)."""
        if name == "__version__":
            from importlib.metadata import version

            return version("lmr-guard")
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found: object = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    """What the package offers, and what importing its modules has added."""
    return sorted({*globals(), *__all__})
