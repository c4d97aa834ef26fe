# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Which architecture of torchvision or timm a state dict belongs to, told by names and shapes.

Candidates are built without memory for their weights. Names and shapes do not tell everything: two
architectures may differ in a stride alone. So all that fit are named; clean images decide.
"""

import functools
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lmr_guard.contracts import Progress, silent
from lmr_guard.errors import GuardError
from lmr_guard.received.architectures import NORMALISED_TWICE, Architecture, build_network
from lmr_guard.received.peeling import peeled

__all__ = ["fitting", "outline"]

_ODD = 977  # K of candidates: a size that nothing else has, which tells what the head is
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
_POSITIONS = ("pos_embed", "pos_embedding")  # as many as the image has patches
_SHARED = 0.8  # of the names of the first modules, for a family to be built as a whole
_PUBLISHED = 224  # rows and columns that they are built for
_COUNTER = ".num_batches_tracked"
_FILLING = {
    getattr(Tensor, f"{name}_")
    for name in ("add", "clamp", "div", "erfinv", "fill", "mul", "normal", "sub", "uniform", "zero")
}


def _fills(func: Any) -> bool:  # noqa: ANN401 - torch's
    """Whether a function gives its first argument other values, and no other shape."""
    return getattr(func, "__module__", None) == "torch.nn.init" or func in _FILLING


class _Weightless(TorchFunctionMode):
    """Layers made inside have shapes and no values; what else torch computes it computes."""

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401 - torch's
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """As torch has it, but for ``torch.empty``, which layers take their weights from.

        What would fill weights leaves them alone: torch takes longer to fill a tensor without
        values than to build its layer.
        """
        del types
        if args and _fills(func) and isinstance(args[0], Tensor) and args[0].is_meta:
            return args[0]
        options = dict(kwargs or {})
        if func is torch.empty and options.get("device") is None:
            options["device"] = "meta"
        return func(*args, **options)


@functools.cache
def outline(name: str) -> dict[str, tuple[int, ...]] | None:
    """Names and shapes of the weights of an architecture; None where it cannot be built so.

    Args:
        name: ``torchvision:NAME`` or ``timm:NAME``. Of the head one dimension is 977.
    """
    from torchvision import models

    kind, own = name.split(":")
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), _Weightless():
            warnings.simplefilter("ignore")
            if kind == "timm":
                import timm

                network = timm.create_model(own, pretrained=False, num_classes=_ODD)
            elif own in NORMALISED_TWICE:
                network = models.get_model(
                    own, weights=None, num_classes=_ODD, init_weights=False, aux_logits=False
                )
            else:
                network = models.get_model(own, weights=None, num_classes=_ODD)
    except Exception:  # noqa: BLE001 - some compute with weights that are not there yet
        return None
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}


def fitting(weights: Mapping[str, Tensor], progress: Progress = silent) -> list[Architecture]:
    """All architectures whose weights have these names and shapes.

    Those of timm are looked at where torchvision has none, and timm is installed.

    Args:
        weights: What ``checkpoint.read_weights`` gave.
        progress: Told of every candidate.

    Returns:
        With the stem where the weights tell it. A first layer of 3x3 may belong to both stems
        where the native one has that size too: then both are named.
    """
    from torchvision import models

    known = [f"torchvision:{name}" for name in models.list_models(module=models)]
    return list(_fitting(known, weights, progress)) or list(
        _fitting(_of_timm(weights, progress), weights, progress)
    )


def _fitting(
    names: Iterable[str], weights: Mapping[str, Tensor], progress: Progress
) -> Iterator[Architecture]:
    candidates = list(names)
    for done, name in enumerate(candidates, start=1):
        progress("comparing architectures", done, len(candidates))
        own = outline(name)
        held = None if own is None else _matched(own, weights)
        if own is not None and held is not None:
            yield from _with_stems(Architecture(name), own, held)


def _of_timm(weights: Mapping[str, Tensor], progress: Progress) -> Iterator[str]:
    """All architectures of the modules whose smallest name has first modules called so."""
    try:
        import timm
    except ImportError:
        return
    parts = {part for name in weights for part in name.split(".")}
    modules = timm.list_modules()
    for done, module in enumerate(modules, start=1):
        progress("comparing families", done, len(modules))
        names = sorted(timm.list_models(module=module), key=lambda name: (len(name), name))
        shown = outline(f"timm:{names[0]}") if names else None
        first = {name.split(".")[0] for name in shown or ()}
        if shown is None or len(first & parts) >= _SHARED * len(first):
            yield from (f"timm:{name}" for name in names)


def _matched(
    own: Mapping[str, tuple[int, ...]], weights: Mapping[str, Tensor]
) -> Mapping[str, Tensor] | None:
    """The weights under the names of an architecture; None where they are not its own."""
    if len(weights) < sum(not name.endswith(_COUNTER) for name in own):
        return None
    try:
        held, _ = peeled(weights, tuple(own))
    except GuardError:  # Several sets fit: which one, loading asks.
        return None
    missing = [name for name in own if name not in held and not name.endswith(_COUNTER)]
    foreign = [name for name in held if name not in own and not name.startswith(_AUXILIARY)]
    if missing or foreign:
        return None
    first = _first(own)
    others = (name for name in own if name in held and name != first)
    return held if all(_alike(name, own[name], held[name]) for name in others) else None


def _first(own: Mapping[str, tuple[int, ...]]) -> str | None:
    """The first convolution, which differs with channels and stem."""
    return next((name for name, shape in own.items() if len(shape) == 4), None)


def _alike(name: str, shape: tuple[int, ...], held: Tensor) -> bool:
    if name.endswith(_POSITIONS):
        return held.ndim == len(shape) and held.shape[-1] == shape[-1]
    return held.ndim == len(shape) and all(
        wanted in {_ODD, got} for wanted, got in zip(shape, held.shape, strict=True)
    )


def _with_stems(
    found: Architecture, own: Mapping[str, tuple[int, ...]], held: Mapping[str, Tensor]
) -> Iterator[Architecture]:
    """The architecture with each stem that the first convolution may belong to."""
    first = _first(own)
    if first is None:
        yield found
        return
    native, got = own[first], tuple(held[first].shape)
    if len(got) != 4 or got[0] != native[0] or got[1] not in {1, native[1]}:
        return
    if got[2:] == native[2:]:
        yield _of_size(found, held)
    if got[2:] == (3, 3) and _has_small_stem(found):
        yield replace(found, stem="cifar")


def _has_small_stem(found: Architecture) -> bool:
    """Whether there is a usual stem for small images. Costs a network."""
    try:
        with torch.random.fork_rng(devices=[]):
            build_network(replace(found, stem="cifar"), {}, 2)
    except GuardError:
        return False
    return True


def _of_size(found: Architecture, held: Mapping[str, Tensor]) -> Architecture:
    """The input size of torchvision's vision transformers, by their position embeddings."""
    kind, name = found.source
    patch = re.match(r"vit_\w+?_(\d+)$", name)
    positions = held.get("encoder.pos_embedding")
    if kind != "torchvision" or patch is None or positions is None:
        return found
    side = math.isqrt(positions.shape[1] - 1)
    size = side * int(patch[1])
    fits = side * side == positions.shape[1] - 1 and size != _PUBLISHED
    return replace(found, input_size=(3, size, size)) if fits else found
