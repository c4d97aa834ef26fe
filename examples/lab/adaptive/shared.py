# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What experiments with attackers share: the images' shape, short settings, results in a file."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lmr_guard.classifier import Preprocessing
from lmr_guard.errors import InputError
from lmr_guard.files import atomic
from lmr_guard.localize import LocalizeSettings
from lmr_guard.localize.inversion import InversionSettings
from lmr_guard.repel import RepelSettings
from lmr_guard.settings import Settings

__all__ = ["SHAPE", "brief", "read", "write"]

SHAPE = Preprocessing(channels=1, height=16, width=16, mean=(0.0,), std=(1.0,))
"""Of ``lmr_guard.demo.digits``."""


def brief(config: Settings) -> Settings:
    """The same settings, too short to work, but quick."""
    repel = RepelSettings(
        lures=0, learning_rates=(0.01,), phase1_epochs=1, phase1_minimum=1, phase2_epochs=1
    )
    few = (InversionSettings(steps=1),)
    looks = LocalizeSettings(look=few, deep=few, doubt=2.0)
    return replace(config, localize=looks, listening=None, repel=repel)


def read(path: Path) -> dict[str, Any]:
    """Results as ``write`` left them. Raises InputError where there are none."""
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"expected results as --out writes them, got {error}: {path}") from error
    return document


def write(document: Mapping[str, Any], path: Path) -> None:
    """All of it or nothing. Raises StageError where the file system refuses."""
    with atomic(path) as file:
        file.write(json.dumps(document, indent=1).encode() + b"\n")
