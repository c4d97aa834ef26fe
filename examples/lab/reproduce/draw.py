# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Figures from records: 2 and 3 here, 4 to 7 by ``figures``.

The paper's own figures 2 and 3 were not at hand. Drawn is what its text says they are about: clean
accuracy and attack success over the number of clean images (2) and over the pruning ratio, for the
pruning-conditioned backdoor (3). A line joins means over seeds; each network is a point.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from examples.lab.kit import drawing
from examples.lab.kit.records import Record
from examples.lab.reproduce import figures
from examples.lab.reproduce.cells import defence_images, method_shares
from lmr_guard.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw"]

Points = dict[float, list[float]]

# Told apart without colour too.
_STYLES = {
    "none": ("#D55E00", "-", "o", "none"),
    "lmr": ("#0072B2", "--", "s", "LMR"),
    "lmr-recovered": ("#CC79A7", "-.", "D", "LMR, once more after the cut"),
    "lmr-paper": ("#009E73", ":", "^", "LMR as in the paper"),
}


def draw(name: str, records: Sequence[Record], path: Path, method: str = "lmr") -> None:
    """One figure; the same records give the same file.

    Args:
        name: fig2 to fig7.
        records: Cells of that figure, one or more.
        path: Ends in ``.png`` or ``.svg``.
        method: Which LMR figures 4 to 7 show, ``lmr`` or ``lmr-paper``.

    Raises:
        ConfigError: No such figure, another ending, or matplotlib is missing.
    """
    if name in figures.FIGURES:
        figures.draw(name, [record["geometry"][method] for record in records], path)
        return
    if name not in ("fig2", "fig3"):
        raise ConfigError(f"expected one of fig2 to fig7 to draw, got {name}")
    attacks = sorted({record["cell"]["attack"] for record in records})
    figure = drawing.blank(path, 9.6, 3.4 * len(attacks))
    grid = figure.subplots(len(attacks), 2, squeeze=False)
    for row, attack in zip(grid, attacks, strict=True):
        own = [record for record in records if record["cell"]["attack"] == attack]
        for axes, metric in zip(row, ("ca", "asr"), strict=True):
            _panel(axes, own, metric, _over_images if name == "fig2" else _over_ratios)
            axes.set(title=attack, xlabel="clean images" if name == "fig2" else "pruning ratio")
            if name == "fig2":
                axes.set_xscale("log")
    figure.axes[0].legend(fontsize="small")
    drawing.save(figure, path, name)


def _panel(
    axes: "Axes",
    records: Sequence[Record],
    metric: str,
    points: Callable[[Sequence[Record], str, str], Points],
) -> None:
    for method, (colour, line, marker, label) in _STYLES.items():
        found = {at: shares for at, shares in points(records, method, metric).items() if shares}
        if not found:
            continue
        places = sorted(found)
        middle = [mean(found[place]) for place in places]
        axes.plot(places, middle, color=colour, linestyle=line, label=label)
        single = [(place, value) for place in places for value in found[place]]
        axes.plot(
            [place for place, _ in single],
            [value for _, value in single],
            color=colour,
            marker=marker,
            linestyle="",
            fillstyle="none",
        )
    axes.set(ylabel={"ca": "clean accuracy, %", "asr": "attack success, %"}[metric])
    axes.set_ylim(-2, 102)


def _over_images(records: Sequence[Record], method: str, metric: str) -> Points:
    found: Points = {}
    for record in records:
        used = defence_images(record)
        found.setdefault(used, []).extend(method_shares([record], method, "float32", metric))
    return found


def _over_ratios(records: Sequence[Record], method: str, metric: str) -> Points:
    found: Points = {}
    for record in records:
        for form in record["cell"]["forms"]:
            ratio = 0.0 if form == "float32" else float(form.removeprefix("l1-"))
            found.setdefault(ratio, []).extend(method_shares([record], method, form, metric))
    return found
