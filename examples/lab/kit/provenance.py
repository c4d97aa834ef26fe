# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What records say about where their numbers come from."""

import subprocess
from pathlib import Path
from typing import Any

from lmr_guard.release.environment import environment

__all__ = ["commit", "provenance"]

_ROOT = Path(__file__).parents[3]


def commit() -> str | None:
    """The checkout's commit, ``+`` behind it where files differ; None outside of git."""
    try:
        told = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],  # noqa: S607
            cwd=_ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return told.stdout.strip()


def provenance(code: str | None, device: str = "cpu") -> dict[str, Any]:
    """Versions, machine and device, and the commit of the code where it is known."""
    return {**environment(device), "commit": code}
