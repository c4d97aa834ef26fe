# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""A signature over a published folder, made and read by OpenSSF's ``model-signing``.

A report and its files agree with one another wherever somebody wrote both; who wrote them, only a
signature says. It covers every file of the folder, the report and its page included, and lies in
it as ``model.sig``, where ``model_signing verify key`` finds it as well.
"""

from pathlib import Path

from lmr_guard.errors import ConfigError, ExportRefused, InputError, first_line, printable, some
from lmr_guard.extras import load
from lmr_guard.files import atomic, sweep
from lmr_guard.release.formats.checked import problems
from lmr_guard.untrusted import LARGEST_RECORD, LARGEST_SETTINGS, read_bytes, require_path, shown

__all__ = ["SIGNATURE", "require_signed", "sign"]

SIGNATURE = "model.sig"
"""How the signature in a folder is called."""

_EXTRA = "signing"
_READABLE = 300  # characters of what the library says that one line can hold


def sign(folder: Path, private_key: Path) -> Path:
    """Signs a published folder that passed and is what its report says.

    Args:
        folder: What ``guard`` published; an earlier signature in it is replaced.
        private_key: PEM, of an elliptic curve, without a password.

    Returns:
        Where the signature lies.

    Raises:
        ConfigError: No ``model-signing``, or no such key.
        ExportRefused: The folder is not as its report says, or that did not pass.
        InputError: There is no folder, or no report that can be read.
        StageError: It cannot be written.
    """
    signing = load("model_signing.signing", _EXTRA)
    _require_key(private_key, "private")
    place = folder / SIGNATURE
    _require_as_reported(folder)
    sweep(folder)  # What a run that was killed left there would be signed.
    with atomic(place) as file:
        mine = Path(file.name)
        try:
            config = signing.Config().set_hashing_config(_covered(folder, mine, place))
            config.use_elliptic_key_signer(private_key=private_key).sign(folder, mine)
        except ValueError as error:
            raise InputError(
                f"expected plain files and a key of a usual curve, got {first_line(error)}"
            ) from error
    return place


def require_signed(folder: Path, public_key: Path) -> None:
    """Refuses a folder that is not, file by file, what the holder of a key signed.

    Args:
        folder: With its signature in it.
        public_key: PEM, of an elliptic curve.

    Raises:
        ConfigError: No ``model-signing``, or no such key.
        ExportRefused: Another key, another byte, a file more or less, or not as its report says.
        InputError: There is no folder, no signature, or no report that can be read.
    """
    verifying = load("model_signing.verifying", _EXTRA)
    require_path(folder, "a published folder")
    _require_key(public_key, "public")
    place = folder / SIGNATURE
    read_bytes(place, "a signature", LARGEST_RECORD)
    try:
        config = verifying.Config().set_hashing_config(_covered(folder, place))
        config.use_elliptic_key_verifier(public_key=public_key).verify(folder, place)
    except Exception as error:  # Hostile bytes may raise anything.
        said = printable(" ".join(str(error).split())[:_READABLE]) or type(error).__name__
        raise ExportRefused(
            f"expected {shown(folder)} as the holder of {shown(public_key)} signed it, got {said}"
        ) from error
    _require_as_reported(folder)


def _covered(folder: Path, *apart: Path) -> object:
    """All files of a folder but the signature itself."""
    hashing = load("model_signing.hashing", _EXTRA)
    return hashing.Config().set_ignored_paths(paths=list(apart), ignore_git_paths=False)


def _require_as_reported(folder: Path) -> None:
    if found := problems(folder):
        raise ExportRefused(
            f"expected a folder that passed and is as its report says, got {some(found)}"
        )


def _require_key(path: Path, kind: str) -> None:
    """The library takes other keys for a fault of its own."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import (
        load_pem_private_key,
        load_pem_public_key,
    )

    content = read_bytes(path, f"a {kind} key", LARGEST_SETTINGS, error=ConfigError)
    try:
        key = (
            load_pem_public_key(content)
            if kind == "public"
            else load_pem_private_key(content, password=None)
        )
    except (TypeError, ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"expected a {kind} key in PEM without a password, got {first_line(error)}: "
            f"{shown(path)}"
        ) from error
    if not isinstance(key, ec.EllipticCurvePublicKey | ec.EllipticCurvePrivateKey):
        raise ConfigError(f"expected a key of an elliptic curve, got another: {shown(path)}")
