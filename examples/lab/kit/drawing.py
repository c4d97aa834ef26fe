# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Figures for a file, .png or .svg; the same numbers give the same file."""

from pathlib import Path
from typing import TYPE_CHECKING

from lmr_guard.errors import ConfigError
from lmr_guard.files import atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["blank", "save"]


def blank(path: Path, width: float, height: float) -> "Figure":
    """An empty figure of so many inches.

    Args:
        path: Where it will be saved; looked at before anything is drawn.
        width: In inches.
        height: In inches.

    Raises:
        ConfigError: Another ending than .png and .svg, or matplotlib is missing.
    """
    if path.suffix not in {".png", ".svg"}:
        raise ConfigError(f"expected a drawing that ends in .png or .svg, got {path}")
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ConfigError(
            "expected matplotlib for drawings, got none; pip install lmr-guard[reproduce]"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: "Figure", path: Path, name: str) -> None:
    """Write the figure.

    Args:
        figure: From ``blank``.
        path: Overwritten.
        name: Of the figure; decides about identifiers inside an .svg.

    Raises:
        StageError: The file system refused.
    """
    from matplotlib import rc_context

    metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    with rc_context({"svg.hashsalt": name}), atomic(path) as file:
        figure.savefig(file, format=path.suffix.removeprefix("."), dpi=150, metadata=metadata)
