# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Files and their digests; a file stands at its place complete, or not at all.

What is not complete yet lies beside its place under a name that begins with ``PREFIX``, and is
locked. The lock goes with the process, however that ends: what is found unlocked was left behind
by one that was killed, and ``sweep`` removes it.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from lmr_guard.errors import InputError, StageError
from lmr_guard.untrusted import require_regular

if TYPE_CHECKING:
    from torch import nn

__all__ = ["PREFIX", "Artifact", "atomic", "locked", "save_weights", "sha256_of", "sweep"]

PREFIX = ".lmr-guard-part-"


@dataclass(frozen=True, slots=True)
class Artifact:
    """One file as it was when it was digested.

    Args:
        path: Where it lies.
        sha256: Digest of its bytes, lower-case hexadecimal.
        bytes: Its size.
    """

    path: Path
    sha256: str
    bytes: int

    @classmethod
    def of(cls, path: Path) -> "Artifact":
        """The file at ``path`` as it is now.

        Raises:
            InputError: There is no such file.
        """
        return cls(path, sha256_of(path), path.stat().st_size)


def sha256_of(path: Path) -> str:
    """Digest of a file, read in pieces.

    Raises:
        InputError: There is no such regular file, or it cannot be read.
    """
    require_regular(path, "a file")
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"expected a readable file, got {error.strerror}: {path}") from error


@contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that stands at ``path`` complete and on disk, or not at all.

    Raises:
        StageError: The file system refused (disk full, no permission).
    """
    temporary: Path | None = None
    try:
        sweep(path.parent)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=PREFIX, delete=False) as file:
            temporary = Path(file.name)
            _lock(file.fileno())
            yield file
            file.flush()
            os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
    except OSError as error:
        raise StageError(
            f"expected to write {path}, got {error.strerror}; "
            "choose a folder that can be written and has room"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Removes what runs that were killed have left in a folder, and nothing of one at work."""
    for left in folder.glob(f"{PREFIX}*"):
        with suppress(OSError), locked(left) as free:
            if free and left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            elif free:
                left.unlink()


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Holds the lock of a file or folder; whether it could be had, and is still there.

    Raises:
        OSError: It cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    try:
        yield _lock(descriptor) and path.exists()
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Where a system has no such locks, nothing is ever taken for left behind."""
    try:
        import fcntl
    except ImportError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def save_weights(model: "nn.Module", path: Path) -> None:
    """Bare weights as safetensors, complete at their place or not at all.

    Args:
        model: A ``Classifier``, of which the network inside is saved as the user holds it, or any
            network.
        path: Replaced where it exists.

    Raises:
        StageError: The file system refused.
    """
    from safetensors.torch import save

    from lmr_guard.classifier import bare  # Digests are asked for where there is no torch.

    held = bare(model).state_dict()
    weights = {k: v.detach().cpu().clone().contiguous() for k, v in held.items()}
    with atomic(path) as file:
        file.write(save(weights))
