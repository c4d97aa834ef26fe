# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Which channels of a network must go together, traced once and kept as plain data.

torch-pruning finds the coupling (residual sums, depthwise convolutions, concatenations,
flattening) and cuts. Here its answer is kept as index tables, so that masks follow from new
weights without tracing again.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lmr_guard.classifier import Classifier, find_head
from lmr_guard.compress.whole import Whole, described, layers, left_whole
from lmr_guard.errors import StageError, some

__all__ = ["UNFIT", "Group", "Groups", "LayerCut", "cut", "masked"]

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


@dataclass(frozen=True, slots=True)
class LayerCut:
    """Output channels of one layer that go, together with all that is coupled to them.

    Args:
        layer: Qualified name in the classifier, e.g. ``"network.layer1.0.conv1"``.
        channels: Positions in the uncut layer, ascending.
    """

    layer: str
    channels: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Slice:
    """Along ``dim`` of a parameter, entry ``positions[i]`` lives by root channel ``roots[i]``."""

    parameter: str
    dim: int
    positions: Tensor
    roots: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Channels that can only go together, named by the root layer that ranks them.

    Args:
        layer: The root: a convolution or linear layer.
        channels: Its output channels.
        fold: How many channels form one unit: a grouped convolution must lose the same
            channels of each of its groups. 1 elsewhere.
        slices: Every parameter entry that goes with a channel.
    """

    layer: str
    channels: int
    fold: int
    slices: tuple[_Slice, ...]

    @property
    def units(self) -> int:
        """What can be cut one by one."""
        return self.channels // self.fold

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the weights that put the channels out."""
        produced = (s.parameter for s in self.slices if s.dim == 0)
        return tuple(name for name in produced if name.endswith("weight"))

    def expand(self, units: Sequence[int]) -> tuple[int, ...]:
        """The channels of these units, ascending."""
        return tuple(sorted(u + block * self.units for block in range(self.fold) for u in units))


class Groups:
    """All groups of a classifier that can be cut so that a mask does the same.

    Left out, and named in ``skipped``: the head's outputs, and groups that hold more than
    convolutions, linear layers, batch norms and PReLU (attention, layer and group norms, bare
    parameters), because cutting them changes what the other channels compute, or because
    torch-pruning does not know them. What remains is tried once: a cut and a masked copy must
    give the same logits; a group that fails is skipped too. ``whole`` holds all channels that stay
    for such reasons, those of layers among them that torch-pruning has not in any group.

    Args:
        classifier: Traced on a copy; left as it is.

    Raises:
        StageError: The network could not be traced, or nothing in it can be cut.
        InputError: No head was found.
    """

    def __init__(self, classifier: Classifier) -> None:
        # On the CPU: reduced-precision convolutions of an accelerator would blur the trial.
        model = classifier.clone().cpu()
        name, head = find_head(model, model.example(), model.num_classes)
        found, skipped = _trace(model, head)
        self.all = _faithful(model, found)
        skipped += [_unfaithful(group) for group in found if group not in self.all]
        self.skipped: tuple[str, ...] = tuple(group.layer for group in skipped)
        cut = (weight for group in self.all for weight in group.weights)
        self.whole: tuple[Whole, ...] = left_whole(layers(model, name), cut, skipped)
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
        return _masks(self.all, self._forms, cuts)


def masked(state: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters that lose something, with what they lose at zero; for ``functional_call``."""
    return {name: state[name] * mask.to(state[name]) for name, mask in masks.items()}


def cut(classifier: Classifier, cuts: Iterable[LayerCut]) -> Classifier:
    """A copy whose channels are really gone; nothing is checked (``prune.apply`` does).

    Raises:
        StageError: torch-pruning cannot handle the network or the cuts.
    """
    model = classifier.clone()
    with _tracing():
        graph = _graph(model)
        for item in cuts:
            layer = model.get_submodule(item.layer)
            prune = graph.get_pruner_of_module(layer).prune_out_channels
            graph.get_pruning_group(layer, prune, list(item.channels)).prune()
    return model


def _masks(
    groups: Iterable[Group], forms: Mapping[str, Tensor], cuts: Iterable[LayerCut]
) -> dict[str, Tensor]:
    """Masks of parameters that have the shapes and dtypes of ``forms``, on the CPU."""
    kept: dict[tuple[str, int], Tensor] = {}
    for group, gone in _gone(groups, cuts):
        for s in group.slices:
            form = forms[s.parameter]
            size = form.shape[s.dim]
            keep = kept.setdefault((s.parameter, s.dim), torch.ones(size, dtype=form.dtype))
            keep[s.positions[gone[s.roots]]] = 0
    masks: dict[str, Tensor] = {}
    for (name, dim), keep in kept.items():
        mask = keep.view([-1 if d == dim else 1 for d in range(forms[name].ndim)])
        masks[name] = masks[name] * mask if name in masks else mask
    return masks


def _gone(groups: Iterable[Group], cuts: Iterable[LayerCut]) -> Iterator[tuple[Group, Tensor]]:
    by_layer = {group.layer: group for group in groups}
    for item in cuts:
        group = by_layer.get(item.layer)
        if group is None or not set(item.channels) <= set(range(group.channels)):
            raise StageError(
                f"expected a cut of one of {len(by_layer)} layers ({some(sorted(by_layer))}) "
                f"within its channels, got {len(item.channels)} of {item.layer}; the plan was "
                "made for another network"
            )
        gone = torch.zeros(group.channels, dtype=torch.bool)
        gone[list(item.channels)] = True
        yield group, gone


def _faithful(model: Classifier, found: list[Group]) -> tuple[Group, ...]:
    """The groups for which cutting equals masking."""
    if _cut_is_mask(model, found):
        return tuple(found)
    good = [group for group in found if _cut_is_mask(model, [group])]
    if not _cut_is_mask(model, good):
        raise StageError(
            "expected cutting to equal masking, got other logits from groups that are fine "
            "one by one; leave pruning out for this architecture"
        )
    return tuple(good)


@torch.no_grad()
def _cut_is_mask(model: Classifier, groups: list[Group]) -> bool:
    # Every third unit but not the first: an index table that is off must show.
    cuts = [LayerCut(g.layer, g.expand(range(1, g.units, 3))) for g in groups]
    example = model.example()
    pixels = torch.linspace(0, 1, example.numel()).view_as(example)
    uncut = model(pixels)
    state = dict(model.named_parameters())
    try:
        own = masked(state, _masks(groups, state, cuts))
        expected = torch.func.functional_call(model, own, (pixels,))
        got = cut(model, cuts)(pixels)
    except (StageError, *UNFIT):
        return False
    if got.shape != expected.shape:
        return False
    tolerance = 1e-3 * (expected - uncut).abs().max() + 1e-5 * expected.abs().max()
    return bool((got - expected).abs().max() <= tolerance)


@contextmanager
def _tracing() -> Iterator[None]:
    """Gradients on: without them torch-pruning finds no graph, prunes nothing and says nothing.

    It warns about what it does not understand and goes on; the trial in ``Groups`` decides. Only
    a search that does not end (torchvision's Swin) must stop at once: it eats all memory.

    Raises:
        StageError: torch-pruning cannot handle the network.
    """
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="Maximum recursive depth")
        try:
            yield
        except UNFIT as error:
            raise StageError(
                f"expected a network that torch-pruning can handle, got {error!r}; "
                "leave pruning out for this architecture"
            ) from error


def _graph(model: Classifier) -> Any:  # noqa: ANN401 - torch-pruning has no types
    """The dependency graph; the model must be in eval mode and its parameters need gradients."""
    import torch_pruning

    return torch_pruning.DependencyGraph().build_dependency(
        model, example_inputs=(model.example(),), verbose=False
    )


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
    slices: list[_Slice] = []
    fold = 1
    for item in raw.items:
        module = item.dep.target.module
        if not isinstance(module, nn.Module):
            return "coupled to a parameter that is no layer's"
        if next(module.parameters(), None) is None:
            continue
        produced = graph.is_out_channel_pruning_fn(item.dep.handler)
        if not _maskable(module):
            return f"coupled to {type(module).__name__}"
        if isinstance(module, nn.Conv1d | nn.Conv2d) and not _depthwise(module):
            fold = max(fold, module.groups)
        slices += _slices(module, names[module], produced, item.idxs, item.root_idxs)
    return Group(names[root], len(raw[0].idxs), fold, tuple(slices))


def _maskable(module: nn.Module) -> bool:
    kinds = (nn.Conv1d, nn.Conv2d, nn.Linear, _BatchNorm, nn.PReLU)
    return isinstance(module, kinds) and not getattr(module, "transposed", False)


def _depthwise(module: nn.Conv1d | nn.Conv2d) -> bool:
    return module.groups == module.out_channels > 1


def _slices(
    module: nn.Module, name: str, produced: bool, positions: list[int], roots: list[int]
) -> list[_Slice]:
    if isinstance(module, nn.PReLU) and module.num_parameters == 1:
        return []
    at, by = torch.tensor(positions), torch.tensor(roots)
    if produced:
        owned = [key for key, _ in module.named_parameters(recurse=False)]
        return [_Slice(f"{name}.{key}", 0, at, by) for key in owned]
    # A grouped convolution holds only the input columns of one group; folded cuts repeat.
    columns = dict(module.named_parameters(recurse=False))["weight"].shape[1]
    return [_Slice(f"{name}.weight", 1, at % columns, by)]


def _norms(weight: Tensor, fold: int) -> Tensor:
    norms = weight.detach().abs().flatten(1).sum(dim=1)
    return norms.view(fold, -1).mean(dim=0)


def _up(value: float) -> int:
    """The next integer; what is above an integer by rounding only counts as that integer."""
    return ceil(value - 1e-9)
