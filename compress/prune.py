# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Structural L1 channel pruning: plan, look, then act."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from lmr_guard.classifier import Classifier
from lmr_guard.compress.annealing import annealed
from lmr_guard.compress.damage import Damage, measured
from lmr_guard.compress.groups import UNFIT, Groups, LayerCut
from lmr_guard.compress.norms import reestimate_bn
from lmr_guard.compress.recipes import PruneL1, Shares
from lmr_guard.compress.whole import Whole
from lmr_guard.contracts import Labelled, Progress, silent
from lmr_guard.errors import ConfigError, StageError, some
from lmr_guard.results import Achieved

__all__ = [
    "FEWEST",
    "Groups",
    "LayerCut",
    "PrunePlan",
    "achieved",
    "apply",
    "from_json",
    "masks",
    "plan",
    "reestimate_bn",
    "to_json",
]

FEWEST = 2
"""Images that shares other than uniform ones take, for the statistics of a batch."""

_VERSION = 1


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """Which channels go: data that can be printed, stored and replayed.

    Args:
        ratio: What was asked for.
        shares: How it was spread over the layers.
        cuts: One entry a root layer that loses channels.
    """

    ratio: float
    shares: Shares
    cuts: tuple[LayerCut, ...]

    def __str__(self) -> str:
        """One line per layer."""
        lines = [f"{c.layer}: {len(c.channels)} channels {list(c.channels)}" for c in self.cuts]
        return "\n".join([f"L1 pruning, ratio {self.ratio:g}, {self.shares} shares", *lines])


def to_json(plan: PrunePlan, whole: Sequence[Whole] = ()) -> dict[str, object]:
    """Plain data with ``type`` and ``version``, and what could lose no channels where any."""
    more = {"whole": [each.to_json() for each in whole]} if whole else {}
    cuts = [{"layer": c.layer, "channels": list(c.channels)} for c in plan.cuts]
    return {
        "type": "prune_plan",
        "version": _VERSION,
        "ratio": plan.ratio,
        "shares": plan.shares,
        "cuts": cuts,
        **more,
    }


def from_json(data: Mapping[str, object]) -> PrunePlan:
    """The plan that ``to_json`` wrote.

    Raises:
        ConfigError: Not such a plan, or of another version.
    """
    match data:
        case {
            "type": "prune_plan",
            "version": 1,
            "ratio": float(ratio),
            "shares": ("calibrated" | "damage" | "uniform") as shares,
            "cuts": list(cuts),
        }:
            return PrunePlan(ratio, shares, tuple(_cut_from_json(item) for item in cuts))
    raise ConfigError(
        f"expected a prune_plan of version {_VERSION} with shares in {get_args(Shares)}, got "
        f"{str(dict(data))[:120]}; make the plan anew"
    )


def plan(
    classifier: Classifier,
    recipe: PruneL1,
    select: Labelled,
    generator: torch.Generator,
    progress: Progress = silent,
    *,
    groups: Groups | None = None,
    damage: Damage | None = None,
) -> PrunePlan:
    """Choose the channels with the smallest filter L1 norm, layer by layer.

    Uniform shares cut the same share of each group, rounded up, so that no less goes than was
    asked for; one unit of each group always stays. Shares by damage cut most where the model minds
    it least, see ``damage``; calibrated ones are searched by simulated annealing, see
    ``annealing``. Both keep the overall channel rate.

    Args:
        classifier: Left as it is.
        recipe: Ratio, shares and search length.
        select: Clean images; unused for uniform shares.
        generator: Draws images and candidates of calibrated shares; unused for others.
        progress: Told during a search for shares.
        groups: The traced structure, where the caller has it already.
        damage: Of this classifier, where the caller has it already.

    Raises:
        ConfigError: Other than uniform shares with fewer than 2 images.
        StageError: Nothing in the network can be cut.
    """
    groups = groups or Groups(classifier)
    if recipe.shares != "uniform" and len(select) < FEWEST:
        raise ConfigError(
            f"expected at least {FEWEST} clean images for {recipe.shares} shares, got "
            f"{len(select)}; give more or use uniform shares"
        )
    if recipe.shares == "damage":
        damage = damage or measured(
            classifier, groups, select, batch_statistics=recipe.reestimate_bn, progress=progress
        )
        counts = damage.counts(groups.share(recipe.ratio))
    elif recipe.shares == "calibrated":
        counts = annealed(classifier, recipe, select, generator, progress, groups=groups)
    else:
        counts = groups.uniform(recipe.ratio)
    cuts = groups.cuts(dict(classifier.named_parameters()), counts)
    if not cuts:
        raise StageError(
            f"expected channels to cut at ratio {recipe.ratio}, got none; the layers are too narrow"
        )
    return PrunePlan(recipe.ratio, recipe.shares, cuts)


def masks(classifier: Classifier, plan: PrunePlan) -> dict[str, Tensor]:
    """Parameter name to 0/1 mask: ``p * mask`` computes what the cut network computes.

    For repeated use with changing weights trace once: ``groups = Groups(classifier)``, then
    ``groups.masks(groups.cuts(state, counts))``.

    Raises:
        StageError: The plan does not fit the classifier.
    """
    found = Groups(classifier).masks(plan.cuts)
    return {name: mask.to(classifier.device) for name, mask in found.items()}


def apply(plan: PrunePlan, classifier: Classifier, groups: Groups | None = None) -> Classifier:
    """A new classifier whose planned channels are really gone.

    Args:
        plan: What goes.
        classifier: Left as it is.
        groups: Its traced structure, where the caller has it already.

    Raises:
        StageError: The plan is empty or does not fit, or less was removed than planned, or the
            result no longer computes logits.
    """
    if not plan.cuts:
        raise StageError("expected a plan that cuts something, got an empty one; plan anew")
    wanted = {item.layer: _left(classifier, item) for item in plan.cuts}
    try:
        pruned = (groups or Groups(classifier)).cut(classifier, plan.cuts)
        with torch.no_grad():
            logits = pruned(pruned.example())
    except UNFIT as error:
        raise StageError(
            f"expected the plan to fit the network, got {error}; plan anew for this network"
        ) from error
    left = {layer: _outputs(pruned, layer) for layer in wanted}
    if left != wanted or logits.shape[1] != classifier.num_classes:
        odd = [f"{n} {left[n]} for {count}" for n, count in wanted.items() if left[n] != count]
        if logits.shape[1] != classifier.num_classes:
            odd.insert(0, f"logits {logits.shape[1]} for {classifier.num_classes}")
        raise StageError(
            f"expected the planned channels and all logits to be left, got {some(odd)}; this "
            "architecture cannot be pruned, leave the recipe out"
        )
    return pruned


def achieved(
    before: Classifier, after: Classifier, bits: int = 32, groups: Groups | None = None
) -> Achieved:
    """What is really gone, counted on the networks and not taken from the plan.

    Args:
        before: The uncut network.
        after: The cut one.
        bits: Bits a weight, for the record.
        groups: Structure of ``before``, where the caller has it already.

    Returns:
        Channels over all layers that could lose some by their nature, see ``whole``: those that
        go together counted once, those that no tool here can cut counted as kept. Parameters over
        all of them.
    """
    groups = groups or Groups(before)
    kept = sum(whole.channels for whole in groups.whole)
    channels = kept + sum(_outputs(after, group.layer) for group in groups.all)
    return Achieved(
        channel_sparsity=1 - channels / (kept + groups.channels),
        parameter_sparsity=1 - _parameters(after) / _parameters(before),
        bits=bits,
    )


def _cut_from_json(item: object) -> LayerCut:
    match item:
        case {"layer": str(layer), "channels": list(channels)} if all(
            type(channel) is int for channel in channels
        ):
            return LayerCut(layer, tuple(channels))
    raise ConfigError(f"expected a cut with layer and channels, got {str(item)[:120]}")


def _left(classifier: Classifier, item: LayerCut) -> int:
    try:
        before = _outputs(classifier, item.layer)
    except AttributeError as error:
        raise StageError(
            f"expected a network with the layer {item.layer}, got none; plan anew"
        ) from error
    if not set(item.channels) < set(range(before)):
        raise StageError(
            f"expected a cut within the {before} channels of {item.layer} that leaves one, got "
            f"{item.channels}; plan anew for this network"
        )
    return before - len(set(item.channels))


def _outputs(classifier: Classifier, layer: str) -> int:
    weight = classifier.get_submodule(layer).weight
    assert isinstance(weight, Tensor)  # noqa: S101 - for the type checker
    return len(weight)


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
