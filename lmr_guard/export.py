# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Stages in private and publishes only the very bytes that a passing verdict is about."""

import errno
import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lmr_guard.artifact import Artifact, atomic
from lmr_guard.contracts import Outcome, Verdict
from lmr_guard.errors import ConfigError, ExportRefused, InputError, StageError

__all__ = ["disk_full", "finish", "publish", "staging"]

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_REPORT = "report.json"
_PIECE = 1 << 20


@contextmanager
def staging(into: Path) -> Iterator[Path]:
    """A private folder (mode 0700) for a result that is to appear at ``into``; always removed.

    It lies on the file system of ``into``: inside it where ``into`` exists (empty) and may be a
    mount point, else in its nearest ancestor that exists. Nothing else is written before
    ``finish``.

    Raises:
        ConfigError: ``into`` is something else than an empty directory, or may not be written.
        StageError: The disk ran full while the caller worked in the folder.
    """
    place = _vacant(into.absolute())
    try:
        folder = Path(tempfile.mkdtemp(prefix=".lmr-guard-", dir=place))
    except OSError as error:
        raise ConfigError(
            f"expected an output directory that can be written, got {error.strerror}: {into}"
        ) from error
    try:
        yield folder
    except Exception as error:
        if disk_full(error):
            raise StageError(
                f"expected room for the result, got a full disk at {place}; nothing was written"
            ) from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _vacant(into: Path) -> Path:
    """The existing directory to stage in."""
    if into.is_dir():
        if any(into.iterdir()):
            raise ConfigError(f"expected an empty output directory, got files in {into}")
        return into
    if into.exists() or into.is_symlink():
        raise ConfigError(f"expected an output directory, got a file at {into}")
    place = next(parent for parent in into.parents if parent.exists())
    if not place.is_dir():
        raise ConfigError(f"expected an output directory, got a file at {place}")
    return place


def disk_full(error: BaseException | None) -> bool:
    """Whether a full disk is at the bottom of it; libraries wrap what the system said."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            return True
        error = error.__cause__ or error.__context__
    return False


def publish(artifact: Artifact, verdict: Verdict, destination: Path) -> Artifact:
    """Copies a staged file to its place, if the verdict passed and is about these bytes.

    The bytes are digested as they are copied, so nothing can be swapped between the two.

    Args:
        artifact: The staged file.
        verdict: From ``verify``, of this very file.
        destination: Appears complete or not at all.

    Raises:
        ExportRefused: The verdict did not pass, or the file is not the one it is about.
        InputError: The staged file is gone.
        StageError: It cannot be written.
    """
    if not verdict.passed:
        why = "; ".join(verdict.reasons()) or "nothing was checked"
        incomplete = verdict.outcome is Outcome.INCOMPLETE
        raise ExportRefused(
            f"expected a passing verdict for {destination.name}, got {verdict.outcome.name}: {why}",
            incomplete=incomplete,
        )
    if not artifact.path.is_file():
        raise InputError(f"expected the staged file {artifact.path}, got nothing there")
    digest, size = hashlib.sha256(), 0
    with artifact.path.open("rb") as staged, atomic(destination) as file:
        while piece := staged.read(_PIECE):
            digest.update(piece)
            size += file.write(piece)
        if digest.hexdigest() != verdict.sha256:
            raise ExportRefused(
                f"expected the verified bytes {verdict.sha256[:12]} for {destination.name}, got "
                f"{digest.hexdigest()[:12]}; the staged file changed after it was verified"
            )
    return Artifact(destination, digest.hexdigest(), size)


def finish(out: Path, into: Path) -> None:
    """Lets the finished folder ``out`` appear at ``into``.

    Where ``into`` does not exist that is one rename. Where it does (empty), its place may be
    a mount point, and the entries are renamed into it one by one, ``report.json`` last: a result
    without it is not finished.

    Args:
        out: A folder inside the one that ``staging`` gave.
        into: What ``staging`` was called with.

    Raises:
        StageError: The file system refused, or something was put at ``into`` meanwhile.
    """
    try:
        if into.is_dir():
            for entry in sorted(out.iterdir(), key=lambda e: (e.name == _REPORT, e.name)):
                _move(entry, into / entry.name)
        else:
            into.parent.mkdir(parents=True, exist_ok=True)
            _move(out, into)
    except OSError as error:
        raise StageError(f"expected to write {into}, got {error.strerror}") from error


def _move(source: Path, target: Path) -> None:
    if target.exists():
        raise StageError(f"expected nothing at {target}, got a file that was put there meanwhile")
    source.replace(target)
