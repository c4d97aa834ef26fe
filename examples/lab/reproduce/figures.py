# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Figures 4 to 7: what a trigger does before the head, as received and after either phase.

Known of the paper's figures: the supplement speaks of ``||v(x)||`` that shrinks during phase 1
(figure 4) and of margins of about -6 to -8 before any repair, in one run whose phase 1 is epochs
1 to 8 and whose phase 2 is epochs 9 to 30. Which quantity stands in which of figures 5 to 7, over
epochs or as a distribution, for which attack and on which images, is not known here. So these are
our own drawings of the paper's quantities, a distribution for each of three states:

======  ==========================================================================
fig4    ``||v(x)||``: how far the trigger moves the features
fig5    ``m_c(x)`` of the clean image and ``Delta(x)``, by which the trigger raises it
fig6    ``B(x)``, the bound on that, and the cosine of ``v`` and ``w_c - w_b(x)``
fig7    ``t*(x)``, the share of ``v`` that flips, and the share of images that are certified safe
======  ==========================================================================

They are drawn as cumulative shares, so that nothing is binned or smoothed: every point is a value
that an image really has. Images are those outside the suspect class of the set that is handed in;
numbers for a report come from ``clean.report``. The trigger is seen here only, after the repair::

    first, second = defences.phases("lmr", situation)
    summary = measure(received, first, second, clean.report, trigger, suspect=suspect)
    draw("fig4", [summary], Path("fig4.svg"))

``repel`` shows both phases of every learning rate that it tries; the states that belong together,
and to the model that it returns, are those of the rate that it kept: ``defences.phases``.

Symbols: ``lmr_guard.repel.geometry``.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor

from examples.lab.kit import drawing
from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Labelled, Rate, Trigger
from lmr_guard.errors import ConfigError
from lmr_guard.repel.geometry import Geometry, geometry

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["FIGURES", "Count", "State", "Summary", "draw", "measure"]

# What stands in which figure, from left to right; ``certified`` is a share, the rest are curves.
FIGURES: Mapping[str, tuple[str, ...]] = {
    "fig4": ("moved",),
    "fig5": ("margin", "gain"),
    "fig6": ("bound", "cosine"),
    "fig7": ("flip_share", "certified"),
}
_LABELS = {
    "moved": "‖v(x)‖, units of the features",
    "margin": "m_c(x), logits",
    "gain": "Δ(x), logits",
    "bound": "B(x), logits",
    "cosine": "cos θ",
    "flip_share": "t*(x), shares of v(x)",
}
# Two shares beyond what the trigger does; t* has no upper end.
_FARTHEST_SHARE = 2.0
# Told apart without colour too.
_STYLES = {
    "before": ("#D55E00", "-", "as received"),
    "after_phase1": ("#0072B2", "--", "after phase 1"),
    "after_phase2": ("#009E73", ":", "after phase 2"),
}
_STEPS = 40


class Count(TypedDict):
    """A ``Rate`` in JSON."""

    hits: int
    trials: int


class State(TypedDict):
    """One model: two counts, and the quantiles of what ``Geometry`` holds under these names."""

    lands: Count
    certified: Count
    quantiles: dict[str, list[float | None]]


class Summary(TypedDict):
    """What ``measure`` found, as it stands in the record.

    ``levels`` are the shares of the ``n`` images that the quantiles belong to: the quantile at p is
    the smallest value that at least p of the images do not exceed; None is infinity.
    """

    trigger: str
    suspect: int
    n: int
    levels: list[float]
    states: dict[str, State]


def measure(
    before: Classifier,
    after_phase1: Classifier,
    after_phase2: Classifier,
    clean: Labelled,
    trigger: Trigger,
    *,
    suspect: int,
) -> Summary:
    """The geometry of one trigger in three states of one model, on the same images.

    Args:
        before: As received.
        after_phase1: What ``repel`` shows as phase 1 of the learning rate that it kept.
        after_phase2: The repaired model.
        clean: Images that no model was trained or chosen on, ``report``; float32 copies of those
            outside the suspect class are held in memory.
        trigger: One that can be put on every clean image.
        suspect: ``c``.

    Raises:
        ConfigError: The trigger does not give one image for each clean one, in order.
        InputError: A model's logits are not those of a linear head.
    """
    outside = clean.subset(clean.labels != suspect)
    triggered = _triggered(outside, trigger)
    models = zip(_STYLES, (before, after_phase1, after_phase2), strict=True)
    return Summary(
        trigger=trigger.name,
        suspect=suspect,
        n=len(outside),
        levels=[step / _STEPS for step in range(_STEPS + 1)],
        states={
            state: _state(geometry(model, outside.pixels, triggered, suspect))
            for state, model in models
        },
    )


def _triggered(outside: Labelled, trigger: Trigger) -> Tensor:
    parts = list(trigger.batches(outside))
    if not torch.equal(torch.cat([labels for _, labels in parts]), outside.labels):
        raise ConfigError(
            f"expected trigger {trigger.name} on each of {len(outside)} clean images in their "
            "order, got others; take a trigger that is put on clean images"
        )
    return torch.cat([pixels for pixels, _ in parts])


def _state(found: Geometry) -> State:
    values = {name: getattr(found, name) for name in _LABELS}
    return State(
        lands=_count(Rate(int(found.lands.sum()), len(found))),
        certified=_count(found.certified),
        quantiles={name: _quantiles(each) for name, each in values.items()},
    )


def _count(rate: Rate) -> Count:
    return Count(hits=rate.hits, trials=rate.trials)


def _quantiles(values: Tensor) -> list[float | None]:
    """The smallest value, then that of each of the equal steps, to six digits; see ``Summary``."""
    ascending = values.sort().values.tolist()
    # -(-a // b) rounds up without leaving the whole numbers.
    ranks = [max(1, -(-len(ascending) * step // _STEPS)) for step in range(_STEPS + 1)]
    chosen = (ascending[rank - 1] for rank in ranks)
    return [None if value == torch.inf else float(f"{value:.6g}") for value in chosen]


def draw(name: str, summaries: Sequence[Summary], path: Path) -> None:
    """One figure, a line for each state of each summary; the same input gives the same file.

    Args:
        name: A key of ``FIGURES``.
        summaries: One per run; runs of one figure share their line styles.
        path: Ends in ``.png`` or ``.svg``.

    Raises:
        ConfigError: No such figure, nothing to draw, another ending, or matplotlib is missing.
    """
    if name not in FIGURES or not summaries:
        raise ConfigError(
            f"expected one of {', '.join(FIGURES)} and a summary or more, got {name} and "
            f"{len(summaries)}"
        )
    panels = FIGURES[name]
    figure = drawing.blank(path, 4.8 * len(panels), 3.6)
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, quantity in zip(grid, panels, strict=True):
        if quantity == "certified":
            _shares(axes, summaries)
        else:
            _curves(axes, summaries, quantity)
    figure.suptitle(_title(name, summaries), fontsize="medium")
    figure.axes[0].legend(fontsize="small")
    drawing.save(figure, path, name)


def _title(name: str, summaries: Sequence[Summary]) -> str:
    triggers = ", ".join(sorted({summary["trigger"] for summary in summaries}))
    counts = sorted({summary["n"] for summary in summaries})
    images = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    runs = "1 run" if len(summaries) == 1 else f"{len(summaries)} runs"
    return f"{name}: {triggers}; {images} images outside the suspect class, {runs}"


def _curves(axes: "Axes", summaries: Sequence[Summary], quantity: str) -> None:
    """Cumulative shares of one quantity; where values are infinite a curve ends below 1."""
    for run, summary in enumerate(summaries):
        for state, (colour, line, label) in _STYLES.items():
            values = summary["states"][state]["quantiles"][quantity]
            drawn = [
                (v, p) for v, p in zip(values, summary["levels"], strict=True) if v is not None
            ]
            axes.plot(
                [value for value, _ in drawn],
                [level for _, level in drawn],
                color=colour,
                linestyle=line,
                label=None if run else label,
            )
    if quantity == "flip_share":
        axes.set_xlim(0, _FARTHEST_SHARE)
    axes.axvline(1 if quantity == "flip_share" else 0, color="0.7", linewidth=0.8, zorder=0)
    axes.set(xlabel=_LABELS[quantity], ylabel="share of images", ylim=(0, 1))


def _shares(axes: "Axes", summaries: Sequence[Summary]) -> None:
    """Certified safe (filled) and not carried away (hollow), with Wilson bounds; runs abreast."""
    for run, summary in enumerate(summaries):
        aside = 0.3 * (run + 0.5) / len(summaries)
        for place, (state, (colour, _, _)) in enumerate(_STYLES.items()):
            found = summary["states"][state]
            certified, landed = Rate(**found["certified"]), Rate(**found["lands"])
            stayed = Rate(landed.trials - landed.hits, landed.trials)
            _point(axes, place - aside, certified, colour, filled=True)
            _point(axes, place + aside, stayed, colour, filled=False)
    axes.plot([], [], "o", color="0.3", label="certified safe")
    axes.plot([], [], "o", color="0.3", markerfacecolor="none", label="not in the suspect class")
    axes.legend(fontsize="small")
    axes.set_xticks(range(len(_STYLES)), [label for _, _, label in _STYLES.values()])
    axes.set(ylabel="share of images", xlim=(-0.5, len(_STYLES) - 0.5), ylim=(-0.03, 1.03))


def _point(axes: "Axes", x: float, rate: Rate, colour: str, *, filled: bool) -> None:
    axes.errorbar(
        x,
        rate.value,
        yerr=[[rate.value - rate.lower()], [rate.upper() - rate.value]],
        fmt="o",
        color=colour,
        markerfacecolor=colour if filled else "none",
    )
