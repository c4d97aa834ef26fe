# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""One digest over all that decides a run: settings, model, images, triggers, policy, versions."""

import hashlib
import importlib.metadata
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import PathFinder
from pathlib import Path

from lmr_guard.files import sha256_of
from lmr_guard.received.converted import is_onnx
from lmr_guard.received.shards import indexed
from lmr_guard.release.formats.shared import digests
from lmr_guard.untrusted import entries, require_path

__all__ = ["Digests", "code"]

_PACKAGES = (
    *("lmr-guard", "torch", "torchvision", "timm", "torch-pruning", "onnx2torch"),
    *("onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu"),
)
_LIBRARIES = ("torchvision", "timm")


class Digests:
    """Digests of paths, each read once; a new one reads again."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, Path], str] = {}

    def of(self, words: Sequence[str], files: Mapping[str, Path]) -> str:
        """The digest of a run, in lower-case hexadecimal.

        Args:
            words: Its arguments.
            files: By name, all that it reads: regular files, folders of images, and code. What
                is called ``model`` counts with the files that hold its data.

        Raises:
            InputError: A file is missing or cannot be read, or a model is none.
        """
        held = {name: self._path(name.partition(" ")[0], path) for name, path in files.items()}
        return _of({"versions": _versions(), "words": list(words), "files": held})

    def _path(self, kind: str, path: Path) -> str:
        # Of the same path something else counts as a model than as a picture.
        key = (kind, path)
        if key not in self._held:
            self._held[key] = _KINDS.get(kind, _any)(path)
        return self._held[key]


def code(arch: str | None, folder: Path) -> Path | None:
    """Where the package or module lies that an architecture of the user's own comes from.

    Args:
        arch: As ``--arch`` takes it.
        folder: Where a run looks first.

    Returns:
        A file, or the folder of a package; None for a library's, and where there is none.
    """
    library = (arch or "").partition(":")[0]
    if not library or library in _LIBRARIES:
        return None
    # Of the folder that this process was started from, a unit knows nothing.
    known = [entry for entry in sys.path if entry and Path(entry) != Path.cwd()]
    spec = PathFinder.find_spec(library.split(".")[0], [str(folder), *known])
    if spec is None or spec.origin is None:
        return None  # The run will say so.
    origin = Path(spec.origin)
    return origin if spec.submodule_search_locations is None else origin.parent


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _model(path: Path) -> str:
    """Of a model with the files that hold its data."""
    own = sha256_of(path)
    if is_onnx(path):
        return _of({"": own, **digests(path)})
    others = indexed(path) or ()
    return _of({"": own, **{name: sha256_of(path.parent / name) for name in others}})


def _any(path: Path) -> str:
    require_path(path, "a file or a folder")
    if not path.is_dir():
        return sha256_of(path)
    return _of({str(each.relative_to(path)): sha256_of(each) for each in _inside(path)})


def _code(path: Path) -> str:
    if not path.is_dir():
        return sha256_of(path)
    sources = sorted(path.rglob("*.py"))
    return _of({str(each.relative_to(path)): sha256_of(each) for each in sources})


def _inside(folder: Path) -> Iterator[Path]:
    """Every regular file; links are followed, but not to where they came from."""
    waiting, seen = [folder], {folder.resolve()}
    while waiting:
        for entry in sorted(entries(waiting.pop())):
            if entry.is_file():
                yield entry
            elif entry.is_dir() and (real := entry.resolve()) not in seen:
                seen.add(real)
                waiting.append(entry)


def _of(content: object) -> str:
    # Names of files may hold bytes that are no UTF-8.
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


_KINDS = {"code": _code, "model": _model}
