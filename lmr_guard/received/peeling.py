# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Which part of a state dict belongs to a network, where training has put more around it.

Training frameworks keep the network under a name of their own beside losses, metrics and averages;
compilers and parallel wrappers put theirs in the middle of names. What belongs is told by the names
of the network alone; whether it fits, strict loading decides afterwards.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Mapping

from torch import Tensor

from lmr_guard.errors import InputError, some

__all__ = ["left_out", "peeled", "without_prefix"]

# What wrappers call the module that they wrap, anywhere in a name.
_WRAPPERS: tuple[str, ...] = (
    "_orig_mod",
    "module",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
    "_dp_wrapped_module",
)
_LEAST = 0.5  # of the network's names


def peeled(
    weights: Mapping[str, Tensor], names: Collection[str]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The weights under the prefix that most of the network's names are found under.

    Args:
        weights: A state dict; its ``_metadata``, where it has some, is peeled too.
        names: Of the network's own state dict.

    Returns:
        The weights without the prefix, and the names of those that do not lie under it.

    Raises:
        InputError: More than one prefix holds all that the network needs.

    >>> found, left = peeled({"net.a": 1, "net.b": 2, "loss.weight": 3}, ["a", "b"])
    >>> dict(found), left
    ({'a': 1, 'b': 2}, ('loss.weight',))
    """
    named = _unwrapped(weights, names)
    own, under = frozenset(names), Counter[str]()
    for name in named:
        parts = name.split(".")
        under.update(
            "".join(f"{part}." for part in parts[:i])
            for i in range(len(parts))
            if ".".join(parts[i:]) in own
        )
    needed = sum(not name.endswith(".num_batches_tracked") for name in own)
    whole = sorted(prefix for prefix, count in under.items() if count >= needed)
    prefix, count = max(under.items(), key=lambda item: item[1], default=("", 0))
    if "" in whole or count < _LEAST * len(own) or under[""] == count:
        prefix = ""
    elif len(whole) > 1:
        raise InputError(
            f"expected one set of weights, got {some(whole)}, each with all that the network "
            "needs; keep the one that is meant"
        )
    plain = OrderedDict((new, weights[old]) for new, old in named.items())
    _keep_versions(weights, plain, _without_wrappers if named.keys() != weights.keys() else str)
    left = tuple(old for new, old in named.items() if not new.startswith(prefix))
    return without_prefix(plain, prefix), left


def without_prefix(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """What lies under a prefix, without it, and the versions of its modules."""
    kept = OrderedDict(
        (name.removeprefix(prefix), value)
        for name, value in weights.items()
        if name.startswith(prefix)
    )
    _keep_versions(weights, kept, lambda name: f"{name}.".removeprefix(prefix).removesuffix("."))
    return kept


def left_out(names: tuple[str, ...]) -> str:
    """What a reader must know of what was not loaded."""
    return f"{len(names)} entries of the checkpoint are no weights of the network: {some(names)}."


def _unwrapped(weights: Mapping[str, Tensor], names: Collection[str]) -> dict[str, str]:
    """Names without what wrappers put into them, to the stored ones; as stored where two meet."""
    parts = {part for name in names for part in name.split(".")}
    gone = set(_WRAPPERS) - parts
    short = {_without(name, gone): name for name in weights}
    return short if len(short) == len(weights) else {name: name for name in weights}


def _without(name: str, gone: set[str]) -> str:
    first, *rest = name.split(".")  # what stands first is a prefix like any other
    return ".".join([first, *(part for part in rest if part not in gone)])


def _without_wrappers(name: str) -> str:
    return _without(name, set(_WRAPPERS))


def _keep_versions(weights: object, kept: object, renamed: Callable[[str], str]) -> None:
    """The versions of modules that torch stores beside weights, under their new names."""
    held = getattr(weights, "_metadata", None)
    if held is not None:
        kept._metadata = {renamed(name): told for name, told in held.items()}  # type: ignore[attr-defined]
