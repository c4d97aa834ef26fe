# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The names of a model's classes, in the order of its head, in the files that people keep."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from lmr_guard.errors import ConfigError, described, is_text, printable
from lmr_guard.untrusted import LARGEST_SETTINGS, read_bytes, shown

__all__ = ["ClassNames", "named", "read_classes", "told_by_model"]


class ClassNames(tuple[str, ...]):
    """Names in the order of the head, and what else each class is called.

    Attributes:
        others: More sequences of names in the same order, as ``tench`` beside ``n01440764``.
        told_by_model: Whether the model's own files name them, so that images may bear others.
    """

    others: tuple[tuple[str, ...], ...] = ()
    told_by_model: bool = False


def told_by_model(names: Sequence[str] | None) -> ClassNames | None:
    """Names from the model's own files; images may bear others."""
    if names is None:
        return None
    told = ClassNames(names)
    told.told_by_model = True
    return told


def named(classes: Sequence[str] | None, written: Collection[str]) -> tuple[str, ...] | None:
    """The names that the images are labelled with: of several the first that has all of them.

    None where there are none, or where only the model told some and the images bear others.

    >>> names = ClassNames(["n0144", "n0148"])
    >>> names.others = (("tench", "shark"),)
    >>> named(names, {"shark"}), named(names, {"n0148"}), named(names, {"cat"})
    (('tench', 'shark'), ('n0144', 'n0148'), ('n0144', 'n0148'))
    """
    if classes is None:
        return None
    several = classes if isinstance(classes, ClassNames) else ClassNames(classes)
    every = (tuple(several), *several.others)
    found = next((names for names in every if set(written) <= set(names)), None)
    return found or (None if several.told_by_model else every[0])


def read_classes(path: Path) -> ClassNames:
    """Class names from a JSON file.

    It holds a list of names; or a mapping of indices from 0 to names, or of names to indices; in
    place of a name there may be a list of several, as ``{"0": ["n01440764", "tench"]}``.

    Args:
        path: At most 1 MB of JSON in UTF-8.

    Raises:
        ConfigError: It does not read, or an index is missing or there twice.
    """
    text = read_bytes(path, "a file of class names", LARGEST_SETTINGS, error=ConfigError)
    try:
        held = json.loads(text.decode("utf-8-sig"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"expected class names as JSON, got a file that does not read: {shown(path)}"
        ) from error
    entries = [_called(entry, path) for entry in _in_order(held, path)]
    if not entries or len({len(entry) for entry in entries}) != 1:
        got = "none" if not entries else "more for some than for others"
        raise ConfigError(f"expected as many names for each class, got {got}: {shown(path)}")
    columns = list(zip(*entries, strict=True))
    # Names that are not all different tell no class; there must be others then.
    unlike = [column for column in columns if len(set(column)) == len(column)]
    if not unlike:
        raise ConfigError(f"expected class names that differ, got one twice: {shown(path)}")
    names = ClassNames(unlike[0])
    names.others = tuple(unlike[1:])
    return names


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name twice")
    return dict(pairs)


def _in_order(held: Any, path: Path) -> list[Any]:  # noqa: ANN401  # The file's.
    if isinstance(held, list):
        return held
    if not isinstance(held, dict):
        raise ConfigError(
            f"expected a list of class names or a mapping with indices, got {described(held)}: "
            f"{shown(path)}"
        )
    if all(type(value) is int for value in held.values()):
        found = {index: name for name, index in held.items()}
    elif all(key.isdecimal() and len(key) < 10 for key in held):
        found = {int(key): value for key, value in held.items()}
    else:
        found = {}
    if sorted(found) != list(range(len(held))):
        raise ConfigError(
            f"expected each index from 0 to {len(held) - 1} once, beside its name, got others: "
            f"{shown(path)}"
        )
    return [found[index] for index in range(len(held))]


def _called(entry: Any, path: Path) -> tuple[str, ...]:  # noqa: ANN401  # The file's.
    several = entry if isinstance(entry, list) else [entry]
    if not several or not all(isinstance(each, str) and each.strip() for each in several):
        raise ConfigError(
            f"expected a name for each class, got {printable(str(entry)[:80])}: {shown(path)}"
        )
    if not all(is_text(each) for each in several):
        raise ConfigError(f"expected class names in UTF-8, got others: {shown(path)}")
    return tuple(several)
