# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Images as people keep them -> bytes in memory.

Lists, archives and tables of images are found by ``sources``. A folder per class has the layout of
torchvision's ``ImageFolder``: the sorted names are the class order, images lie in it at any depth.
Hidden files, what programs leave (see ``leavings``) and files of other kinds are passed over and
counted; an image that does not decode is an error.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from lmr_guard import pictures
from lmr_guard.classifier import Preprocessing
from lmr_guard.contracts import Labelled, Progress, silent
from lmr_guard.errors import ConfigError, InputError, is_text
from lmr_guard.pictures import Picture
from lmr_guard.received.found import listed, numbered, require_counts
from lmr_guard.received.leavings import Passed, is_leaving
from lmr_guard.received.names import named
from lmr_guard.received.oddities import Kind, Oddities
from lmr_guard.received.sources import LAYOUT, found_in
from lmr_guard.untrusted import entries, require_path

__all__ = ["common_size", "read_folder", "read_image", "read_images"]

_SPLITS = frozenset({"eval", "test", "train", "training", "val", "valid", "validation"})
_LOOKED_AT = 20  # of each class, for their size
_PARTS = ("repair", "select", "report")
_AT_ONCE = 256  # images that wait to be decoded, with their bytes


# --- reading ------------------------------------------------------------------------------------


def read_images(
    place: Path,
    preprocessing: Preprocessing,
    *,
    classes: Sequence[str] | None = None,
    expected_classes: int | None = None,
    minimum: int = len(_PARTS),
    progress: Progress = silent,
) -> Labelled:
    """Decode images once, into the size that the network sees, however they are kept.

    Args:
        place: A folder as ``read_folder`` takes it, or what ``sources`` knows.
        preprocessing: Size and channels of the result; the normalisation is not applied.
        classes: Their names in the model's order; None takes them as ``found.numbered`` does.
        expected_classes: K of the model; None takes as many as there are.
        minimum: Images that each class must have at least; 3 are needed for three parts.
        progress: Told of every image.

    Returns:
        All images, in the order in which they are kept; the notes say what was passed over.

    Raises:
        InputError: See ``read_folder`` and the modules that ``sources`` names.
        ConfigError: ``classes`` names one twice, or a package is missing.
    """
    found = found_in(place)
    if found is None:
        return read_folder(
            place,
            preprocessing,
            classes=classes,
            expected_classes=expected_classes,
            minimum=minimum,
            progress=progress,
        )
    names, labels = numbered(found, classes, expected_classes)
    require_counts(found, names, labels, minimum)
    images, notes = _all_decoded(found.pictures(), len(labels), preprocessing, progress)
    return Labelled(images, torch.tensor(labels), names, (*found.notes, *notes))


def read_folder(
    root: Path,
    preprocessing: Preprocessing,
    *,
    classes: Sequence[str] | None = None,
    expected_classes: int | None = None,
    minimum: int = len(_PARTS),
    progress: Progress = silent,
) -> Labelled:
    """Decode a class-per-folder directory once, into the size that the network sees.

    Args:
        root: Holds one folder per class.
        preprocessing: Size and channels of the result; the normalisation is not applied.
        classes: The folder names in the order of the model's classes; None takes them sorted.
        expected_classes: K of the model; None takes as many as there are.
        minimum: Images that each class must have at least; 3 are needed for three parts.
        progress: Told of every image.

    Returns:
        All images, class by class, in the order of their paths; its notes say what was passed over.

    Raises:
        InputError: The layout is another one, a class has too few images, an image does not
            decode, or the result would not fit into memory.
        ConfigError: ``classes`` names one twice.
    """
    passed = Passed()
    names = _class_names(root, classes, expected_classes, passed)
    files = {name: _image_files(root, name, names, passed) for name in names}
    _check_counts(root, files, minimum, passed)
    paths = [path for name in names for path in files[name]]
    labels = torch.tensor([k for k, name in enumerate(names) for _ in files[name]])
    images, notes = _all_decoded(paths, len(paths), preprocessing, progress)
    return Labelled(images, labels.long(), tuple(names), (*passed.notes(), *notes))


def common_size(root: Path, classes: Sequence[str] | None = None) -> tuple[int, int] | None:
    """(rows, columns) of the images of a folder where all that are looked at have the same.

    Args:
        root: See ``read_folder``.
        classes: See ``read_folder``.

    Raises:
        InputError: The layout is another one, or an image does not open.
        ConfigError: ``classes`` names one twice.
    """
    passed, found = Passed(), set[tuple[int, int]]()
    names = _class_names(root, classes, None, passed)
    with pictures.quiet():
        for name in names:
            for path in _image_files(root, name, names, passed)[:_LOOKED_AT]:
                with pictures.opened(path) as image:
                    found.add((image.height, image.width))
    return found.pop() if len(found) == 1 else None


def read_image(path: Path, preprocessing: Preprocessing) -> Tensor:
    """One image as uint8 (C, H, W), as the network sees it before the normalisation.

    An image of the right size is taken as it is. Any other is scaled bilinearly, with
    antialiasing, until its shorter side is ``resize``, and the centre is cut out; without
    ``resize`` it is scaled straight to the size. It is turned as the camera says only where that is
    asked for; 16 bits are cut to 8; transparency is dropped, the colour below it stays, as loaders
    for training do it; of an animation the first frame is taken.

    Args:
        path: A file in one of ``pictures.formats``.
        preprocessing: Size and channels.

    Raises:
        InputError: It does not decode, or has more pixels than ``PIL.Image.MAX_IMAGE_PIXELS``.
    """
    with pictures.quiet():
        return _decode(path, preprocessing)[0]


def _all_decoded(
    found: Iterable[Picture], count: int, preprocessing: Preprocessing, progress: Progress
) -> tuple[Tensor, tuple[str, ...]]:
    """So many images, uint8 (N, C, H, W), and what is odd about them."""
    images, seen = _empty_images(count, preprocessing), Oddities(preprocessing.upright)
    for i, (image, kind) in enumerate(_decoded(found, preprocessing)):
        images[i] = image
        seen.count(image, kind)
        progress("reading images", i + 1, count)
    return images, seen.notes()


def _decoded(
    found: Iterable[Picture], preprocessing: Preprocessing
) -> Iterator[tuple[Tensor, Kind]]:
    workers, waiting = min(16, os.cpu_count() or 1), iter(found)
    with pictures.quiet(), ThreadPoolExecutor(workers) as pool:
        while some := list(islice(waiting, _AT_ONCE)):
            yield from pool.map(lambda picture: _decode(picture, preprocessing), some)


def _decode(picture: Picture, preprocessing: Preprocessing) -> tuple[Tensor, Kind]:
    with pictures.opened(picture) as image:
        kind = Kind.of(image)
        taken = ImageOps.exif_transpose(image) if preprocessing.upright else image
        fitted = _fit(_eight_bit(taken, preprocessing.channels), preprocessing)
    pixels = torch.from_numpy(np.array(fitted))
    return (pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)), kind


def _eight_bit(image: Image.Image, channels: int) -> Image.Image:
    mode = "L" if channels == 1 else "RGB"
    if image.mode == "F":
        raise ValueError("floating-point pixels have no range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        values = np.array(image).astype(np.int64)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError("more than 16 bits a pixel; save it with 8 or 16")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    return image.convert(mode)


def _fit(image: Image.Image, p: Preprocessing) -> Image.Image:
    size = (p.width, p.height)
    if image.size == size:
        return image
    if p.resize is None:
        return image.resize(size, Image.Resampling.BILINEAR)
    short, long = sorted(image.size)
    # torchvision cuts the longer side down; a crop that is larger than the scaled image wins.
    scaled = {short: p.resize, long: int(p.resize * long / short)}
    width, height = (max(scaled[old], new) for old, new in zip(image.size, size, strict=True))
    if width * height > (Image.MAX_IMAGE_PIXELS or width * height):
        raise Image.DecompressionBombError
    left, top = round((width - p.width) / 2), round((height - p.height) / 2)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return resized.crop((left, top, left + p.width, top + p.height))


def _empty_images(count: int, p: Preprocessing) -> Tensor:
    shape = (count, p.channels, p.height, p.width)
    needed = 2 * count * p.channels * p.height * p.width  # the parts are copies
    available = _available_memory()
    if available is not None and needed > available:
        raise InputError(
            f"expected images that fit into memory, got {count} of {p.channels}x{p.height}x"
            f"{p.width}, {needed / 1e9:.1f} GB where {available / 1e9:.1f} GB are free; "
            "give fewer images"
        )
    return torch.empty(shape, dtype=torch.uint8)


def _available_memory() -> int | None:
    """Bytes that can be had without swapping; None where the system does not say."""
    meminfo = Path("/proc/meminfo")
    told = re.search(r"MemAvailable:\s+(\d+)", meminfo.read_text()) if meminfo.exists() else None
    return int(told[1]) * 1024 if told else None


# --- the layout ---------------------------------------------------------------------------------


def _class_names(
    root: Path, classes: Sequence[str] | None, expected: int | None, passed: Passed
) -> list[str]:
    found = _class_folders(root, classes or (), passed)
    names = list(named(classes, found) or found)
    if len(set(names)) < len(names):
        raise ConfigError(f"expected class names that differ, got {listed(names)}")
    if unknown := [name for name in found if name not in names]:
        raise InputError(
            f"expected folders named after the classes {listed(names)}, got {listed(unknown)} "
            f"in {str(root)!r}"
        )
    if expected is not None and len(names) != expected:
        raise InputError(
            f"expected {expected} class folders, one for each class of the model, got "
            f"{len(names)} in {str(root)!r}: {listed(names)}"
        )
    if len(names) < 2:
        raise InputError(
            f"expected at least two class folders, got {listed(names)} in {str(root)!r}"
        )
    return names


def _class_folders(root: Path, classes: Sequence[str], passed: Passed) -> list[str]:
    require_path(root, LAYOUT)
    if not root.is_dir():
        instead = "a file" if root.exists() else "no such folder"
        raise InputError(
            f"{LAYOUT}, got {instead}: {str(root)!r}; a list of images is called .csv, .tsv or "
            ".jsonl, an archive .tar, a table .parquet"
        )
    visible = [entry for entry in entries(root) if not entry.name.startswith(".")]
    found = []
    for folder in (entry for entry in visible if entry.is_dir()):
        if is_leaving(folder) and folder.name not in classes:
            passed.leaving(folder)
        else:
            found.append(folder.name)
    found.sort()
    if odd := [name for name in found if not is_text(name)]:
        raise InputError(
            f"expected class folders with names in UTF-8, got {odd[0]!r} in {str(root)!r}; "
            "rename it"
        )
    if not found:
        raise InputError(
            f"{LAYOUT}, got {len(visible)} files and no folder in {str(root)!r}; put every image "
            "into a folder named after its class"
        )
    if _SPLITS.issuperset(name.lower() for name in found) and any(
        e.is_dir() for n in found for e in entries(root / n)
    ):
        raise InputError(
            f"{LAYOUT}, got the parts {listed(found)} in {str(root)!r}; give one of them, "
            f"such as {str(root / found[0])!r}"
        )
    return found


def _image_files(root: Path, name: str, names: Sequence[str], passed: Passed) -> list[Path]:
    """Every image of a class; links are followed, but not to where they came from."""
    start = root / name
    if not start.is_dir():
        return []
    known = pictures.endings()
    top = root.resolve()
    seen = {top, *top.parents, *((root / other).resolve() for other in names)}
    found, waiting = [], [start]
    while waiting:
        for entry in entries(waiting.pop()):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                if is_leaving(entry):
                    passed.leaving(entry)
                elif (real := entry.resolve()) not in seen:
                    seen.add(real)
                    waiting.append(entry)
            elif is_leaving(entry):
                passed.leaving(entry)
            elif entry.suffix.lower() in known:
                found.append(entry)
            else:
                passed.unread(entry)
    return sorted(found)


def _check_counts(
    root: Path, files: Mapping[str, Sequence[Path]], minimum: int, passed: Passed
) -> None:
    few = [f"{name}: {len(paths)}" for name, paths in files.items() if len(paths) < minimum]
    if few:
        raise InputError(
            f"expected at least {minimum} images in every class, got {listed(few)} in "
            f"{str(root)!r}; "
            + (" ".join(passed.notes()) or "files with other endings than an image's do not count")
        )
