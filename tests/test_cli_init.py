# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""``lmr-guard init``: what it prints can be run, and nothing is overwritten."""

import re
import shlex
from pathlib import Path

import pytest
from factories import row_images, tree, write_images

from lmr_guard.classifier import Classifier
from lmr_guard.cli import main
from lmr_guard.errors import ExitCode
from lmr_guard.onnxfile.export import export_onnx
from lmr_guard.release.policy import Policy, policy_from_toml

FACTORIES = ""  # for the fixture ``folder``
SIX = ("--arch", "factories:six_rows", "--variants", "float32,int8", "--threads", "1")


def words(files: Path, out: Path, *more: str) -> list[str]:
    checkpoint = str(files / "model.safetensors")
    return ["init", checkpoint, "--clean", str(files / "clean"), "--out", str(out), *more]


def printed(capsys: pytest.CaptureFixture[str], begin: str) -> str:
    (line,) = [each for each in capsys.readouterr().out.splitlines() if each.startswith(begin)]
    return line.removeprefix(begin)


@pytest.mark.slow
def test_the_printed_command_runs_with_the_policy(
    six_files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    patch = f"{six_files / 'patch.png'}@6,6"
    policy = tmp_path / "my policy.toml"
    assert main(words(six_files, policy, *SIX, "--trigger", patch)) == ExitCode.PASSED
    assert policy_from_toml(policy) == Policy()
    name, *run = shlex.split(printed(capsys, "run: "))
    assert name == "lmr-guard"
    assert f"--trigger={patch}" in run
    assert main([*run, "--audit-steps", "0", "--no-repair"]) in {0, 1, 3}
    assert (tmp_path / "release" / "report.json").is_file()


def test_what_it_tells(six_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(six_files, tmp_path / "policy.toml", *SIX)) == ExitCode.PASSED
    told = capsys.readouterr().out
    assert re.search(r"^model: 1x7x7 pixels, 6 classes; recognises \d+/\d+", told, re.MULTILINE)
    assert re.search(r"^images: \d+ to repair, \d+ to choose on, \d+ to report on$", told, re.M)
    assert re.search(r"^time: about \d+( to \d+)? (second|minute)s? ", told, re.MULTILINE)
    assert "PATCH.png@X,Y" in told
    assert "warning" not in told


def test_too_few_images_are_told_and_no_limit_is_moved(
    six_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = write_images(row_images(120, seed=2, rows=6), tmp_path / "few")
    checkpoint, out = str(six_files / "model.safetensors"), tmp_path / "policy.toml"
    said = ["init", checkpoint, "--clean", str(few), "--out", str(out), *SIX]
    assert main(said) == ExitCode.PASSED
    assert "fewer than min_trials 100" in printed(capsys, "warning: ")
    assert policy_from_toml(out).min_trials == 100
    assert "TOO FEW" in out.read_text(encoding="utf-8")


@pytest.mark.slow
def test_an_onnx_file_needs_no_arch(
    clean_network: Classifier,
    digit_files: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    export_onnx(clean_network, tmp_path / "model.onnx")
    said = ["init", str(tmp_path / "model.onnx"), "--clean", str(digit_files / "clean")]
    assert main([*said, "--out", str(tmp_path / "policy.toml")]) == ExitCode.PASSED
    assert "--arch" not in printed(capsys, "run: ")


def test_a_file_that_is_there_is_never_overwritten(
    six_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "policy.toml").write_text("max_asr = 0.01\n")
    before = tree(tmp_path)
    assert main(words(six_files, tmp_path / "policy.toml", *SIX)) == ExitCode.USAGE
    assert tree(tmp_path) == before
    assert "it is left as it is" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"--clean": "none"}, (ExitCode.UNSAFE_INPUT, "got no such folder")),
        ({"--out": "none/policy.toml"}, (ExitCode.USAGE, "got no such folder")),
        ({"--arch": None, "--mean": "0.5"}, (ExitCode.USAGE, "expected --arch beside --mean")),
        ({"--arch": "torchvision:nonsense"}, (ExitCode.USAGE, "got 'nonsense'")),
        ({"--trigger": "patch.png"}, (ExitCode.USAGE, "expected")),
        ({"--classes": "a,b"}, (ExitCode.UNSAFE_INPUT, "expected")),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(
    six_files: Path,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    changed: dict[str, str | None],
    expected: tuple[ExitCode, str],
) -> None:
    code, told = expected
    before = tree(folder)
    usual = {"--clean": str(six_files / "clean"), "--out": "policy.toml"}
    pairs = usual | {"--arch": "factories:six_rows"} | changed
    said = [word for flag, value in pairs.items() if value for word in (flag, value)]
    assert main(["init", str(six_files / "model.safetensors"), *said]) == code
    shown = capsys.readouterr().err
    assert told in shown
    assert shown.count("\n") == 1
    assert tree(folder) == before


def test_a_truncated_checkpoint_is_told(
    six_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = tmp_path / "model.safetensors"
    cut.write_bytes((six_files / "model.safetensors").read_bytes()[:100])
    said = ["init", str(cut), "--clean", str(six_files / "clean"), "--out", str(tmp_path / "p")]
    assert main([*said, *SIX]) == ExitCode.UNSAFE_INPUT
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "p").exists()
