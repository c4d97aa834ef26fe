# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Which entries of which parameters go with a channel: masks and cuts follow from the same table.

What finds the tables may be wrong about a network, so ``groups`` tries each one: a copy that was
cut by it must put out what a copy that was masked by it puts out.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lmr_guard.classifier import Classifier
from lmr_guard.errors import StageError, some

__all__ = ["Group", "LayerCut", "Slice", "cut", "depthwise", "maskable", "masks", "slices"]


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
class Slice:
    """Along ``dim`` of a tensor, entry ``positions[i]`` lives by root channel ``roots[i]``.

    Args:
        layer: Qualified name of the layer that holds the tensor.
        tensor: Its name in there.
        dim: 0 where the layer puts the channel out, 1 where it takes it in.
        positions: int64, shape (entries,).
        roots: int64, of the same shape.
        learnt: Whether it is a parameter; a batch norm's statistics are none, and need no mask.
    """

    layer: str
    tensor: str
    dim: int
    positions: Tensor
    roots: Tensor
    learnt: bool = True

    @property
    def name(self) -> str:
        """Of the tensor in the classifier."""
        return f"{self.layer}.{self.tensor}"


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Channels that can only go together, named by the root layer that ranks them.

    Args:
        layer: The root: a convolution or linear layer.
        channels: Its output channels.
        fold: How many channels form one unit: a grouped convolution must lose the same
            channels of each of its groups. 1 elsewhere.
        slices: Every entry that goes with a channel.
    """

    layer: str
    channels: int
    fold: int
    slices: tuple[Slice, ...]

    @property
    def units(self) -> int:
        """What can be cut one by one."""
        return self.channels // self.fold

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the weights that put the channels out."""
        return tuple(s.name for s in self.slices if s.dim == 0 and s.tensor == "weight")

    def expand(self, units: Sequence[int]) -> tuple[int, ...]:
        """The channels of these units, ascending."""
        return tuple(sorted(u + block * self.units for block in range(self.fold) for u in units))


def maskable(module: nn.Module) -> bool:
    """Whether zeros in its parameters do what cutting it does; not so in a layer norm."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.Linear, _BatchNorm, nn.PReLU)
    return isinstance(module, kinds) and not getattr(module, "transposed", False)


def depthwise(module: nn.Conv1d | nn.Conv2d) -> bool:
    """Whether each channel that goes out has a group of its own."""
    return module.groups == module.out_channels > 1


def slices(
    module: nn.Module, name: str, produced: bool, positions: Tensor, roots: Tensor
) -> list[Slice]:
    """What of one ``maskable`` layer goes with root channels.

    Args:
        module: The layer.
        name: Its qualified name.
        produced: Whether it puts these channels out, or takes them in.
        positions: Its own channels, int64.
        roots: The root channel by which each of them lives, of the same shape.
    """
    if isinstance(module, nn.PReLU) and module.num_parameters == 1:
        return []
    if produced:
        owned = [key for key, _ in module.named_parameters(recurse=False)]
        kept = module.named_buffers(recurse=False) if isinstance(module, _BatchNorm) else ()
        told = [key for key, value in kept if value.ndim]
        return [
            Slice(name, key, 0, positions, roots, learnt=key in owned) for key in (*owned, *told)
        ]
    # A grouped convolution holds only the input columns of one group; folded cuts repeat.
    columns = dict(module.named_parameters(recurse=False))["weight"].shape[1]
    return [Slice(name, "weight", 1, positions % columns, roots)]


def masks(
    groups: Iterable[Group], forms: Mapping[str, Tensor], cuts: Iterable[LayerCut]
) -> dict[str, Tensor]:
    """Parameter name to a 0/1 mask that broadcasts to it, on the CPU; only what loses something.

    Args:
        groups: Of the network.
        forms: Tensors of the shapes and dtypes of its parameters.
        cuts: What goes.

    Raises:
        StageError: A cut names a layer that is no root, or a channel that it has not.
    """
    found: dict[str, Tensor] = {}
    for (layer, tensor, dim), gone in _gone(groups, cuts, learnt=True).items():
        form = forms[f"{layer}.{tensor}"]
        keep = torch.ones(form.shape[dim], dtype=form.dtype)
        keep[gone] = 0
        mask = keep.view([-1 if d == dim else 1 for d in range(form.ndim)])
        name = f"{layer}.{tensor}"
        found[name] = found[name] * mask if name in found else mask
    return found


def cut(classifier: Classifier, groups: Iterable[Group], cuts: Iterable[LayerCut]) -> Classifier:
    """A copy whose channels are really gone; whether it computes is for the caller to see.

    Raises:
        StageError: As for ``masks``.
    """
    model = classifier.clone()
    touched = set()
    for (layer, tensor, dim), gone in _gone(groups, cuts).items():
        module = model.get_submodule(layer)
        held = getattr(module, tensor)
        keep = torch.ones(held.shape[dim], dtype=torch.bool)
        keep[gone] = False
        left = held.detach().index_select(dim, keep.nonzero().flatten().to(held.device))
        if isinstance(held, nn.Parameter):
            left = nn.Parameter(left, requires_grad=held.requires_grad)
        setattr(module, tensor, left)
        touched.add(module)
    for module in touched:
        _say_sizes(module)
    return model


def _say_sizes(module: nn.Module) -> None:
    """A layer's own record of its channels, which its ``forward`` or an exporter may read."""
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        if depthwise(module):
            module.groups = len(module.weight)
        module.out_channels = len(module.weight)
        module.in_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _BatchNorm):
        # Weights or statistics: either may be switched off.
        held = (*module.parameters(), *module.buffers())
        module.num_features = max(len(value) for value in held if value.ndim)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)


def _gone(
    groups: Iterable[Group], cuts: Iterable[LayerCut], *, learnt: bool = False
) -> dict[tuple[str, str, int], Tensor]:
    """Layer, tensor and dimension to the positions that go, as they were before any went."""
    found: dict[tuple[str, str, int], Tensor] = {}
    for group, gone in _by_group(groups, cuts):
        for s in group.slices:
            if s.learnt or not learnt:
                key, at = (s.layer, s.tensor, s.dim), s.positions[gone[s.roots]]
                found[key] = torch.cat([found[key], at]) if key in found else at
    return found


def _by_group(groups: Iterable[Group], cuts: Iterable[LayerCut]) -> Iterator[tuple[Group, Tensor]]:
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
