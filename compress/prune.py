# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Structural L1 channel pruning: plan, look, then act."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lmr_guard.classifier import Classifier
from lmr_guard.compress.groups import UNFIT, Groups, LayerCut, cut
from lmr_guard.compress.recipes import PruneL1, Shares
from lmr_guard.contracts import Achieved, Labelled, Progress, silent
from lmr_guard.errors import ConfigError, StageError
from lmr_guard.measure import accuracy

__all__ = [
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

# NNI's annealing pruner cools by 0.9 per step and moves each layer's share by up to 0.35 times
# the heat. Its temperature accepts almost everything; ours is in units of accuracy.
_COOLING = 0.9
_MAGNITUDE = 0.35
_TEMPERATURE = 0.02
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


def to_json(plan: PrunePlan) -> dict[str, object]:
    """Plain data with ``type`` and ``version``."""
    cuts = [{"layer": c.layer, "channels": list(c.channels)} for c in plan.cuts]
    return {
        "type": "prune_plan",
        "version": _VERSION,
        "ratio": plan.ratio,
        "shares": plan.shares,
        "cuts": cuts,
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
            "shares": ("calibrated" | "uniform") as shares,
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
) -> PrunePlan:
    """Choose the channels with the smallest filter L1 norm, layer by layer.

    Uniform shares cut the same share of each group, rounded up, so that no less goes than was
    asked for; one unit of each group always stays. Calibrated shares start there and are
    searched by simulated annealing, as NNI's annealing pruner does it: a candidate moves every
    layer's share, keeps the overall channel rate, and is scored by clean accuracy through masks;
    the best one seen is taken. Where the recipe re-estimates BN statistics, candidates are scored
    with those of the batch: scored with the stale ones, the search would choose shares that spare
    the statistics and not the features. It costs ``annealing_steps + 1`` passes over
    ``calibration_images`` images.

    Args:
        classifier: Left as it is.
        recipe: Ratio, shares and search length.
        select: Clean images that score candidates; unused for uniform shares.
        generator: Draws the images and the candidates; unused for uniform shares.
        progress: Told after each candidate.
        groups: The traced structure, where the caller has it already.

    Raises:
        ConfigError: Calibrated shares with fewer than 2 images.
        StageError: Nothing in the network can be cut.
    """
    groups = groups or Groups(classifier)
    counts = groups.uniform(recipe.ratio)
    if recipe.shares == "calibrated":
        score = _Score(classifier.clone(), groups, _draw(select, recipe, generator))
        if recipe.reestimate_bn:
            score.use_batch_statistics()
        counts = _anneal(score, recipe, counts, generator, progress)
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


def apply(plan: PrunePlan, classifier: Classifier) -> Classifier:
    """A new classifier whose planned channels are really gone.

    Raises:
        StageError: The plan is empty or does not fit, or less was removed than planned, or the
            result no longer computes logits.
    """
    if not plan.cuts:
        raise StageError("expected a plan that cuts something, got an empty one; plan anew")
    wanted = {item.layer: _left(classifier, item) for item in plan.cuts}
    try:
        pruned = cut(classifier, plan.cuts)
        with torch.no_grad():
            logits = pruned(pruned.example())
    except UNFIT as error:
        raise StageError(
            f"expected the plan to fit the network, got {error}; plan anew for this network"
        ) from error
    left = {layer: _outputs(pruned, layer) for layer in wanted}
    if left != wanted or logits.shape[1] != classifier.num_classes:
        raise StageError(
            f"expected the channels {wanted} to be left, got {left} and {logits.shape[1]} logits; "
            "this architecture cannot be pruned, leave the recipe out"
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
        Channels counted at the root of each prunable group; parameters over all of them.
    """
    groups = groups or Groups(before)
    channels = sum(_outputs(after, group.layer) for group in groups.all)
    return Achieved(
        channel_sparsity=1 - channels / groups.channels,
        parameter_sparsity=1 - _parameters(after) / _parameters(before),
        bits=bits,
    )


@torch.no_grad()
def reestimate_bn(classifier: Classifier, repair: Labelled, batch: int = 64) -> Classifier:
    """A copy whose BN statistics are the cumulative average over clean images.

    Pruning shifts the activations that the stored statistics describe. Only batch norms run in
    train mode. Each batch takes every n-th image, because stored images are often sorted by
    class. A network without batch norm comes back as a plain copy.

    Args:
        classifier: Left as it is.
        repair: Clean images, at least 2.
        batch: Images per pass.

    Raises:
        StageError: Fewer than 2 images.
    """
    twin = classifier.clone()
    norms = _batch_norms(twin)
    if not norms:
        return twin
    if len(repair) < 2:
        raise StageError(
            f"expected at least 2 clean images for BN statistics, got {len(repair)}; give more"
        )
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    passes = min(-(-len(repair) // batch), len(repair) // 2)
    for first in range(passes):
        twin(repair.subset(torch.arange(first, len(repair), passes)).pixels.to(twin.device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return twin.eval()


def _batch_norms(model: Classifier) -> list[_BatchNorm]:
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


class _Score:
    """Clean accuracy of a candidate, through masks."""

    def __init__(self, model: Classifier, groups: Groups, images: Labelled) -> None:
        self.groups = groups
        self._model, self._images = model, images
        self._state = {name: p.detach() for name, p in model.named_parameters()}

    def __call__(self, counts: tuple[int, ...]) -> float:
        found = self.groups.masks(self.groups.cuts(self._state, counts))
        state = self._state
        masked = {name: state[name] * mask.to(state[name]) for name, mask in found.items()}

        def predict(pixels: Tensor) -> Tensor:
            at = (pixels.to(self._model.device),)
            logits: Tensor = torch.func.functional_call(self._model, masked, at)
            return logits

        # No last batch of one image: batch statistics need two.
        return accuracy(predict, self._images, 64 + (len(self._images) % 64 == 1)).value

    def use_batch_statistics(self) -> None:
        """Normalise by what each batch shows, as BN re-estimation will."""
        for norm in _batch_norms(self._model):
            norm.train()


def _draw(select: Labelled, recipe: PruneL1, generator: torch.Generator) -> Labelled:
    if len(select) < 2:
        raise ConfigError(
            f"expected at least 2 clean images for calibrated shares, got {len(select)}; "
            "give more or use uniform shares"
        )
    order = torch.randperm(len(select), generator=generator)
    return select.subset(order[: recipe.calibration_images])


def _anneal(
    score: _Score,
    recipe: PruneL1,
    start: tuple[int, ...],
    generator: torch.Generator,
    progress: Progress,
) -> tuple[int, ...]:
    now = best = start
    now_score = best_score = score(start)
    for step in range(recipe.annealing_steps):
        heat = _COOLING**step
        trial = _neighbour(score.groups, now, recipe.ratio, _MAGNITUDE * heat, generator)
        got = score(trial)
        chance = exp(min(0.0, got - now_score) / (_TEMPERATURE * heat))
        if float(torch.rand((), generator=generator)) < chance:
            now, now_score = trial, got
        if got > best_score:
            best, best_score = trial, got
        progress(f"layer shares at {recipe.ratio:g}", step + 1, recipe.annealing_steps)
    return best


def _neighbour(
    groups: Groups,
    counts: tuple[int, ...],
    ratio: float,
    reach: float,
    generator: torch.Generator,
) -> tuple[int, ...]:
    """Every share moved by up to ``reach``, then all by the least offset that keeps the rate."""
    moves = (2 * torch.rand(len(counts), generator=generator) - 1) * reach
    shares = [
        count / group.units + move
        for group, count, move in zip(groups.all, counts, moves.tolist(), strict=True)
    ]
    low, high = -2.0, 2.0
    for _ in range(40):
        middle = (low + high) / 2
        if _cut_channels(groups, _rounded(groups, shares, middle)) < ratio * groups.channels:
            low = middle
        else:
            high = middle
    return _rounded(groups, shares, high)


def _rounded(groups: Groups, shares: list[float], offset: float) -> tuple[int, ...]:
    return tuple(
        min(max(0, round(group.units * (share + offset))), group.units - 1)
        for group, share in zip(groups.all, shares, strict=True)
    )


def _cut_channels(groups: Groups, counts: tuple[int, ...]) -> int:
    return sum(group.fold * count for group, count in zip(groups.all, counts, strict=True))


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
