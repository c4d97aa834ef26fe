# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Images that a list, an archive or a table names, before any of them is decoded."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmr_guard.errors import ConfigError, InputError, printable
from lmr_guard.pictures import Picture
from lmr_guard.received.names import named

__all__ = ["Found", "listed", "numbered", "parts_of", "require_counts"]

_WHOLE = re.compile(r"([0-9]{1,9})(\.0+)?")  # pandas writes whole numbers beside a gap as 3.0
_PART = re.compile(r"(?P<name>.*?)[-_.]?(\d+-of-(?P<count>\d+)(-[0-9a-f]{8,})?|\d+)")


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """Images and what each is said to be.

    Args:
        where: What they were found in, for messages, such as ``the list 'labels.csv'``.
        labels: Of each image, as written: the name of a class, or its index from 0.
        pictures: The images in the order of ``labels``; each call starts anew.
        classes: Names in the order that the place itself tells; ``labels`` are of these then.
        notes: What a reader must know, one sentence each.
    """

    where: str
    labels: Sequence[str]
    pictures: Callable[[], Iterable[Picture]]
    classes: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


def numbered(
    found: Found, classes: Sequence[str] | None, expected: int | None
) -> tuple[tuple[str, ...], list[int]]:
    """Names of the classes in the model's order, and the class of each image.

    Labels that are all names of classes are taken so. Otherwise, where all are whole numbers, they
    are indices from 0. Without any order, names are sorted, as those of folders are.

    Args:
        found: At least one image.
        classes: Names in the model's order, where the user gives it.
        expected: K of the model; None takes as many as there are.

    Raises:
        InputError: A label is of no class, there are not as many classes as expected, or the place
            itself names one twice.
        ConfigError: ``classes`` names one twice.
    """
    written = set(found.labels)
    own = named(classes, written)
    names = own or found.classes
    if names is not None and len(set(names)) < len(names):
        told = f"expected class names that differ, got {listed(names)}"
        raise ConfigError(told) if own else InputError(f"{told} in {found.where}")
    numbers = {label: int(m[1]) for label in written if (m := _WHOLE.fullmatch(label))}
    if names is None and len(numbers) == len(written):
        names = _indices(found, numbers.values(), expected)
    names = tuple(sorted(written)) if names is None else tuple(names)
    _require_classes(found, names, expected)
    index = {name: k for k, name in enumerate(names)}
    if not written <= index.keys():
        index = _as_indices(found, names, numbers)
    return names, [index[label] for label in found.labels]


def _indices(found: Found, numbers: Iterable[int], expected: int | None) -> tuple[str, ...]:
    most = max(numbers)
    count = expected or most + 1
    if most >= count or most >= len(found.labels):
        of = f"0 to {count - 1}" if expected else "counted from 0 without large gaps"
        raise InputError(f"expected labels {of}, got {most} in {found.where}")
    return tuple(str(index) for index in range(count))


def _as_indices(found: Found, names: Sequence[str], numbers: dict[str, int]) -> dict[str, int]:
    """Each label as a whole number, where not all of them are names."""
    unknown = sorted({label for label in found.labels if label not in names})
    if len(numbers) < len(set(found.labels)):
        raise InputError(
            f"expected labels that are classes, {listed(names)}, got {listed(unknown)} in "
            f"{found.where}"
        )
    if max(numbers.values()) >= len(names):
        raise InputError(
            f"expected labels 0 to {len(names) - 1}, got {max(numbers.values())} in {found.where}; "
            "count from 0"
        )
    return numbers


def _require_classes(found: Found, names: Sequence[str], expected: int | None) -> None:
    if expected is not None and len(names) != expected:
        raise InputError(
            f"expected {expected} classes, as the model has, got {len(names)} in {found.where}: "
            f"{listed(names)}; where some have no image, name all with --classes"
        )
    if len(names) < 2:
        raise InputError(f"expected at least two classes, got {listed(names)} in {found.where}")


def require_counts(found: Found, names: Sequence[str], labels: Iterable[int], minimum: int) -> None:
    """Raises InputError where a class has fewer than ``minimum`` images."""
    counts = Counter(labels)
    few = [f"{name}: {counts[k]}" for k, name in enumerate(names) if counts[k] < minimum]
    if few:
        raise InputError(
            f"expected at least {minimum} images in every class, got {listed(few)} in {found.where}"
        )


def listed(names: Sequence[str]) -> str:
    """Names as they can be shown in one line, whatever stands in them."""
    shown = [printable(name) for name in names]
    return ", ".join(shown[:10]) + (f" and {len(shown) - 10} more" if len(shown) > 10 else "")


# --- a set of images in several files -----------------------------------------------------------


def parts_of(place: Path, ending: str) -> list[Path]:
    """The files that belong together: those of a folder, or all of which one file is a part.

    A file called ``NAME-00001-of-00003`` stands for all three; any other for itself.

    Args:
        place: A folder, or a file in it.
        ending: Of the files, such as ``.tar``.

    Raises:
        InputError: Files of several sets, such as train and test; or one that is missing.
    """
    beside = place if place.is_dir() else place.parent
    files = sorted(f for f in beside.glob("*") if f.suffix.lower() == ending and f.name[0] != ".")
    if place != beside:
        told = _PART.fullmatch(place.stem)
        if told is None or told["count"] is None:
            return [place]
        files = [f for f in files if _set(f) == _set(place)]
    sets = sorted({_set(file) for file in files})
    if len(sets) > 1:
        raise InputError(
            f"expected one set of images, got {listed([s or 'one without a name' for s in sets])} "
            f"in {str(beside)!r}; give a file of one, such as {str(files[0])!r}, or move the others"
        )
    parts = [_PART.fullmatch(file.stem) for file in files]
    counts = {int(part["count"]) for part in parts if part and part["count"]}
    if counts and counts != {len(files)}:
        raise InputError(
            f"expected all {max(counts)} parts of the images, got {len(files)} in {str(beside)!r}"
        )
    return files


def _set(file: Path) -> str:
    part = _PART.fullmatch(file.stem)
    return part["name"] if part else file.stem
