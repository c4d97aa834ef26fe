# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Weights that are computed from others at each pass become plain weights, once, when received.

``weight_norm``, ``spectral_norm``, the masks of ``torch.nn.utils.prune`` and every parametrisation
of ``torch.nn.utils.parametrize`` put a weight together before each pass. Whoever looks for a
layer's weight, cuts or rounds it would look in vain, and the older ones can be neither copied
after a pass nor exported.
"""

from collections.abc import Iterator

from torch import nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from lmr_guard.errors import some

__all__ = ["fuse", "note", "originals"]

# What a layer's weight is kept as, by the older functions and by the newer ones.
_ORIGINALS = (
    "weight_v",
    "weight_orig",
    "parametrizations.weight.original1",
    "parametrizations.weight.original",
)


def fuse(network: nn.Module) -> tuple[str, ...]:
    """Make plain weights of computed ones, in place; in eval mode it computes what it did.

    Args:
        network: In eval mode, so that nothing is estimated anew.

    Returns:
        Names of the weights that were computed.
    """
    fused = []
    for path, module in list(network.named_modules()):
        for name in list(_computed(module)):
            fused.append(f"{path}.{name}".removeprefix("."))
    return tuple(fused)


def note(fused: tuple[str, ...]) -> str:
    """What a reader must know of it."""
    return (
        f"{len(fused)} weights that are computed from others at each pass ({some(fused)}) were "
        "made plain: weights that are written hold them under their plain names."
    )


def originals(layer: str) -> tuple[str, ...]:
    """Names under which a checkpoint may hold the weight of a layer, or one of its shape.

    >>> originals("head")[:3]
    ('head.weight', 'head.weight_v', 'head.weight_orig')
    """
    return tuple(f"{layer}.{name}" for name in ("weight", *_ORIGINALS))


def _computed(module: nn.Module) -> Iterator[str]:
    """Fuses what one module computes, and names it."""
    for hook in list(module._forward_pre_hooks.values()):
        if isinstance(hook, WeightNorm):
            remove_weight_norm(module, hook.name)
            yield hook.name
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(module, hook.name)
            yield hook.name
        elif isinstance(hook, prune.BasePruningMethod):
            name: str = hook._tensor_name
            prune.remove(module, name)
            yield name
    if parametrize.is_parametrized(module):
        # A copy shares its class, made for it alone, with what it was copied from.
        shared = type(module)
        own = {k: v for k, v in vars(shared).items() if k not in {"__dict__", "__weakref__"}}
        module.__class__ = type(shared.__name__, shared.__bases__, own)
        for name in list(module.parametrizations):  # type: ignore[arg-type]
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)
            yield name
