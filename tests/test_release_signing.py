# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Published folders are signed with a real key by model-signing, and one bit more is refused."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from factories import tree

from lmr_guard.cli import main
from lmr_guard.errors import ConfigError, ExitCode, ExportRefused, InputError
from lmr_guard.release.report import Report
from lmr_guard.release.signing import SIGNATURE, require_signed, sign

PLAIN = serialization.NoEncryption()


def write_key(
    place: Path,
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey,
    secret: serialization.KeySerializationEncryption = PLAIN,
) -> Path:
    """A private key, and the public one beside it with the suffix ``.pub``."""
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    place.write_bytes(key.private_bytes(pem, pkcs8, secret))
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    place.with_suffix(".pub").write_bytes(key.public_key().public_bytes(pem, spki))
    return place


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return write_key(tmp_path / "key.pem", ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture
def release(row_release: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(row_release, tmp_path / "release"))


def test_what_was_signed_verifies_wherever_it_is_carried(release: Path, key: Path) -> None:
    before = tree(release)
    assert sign(release, key) == release / SIGNATURE
    assert {**before, SIGNATURE: (release / SIGNATURE).read_bytes()} == tree(release)
    require_signed(release, key.with_suffix(".pub"))
    sign(release, key)
    moved = release.rename(release.parent / "elsewhere")
    require_signed(moved, key.with_suffix(".pub"))


def test_model_signings_own_command_agrees(release: Path, key: Path) -> None:
    sign(release, key)
    command = [str(Path(sys.executable).with_name("model_signing")), "verify", "key"]
    command += [str(release), "--signature", str(release / SIGNATURE), "--no-ignore-git-paths"]
    command += ["--public_key", str(key.with_suffix(".pub"))]
    assert subprocess.call(command) == 0
    flipped(release / "int8.onnx")
    assert subprocess.call(command) != 0


def flipped(path: Path) -> None:
    """One bit of a file is another."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


TAMPERING: dict[str, Callable[[Path], object]] = {
    "a bit of a model": lambda r: flipped(r / "int8.onnx"),
    "a bit of the report": lambda r: flipped(r / "report.json"),
    "a bit of the signature": lambda r: flipped(r / SIGNATURE),
    "a file more": lambda r: (r / "more.txt").touch(),
    "a file of git more": lambda r: (r / ".gitattributes").touch(),
    "a file less": lambda r: (r / "float32.onnx").unlink(),
    "another name": lambda r: (r / "int8.onnx").rename(r / "int8-new.onnx"),
    "a link": lambda r: (r / "link").symlink_to("report.json"),
    "no bundle": lambda r: (r / SIGNATURE).write_text("{}"),
    "no JSON": lambda r: (r / SIGNATURE).write_bytes(b"\xff"),
}


@pytest.mark.parametrize("case", TAMPERING)
def test_whatever_is_changed_is_refused(case: str, release: Path, key: Path) -> None:
    sign(release, key)
    TAMPERING[case](release)
    with pytest.raises(ExportRefused, match="as the holder of") as told:
        require_signed(release, key.with_suffix(".pub"))
    assert "\n" not in str(told.value)


def test_another_key_is_refused(release: Path, key: Path, tmp_path: Path) -> None:
    other = write_key(tmp_path / "other.pem", ec.generate_private_key(ec.SECP384R1()))
    sign(release, key)
    with pytest.raises(ExportRefused):
        require_signed(release, other.with_suffix(".pub"))


def test_what_did_not_pass_is_not_signed(release: Path, key: Path) -> None:
    flipped(release / "int8.onnx")
    with pytest.raises(ExportRefused, match="expected a folder that passed and is as its report"):
        sign(release, key)
    assert not (release / SIGNATURE).exists()


def test_a_signature_makes_no_wrong_folder_right(release: Path, key: Path) -> None:
    """Whoever signs by other means may sign what did not pass; that is still refused here."""
    (release / "stranger.onnx").touch()
    command = [str(Path(sys.executable).with_name("model_signing")), "sign", "key", str(release)]
    command += ["--signature", str(release / SIGNATURE), "--private_key", str(key)]
    assert subprocess.call(command) == 0
    with pytest.raises(ExportRefused, match=r"stranger\.onnx: the report does not know it"):
        require_signed(release, key.with_suffix(".pub"))


def test_no_signature_is_told(release: Path, key: Path) -> None:
    with pytest.raises(InputError, match="expected a signature, got no such file"):
        require_signed(release, key.with_suffix(".pub"))
    with pytest.raises(InputError):
        require_signed(release / "none", key.with_suffix(".pub"))


def test_a_link_in_the_folder_is_not_signed(release: Path, key: Path) -> None:
    (release / "link").symlink_to("report.json")
    with pytest.raises(InputError, match="it is a symlink"):
        sign(release, key)
    assert not (release / SIGNATURE).exists()


def test_keys_of_other_kinds_are_told(release: Path, key: Path, tmp_path: Path) -> None:
    hidden = serialization.BestAvailableEncryption(b"secret")
    wrong = {
        tmp_path / "none.pem": "expected a private key, got no such file",
        tmp_path: "expected a private key, got a folder",
        release / "report.json": "expected a private key in PEM without a password, got",
        key.with_suffix(".pub"): "expected a private key in PEM without a password, got",
        write_key(tmp_path / "hidden.pem", ec.generate_private_key(ec.SECP256R1()), hidden): (
            "expected a private key in PEM without a password, got"
        ),
        write_key(tmp_path / "rsa.pem", rsa.generate_private_key(65537, 2048)): (
            "expected a key of an elliptic curve, got another"
        ),
    }
    for path, message in wrong.items():
        with pytest.raises(ConfigError, match=message):
            sign(release, path)
    with pytest.raises(ConfigError, match="expected a key of an elliptic curve, got another"):
        require_signed(release, tmp_path / "rsa.pub")
    with pytest.raises(ConfigError, match="expected a public key in PEM"):
        require_signed(release, key)
    assert not (release / SIGNATURE).exists()


def test_attest_signs_and_verifies(
    release: Path, key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check = ["attest", "--check", str(release)]
    public = ["--signed-by", str(key.with_suffix(".pub"))]
    assert main([*check, *public]) == ExitCode.UNSAFE_INPUT
    assert main([*check, "--sign", str(key)]) == ExitCode.PASSED
    assert f"signature: {release / SIGNATURE}" in capsys.readouterr().out
    assert main([*check, *public]) == ExitCode.PASSED
    assert f"signed by {key.with_suffix('.pub')}" in capsys.readouterr().out
    flipped(release / "int8.onnx")
    assert main([*check, *public]) == ExitCode.REFUSED
    assert capsys.readouterr().err.startswith("lmr-guard: expected ")
    assert main(["attest", *public]) == ExitCode.USAGE
    assert "with --check DIR" in capsys.readouterr().err
    assert Report.read(release / "report.json").published
