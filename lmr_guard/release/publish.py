# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Stages in private and publishes only the very bytes that a passing verdict is about."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from lmr_guard.errors import ConfigError, ExportRefused, InputError, StageError, printable
from lmr_guard.files import PREFIX, Artifact, atomic, locked, sweep
from lmr_guard.release.decision import publishable
from lmr_guard.release.policy import Policy
from lmr_guard.release.records import Outcome, Variant, Verdict
from lmr_guard.untrusted import LARGEST_RECORD, read_bytes, require_path

__all__ = [
    "disk_full",
    "finish",
    "publish",
    "publish_variants",
    "require_outside",
    "require_place",
    "staging",
]

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_RECORDS = ("drill.json", "repair.json", "report.json")
_JOURNAL = "filling.json"
# All keys of one of these stand in every record that is written to a path of the user's choice.
_MARKS = (
    frozenset({"schema_version", "verdict", "exit_code", "variants", "received", "evidence"}),
    frozenset({"target", "scores", "method", "agreement", "evidence"}),
)
_PIECE = 1 << 20
_SWEEPING = 0.1  # seconds that removing an empty folder takes at most


@contextmanager
def staging(into: Path) -> Iterator[Path]:
    """A private folder (mode 0700) for a result that is to appear at ``into``; always removed.

    It lies on the file system of ``into``: inside it where ``into`` exists (empty) and may be a
    mount point, else in its nearest ancestor that exists. Nothing else is written before
    ``finish``. What runs that were killed have left there is removed first.

    Raises:
        ConfigError: ``into`` is something else than an empty directory, or may not be written.
        StageError: The disk ran full while the caller worked in the folder.
    """
    place = _vacant(into.absolute())
    with ExitStack() as held:
        try:
            folder = _private(place, held)
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


def _private(place: Path, held: ExitStack) -> Path:
    """A new folder with its lock; another run's ``sweep`` takes one that has none yet."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
        with suppress(FileNotFoundError):
            if held.enter_context(locked(folder)):
                return folder
            time.sleep(_SWEEPING)
            if folder.exists():
                return folder  # No locks here, and so no sweeping either.


def _vacant(into: Path) -> Path:
    """The existing directory to stage in, without what killed runs have left there."""
    require_path(into, "an output directory", error=ConfigError)
    if into.is_dir():
        _roll_back(into)
        sweep(into)
        sweep(into.parent)  # Of a run that was killed when ``into`` had just appeared.
        if present := sorted(entry.name for entry in into.iterdir()):
            left = "; another run is at work there" if present[0].startswith(PREFIX) else ""
            raise ConfigError(
                f"expected an empty output directory, got {printable(present[0])} in {into}{left}"
            )
        return into
    if into.exists() or into.is_symlink():
        raise ConfigError(f"expected an output directory, got a file at {into}")
    place = next(parent for parent in into.parents if parent.exists())
    if not place.is_dir():
        raise ConfigError(f"expected an output directory, got a file at {place}")
    sweep(place)
    return place


def _roll_back(into: Path) -> None:
    """Takes back what a run that was killed while it filled ``into`` had put there."""
    for journal in into.glob(f"{PREFIX}*/{_JOURNAL}"):
        with suppress(OSError, ValueError), locked(journal.parent) as free:
            names = json.loads(journal.read_bytes()) if free else []
            places = [into / name for name in names if Path(name).name == name]
            if not all(place.exists() for place in places):
                for place in places:
                    place.unlink(missing_ok=True)


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


def publish_variants(
    variants: Sequence[Variant], staged: Path, out: Path, policy: Policy
) -> list[Variant]:
    """The same variants, those that may ship with their bytes at their place.

    Args:
        variants: What was built and verified.
        staged: Folder of the verified files, each ``NAME.onnx``.
        out: Folder that they are published in, under the same names.
        policy: Says which of those that passed ship.

    Raises:
        ExportRefused, InputError, StageError: See ``publish``.
    """
    ships = publishable(variants, policy)
    return [_published(v, staged, out) if v in ships else v for v in variants]


def _published(variant: Variant, staged: Path, out: Path) -> Variant:
    name = f"{variant.name}.onnx"
    artifact = Artifact(staged / name, variant.sha256, variant.bytes)
    return replace(variant, published=publish(artifact, variant.verdict, out / name).path.name)


def finish(out: Path, into: Path) -> None:
    """Lets the finished folder ``out`` appear at ``into``.

    Where ``into`` did not exist when ``staging`` was called, that is one rename. Where it did
    (empty), its place may be a mount point, and the entries are renamed into it one by one, the
    record first: no file lies there without it. Where one fails, those before it go again; where
    the process is killed in between, the next run takes them back.

    Args:
        out: A folder inside the one that ``staging`` gave.
        into: What ``staging`` was called with.

    Raises:
        StageError: The file system refused, or something was put at ``into`` meanwhile.
    """
    into = into.absolute()
    try:
        if out.parent.parent == into:
            _fill(into, out)
        else:
            into.parent.mkdir(parents=True, exist_ok=True)
            _require_vacant(into)
            out.replace(into)
    except OSError as error:
        raise StageError(f"expected to write {into}, got {error.strerror}") from error


def _fill(into: Path, out: Path) -> None:
    for entry in into.iterdir():
        if entry != out.parent:
            _require_vacant(entry)
    entries = sorted(out.iterdir(), key=lambda e: (e.name not in _RECORDS, e.name))
    with atomic(out.parent / _JOURNAL) as journal:
        journal.write(json.dumps([entry.name for entry in entries]).encode())
    moved: list[Path] = []
    try:
        for entry in entries:
            target = into / entry.name
            moved.append(target)
            entry.replace(target)
    except BaseException:
        for target in reversed(moved):
            if target.exists():
                target.replace(out / target.name)
        raise


def _require_vacant(place: Path) -> None:
    if place.exists() or place.is_symlink():
        raise StageError(
            f"expected nothing at {place}, got what was put there meanwhile, as by another run; "
            "run again into a folder of its own"
        )


def require_outside(into: Path | str, clean: object) -> None:
    """Raises ConfigError where a result would appear inside the folder of clean images."""
    if not isinstance(clean, Path | str):
        return
    require_path(Path(into), "an output directory", error=ConfigError)
    if Path(into).resolve().is_relative_to(Path(clean).resolve()):
        raise ConfigError(
            f"expected an output directory outside the clean images, got {into} in {clean}"
        )


def require_place(path: Path) -> None:
    """Refuses a path where a record could not be written later, or would overwrite something else.

    Args:
        path: Of a record in JSON. An earlier one may stand there and is replaced.

    Raises:
        ConfigError: There is no folder, it may not be written, or another file is at ``path``.
    """
    require_path(path, "a place for a record", error=ConfigError)
    folder = path.parent
    if not folder.is_dir():
        got = "a file" if folder.exists() else "no such folder"
        raise ConfigError(f"expected a folder for {path.name}, got {got}: {folder}")
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"expected a folder that can be written for {path.name}, got {folder}")
    if (path.exists() or path.is_symlink()) and not _is_record(path):
        raise ConfigError(
            f"expected nothing or an earlier record of lmr-guard at {path}, got something else; "
            "choose another name"
        )


def _is_record(path: Path) -> bool:
    try:
        content = json.loads(read_bytes(path, "a record", LARGEST_RECORD))
    except (InputError, RecursionError, ValueError):
        return False
    return isinstance(content, dict) and any(marks <= content.keys() for marks in _MARKS)
