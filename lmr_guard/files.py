# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Files and their digests; a file stands at its place complete, or not at all."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from torch import nn

from lmr_guard.classifier import bare
from lmr_guard.errors import InputError, StageError

__all__ = ["Artifact", "atomic", "require_file", "save_weights", "sha256_of"]


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
    require_file(path)
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
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".part-", delete=False) as file:
            temporary = Path(file.name)
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


def require_file(path: Path) -> None:
    """Raises InputError where there is no regular file."""
    if not path.is_file():
        got = "something else" if path.exists() else "nothing"
        raise InputError(f"expected a file, got {got} at {path}; check the path")


def save_weights(model: nn.Module, path: Path) -> None:
    """Bare weights as safetensors, complete at their place or not at all.

    Args:
        model: A ``Classifier``, of which the network inside is saved as the user holds it, or any
            network.
        path: Replaced where it exists.

    Raises:
        StageError: The file system refused.
    """
    from safetensors.torch import save

    held = bare(model).state_dict()
    weights = {k: v.detach().cpu().clone().contiguous() for k, v in held.items()}
    with atomic(path) as file:
        file.write(save(weights))
