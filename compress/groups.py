# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Which channels of a network must go together, traced once and kept as plain data.

torch-pruning finds the coupling (residual sums, depthwise convolutions, concatenations,
flattening). Here its answer is kept as index tables, so that masks and cuts follow from new
weights without tracing again. Where it cannot follow a network, see ``consecutive``.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lmr_guard.classifier import Classifier, find_head
from lmr_guard.compress.consecutive import proposed
from lmr_guard.compress.tables import (
    Group,
    LayerCut,
    Slice,
    cut,
    depthwise,
    maskable,
    masks,
    slices,
)
from lmr_guard.compress.whole import UNSEEN, Whole, described, layers, left_whole
from lmr_guard.errors import StageError

__all__ = ["UNFIT", "Group", "Groups", "LayerCut", "masked"]

# What torch-pruning, or a network that it cut wrongly, raises.
UNFIT = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    UserWarning,
    ValueError,
)


_SHOWN = 8  # images that the statistics of a batch are taken on
# How often torch-pruning may walk a dependency, on average, and how much longer than the widest
# layer a list of its indices may be. Of those that it can follow none was seen to need more than 7
# walks (DenseNet-121) or a longer list.
_WALKS, _FOLDS = 100, 8


class Groups:
    """All groups of a classifier that can be cut so that a mask does the same.

    Left out, and named in ``skipped``: the head's outputs, and groups that hold more than
    convolutions, linear layers, batch norms and PReLU (attention, layer and group norms, bare
    parameters), because cutting them changes what the other channels compute, or because
    torch-pruning does not know them. What remains is tried once: a cut and a masked copy must
    give the same logits; a group that fails is skipped too. ``whole`` holds all channels that stay
    for such reasons, those of layers among them that torch-pruning has not in any group. Of a
    network that torch-pruning cannot follow at all, what ``consecutive`` proposes is tried.

    Args:
        classifier: Traced on a copy; left as it is.

    Raises:
        StageError: Nothing in the network can be cut.
        InputError: No head was found.
    """

    def __init__(self, classifier: Classifier) -> None:
        # On the CPU: reduced-precision convolutions of an accelerator would blur the trial.
        model = classifier.clone().cpu()
        name, head = find_head(model, model.example(), model.num_classes)
        self._head = name
        try:
            found, skipped = _trace(model, head)
            unseen = UNSEEN
        except UNFIT as error:
            found, skipped = proposed(model, head), None
            unseen = f"torch-pruning cannot follow this network ({error!r})"
        self.all = _faithful(model, found)
        if skipped is None:  # What was proposed is a guess: that one fails says nothing.
            skipped = []
        else:
            skipped += [_unfaithful(group) for group in found if group not in self.all]
        self.skipped: tuple[str, ...] = tuple(group.layer for group in skipped)
        gone = (weight for group in self.all for weight in group.weights)
        self.whole: tuple[Whole, ...] = left_whole(layers(model, name), gone, skipped, unseen)
        self._forms = {name: p.detach().to("meta") for name, p in model.named_parameters()}
        if not self.all:
            raise StageError(
                "expected layers whose channels can be cut, got none; "
                f"leave pruning out for this architecture ({described(self.whole) or 'no layers'})"
            )

    @property
    def channels(self) -> int:
        """All prunable channels, counted at the roots."""
        return sum(group.channels for group in self.all)

    def rank(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Units of each group from the smallest to the largest filter L1 norm.

        Args:
            state: Weights by qualified name, e.g. ``dict(classifier.named_parameters())``.

        Returns:
            Root layer to int64 positions, shape (units,); equal norms keep their order.
        """
        return {
            group.layer: _norms(state[f"{group.layer}.weight"], group.fold).argsort(stable=True)
            for group in self.all
        }

    def uniform(self, ratio: float) -> tuple[int, ...]:
        """Units to cut a group: the same share of each, rounded up; one unit always stays."""
        return tuple(min(_up(g.units * ratio), g.units - 1) for g in self.all)

    def share(self, ratio: float) -> int:
        """How many channels, over all groups, such a share is; no less than was asked for."""
        return _up(self.channels * ratio)

    def cuts(self, state: Mapping[str, Tensor], counts: Sequence[int]) -> tuple[LayerCut, ...]:
        """The ``counts`` weakest units of each group, as the weights stand now."""
        order = self.rank(state)
        return tuple(
            LayerCut(group.layer, group.expand(order[group.layer][:count].tolist()))
            for group, count in zip(self.all, counts, strict=True)
            if count
        )

    def masks(self, cuts: Iterable[LayerCut]) -> dict[str, Tensor]:
        """Parameter name to a 0/1 mask that broadcasts to it; only those that lose something.

        Multiplying by the masks equals cutting, in train and in eval mode: producers, coupled
        layers and the input columns of every consumer are zeroed. The masks are on the CPU.

        Raises:
            StageError: A cut names a layer that is no root, or a channel that it has not.
        """
        return masks(self.all, self._forms, cuts)

    def left_to_head(self, cuts: Iterable[LayerCut]) -> Tensor | None:
        """Which inputs of the head a cut leaves, (inputs left,), int64; None where it leaves all.

        Raises:
            StageError: As for ``masks``.
        """
        mask = self.masks(cuts).get(f"{self._head}.weight")
        return None if mask is None else mask.flatten(1).any(dim=0).nonzero().flatten()

    def cut(self, classifier: Classifier, cuts: Iterable[LayerCut]) -> Classifier:
        """A copy of a network of this structure whose channels are really gone, in eval mode.

        Raises:
            StageError: As for ``masks``.
        """
        return cut(classifier, self.all, cuts)


def masked(state: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters that lose something, with what they lose at zero; for ``functional_call``."""
    return {name: state[name] * mask.to(state[name]) for name, mask in masks.items()}


def _faithful(model: Classifier, found: list[Group]) -> tuple[Group, ...]:
    """The groups for which cutting equals masking, each and all together."""
    lively = _lively(model)
    if _cut_is_mask(lively, found):
        return tuple(found)
    good: list[Group] = []
    for group in found:
        if _cut_is_mask(lively, [*good, group]):
            good.append(group)
    return tuple(good)


@torch.no_grad()
def _lively(model: Classifier) -> Classifier:
    """A copy whose every channel moves the logits, for what is coupled does not hang on weights.

    In the network itself a layer scale, a norm that was never trained or a sleeping channel may
    hide a cut that is wrong.
    """
    twin, drawn = model.clone(), torch.Generator().manual_seed(0)
    for name, value in twin.named_parameters():
        if value.ndim > 1:
            value.normal_(std=value[0].numel() ** -0.5, generator=drawn)
        elif name.endswith("bias"):
            value.normal_(std=0.1, generator=drawn)
        else:
            value.uniform_(0.5, 1.5, generator=drawn)
    norms = [module for module in twin.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 1.0
    try:
        twin(_noise(twin, _SHOWN))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.eval().momentum = momentum
    # Some parameters stand for what may not be negative.
    return twin if bool(twin(_noise(twin, _SHOWN)).isfinite().all()) else model


def _noise(model: Classifier, count: int) -> Tensor:
    shape = model.example(count).shape
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def _cut_is_mask(model: Classifier, groups: list[Group]) -> bool:
    # A third, drawn: what is coupled at a distance may agree with itself on any regular choice.
    drawn = torch.Generator().manual_seed(2)
    chosen = [torch.randperm(g.units, generator=drawn)[: -(-g.units // 3)] for g in groups]
    cuts = [LayerCut(g.layer, g.expand(c.tolist())) for g, c in zip(groups, chosen, strict=True)]
    pixels = _noise(model, 2)
    state = dict(model.named_parameters())
    try:
        own = masked(state, masks(groups, state, cuts))
        expected = torch.func.functional_call(model, own, (pixels,))
        got = cut(model, groups, cuts)(pixels)
    except (StageError, *UNFIT):
        return False
    if got.shape != expected.shape:
        return False
    tolerance = 1e-3 * (expected - model(pixels)).abs().max() + 1e-5 * expected.abs().max()
    return bool((got - expected).abs().max() <= tolerance)


@contextmanager
def _tracing() -> Iterator[None]:
    """Gradients on: without them torch-pruning finds no graph, prunes nothing and says nothing.

    It warns about what it does not understand and goes on; the trial in ``Groups`` decides. Only
    a search that does not end (torchvision's Swin) must stop at once: it eats all memory.
    """
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="Maximum recursive depth")
        yield


class _Bounded(list[Any]):
    """The index mappings of one dependency, which raise where a search does not end.

    In some networks (timm's CoAtNet) torch-pruning walks in circles and its lists of indices grow
    each time: that ate all memory.

    Args:
        mappings: Functions of a list of indices, and None.
        most: Indices that no list may exceed.
        steps: How often any dependency of the network was walked, and how often it may be.
    """

    def __init__(self, mappings: Iterable[Any], most: int, steps: list[int]) -> None:
        super().__init__(mappings)
        self._most, self._steps = most, steps

    def __iter__(self) -> Iterator[Any]:
        self._steps[0] += 1
        if self._steps[0] > self._steps[1]:
            raise OverflowError("its search for groups does not end")
        return (mapping and self._bounded(mapping) for mapping in super().__iter__())

    def _bounded(self, mapping: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def mapped(indices: Any) -> Any:  # noqa: ANN401 - torch-pruning's own lists
            found = mapping(indices)
            if len(found) > self._most:
                raise OverflowError("its lists of coupled channels grow without end")
            return found

        return mapped


def _graph(model: Classifier) -> Any:  # noqa: ANN401 - torch-pruning has no types
    """The dependency graph; the model must be in eval mode and its parameters need gradients."""
    import torch_pruning

    graph = torch_pruning.DependencyGraph().build_dependency(
        model, example_inputs=(model.example(),), verbose=False
    )
    found = [dep for node in graph.module2node.values() for dep in node.dependencies]
    widest = max(max(value.shape, default=1) for value in model.parameters())
    steps = [0, _WALKS * len(found)]
    for dep in found:
        dep.index_mapping = _Bounded(dep.index_mapping, _FOLDS * widest, steps)
    return graph


@_tracing()
def _trace(model: Classifier, head: nn.Module) -> tuple[list[Group], list[Whole]]:
    """Groups made of layers that masks can describe, and the others."""
    names = {module: name for name, module in model.named_modules()}
    found: list[Group] = []
    skipped: list[Whole] = []
    graph = _graph(model)
    for raw in graph.get_all_groups(ignored_layers=[head]):
        group = _read(graph, raw, names)
        if isinstance(group, Group) and group.units > 1:
            found.append(group)
            continue
        units = len(raw[0].idxs) if isinstance(group, str) else group.units
        why = group if isinstance(group, str) else "it has one unit"
        layer = names[raw[0].dep.target.module]
        skipped.append(Whole(layer, units, why, _produced(graph, raw, names)))
    return found, skipped


def _produced(graph: Any, raw: Any, names: Mapping[nn.Module, str]) -> tuple[str, ...]:  # noqa: ANN401
    """Names of the weights, the root's first, that put out what a raw group would lose."""
    made = (
        names[item.dep.target.module]
        for item in raw.items
        if item.dep.target.module in names and graph.is_out_channel_pruning_fn(item.dep.handler)
    )
    return tuple(f"{name}.weight" for name in made)


def _unfaithful(group: Group) -> Whole:
    why = "cutting it changes what the other channels compute"
    return Whole(group.layer, group.channels, why, group.weights)


def _read(graph: Any, raw: Any, names: Mapping[nn.Module, str]) -> Group | str:  # noqa: ANN401
    """A group that masks can describe, or why they cannot."""
    root = raw[0].dep.target.module
    found: list[Slice] = []
    fold = 1
    for item in raw.items:
        module = item.dep.target.module
        if not isinstance(module, nn.Module):
            return "coupled to a parameter that is no layer's"
        if next(module.parameters(), None) is None and not isinstance(module, _BatchNorm):
            continue
        produced = graph.is_out_channel_pruning_fn(item.dep.handler)
        if not maskable(module):
            return f"coupled to {type(module).__name__}"
        if isinstance(module, nn.Conv1d | nn.Conv2d) and not depthwise(module):
            fold = max(fold, module.groups)
        own, by = torch.tensor(item.idxs), torch.tensor(item.root_idxs)
        found += slices(module, names[module], produced, own, by)
    return Group(names[root], len(raw[0].idxs), fold, tuple(found))


def _norms(weight: Tensor, fold: int) -> Tensor:
    norms = weight.detach().abs().flatten(1).sum(dim=1)
    return norms.view(fold, -1).mean(dim=0)


def _up(value: float) -> int:
    """The next integer; what is above an integer by rounding only counts as that integer."""
    return ceil(value - 1e-9)
