# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""``lmr-guard attest``: formats on standard output or in files, and exit codes of the check."""

import json
from dataclasses import replace
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest
from click.testing import CliRunner
from factories import REPORT, variant, write_onnx

from lmr_guard.cli import main
from lmr_guard.cli.attest import attest
from lmr_guard.errors import ExitCode
from lmr_guard.files import sha256_of
from lmr_guard.release import formats
from lmr_guard.release.formats import Beside, Format
from lmr_guard.release.records import Outcome, Verdict
from lmr_guard.release.report import Report


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A published folder of one file."""
    folder = tmp_path / "release"
    folder.mkdir()
    digest = sha256_of(write_onnx(folder / "float32.onnx"))
    passed = variant("float32", published="float32.onnx")
    only = replace(passed, sha256=digest, verdict=Verdict(digest, passed.verdict.findings))
    replace(REPORT, variants=(only,)).write(folder / "report.json")
    return folder


@pytest.mark.parametrize("format_", Format)
def test_standard_output_is_the_document_and_nothing_else(
    release: Path, format_: Format, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    path = release / "report.json"
    assert main(["attest", str(path), "--format", format_.value]) == ExitCode.PASSED
    out, err = capfdbinary.readouterr()
    report = Report.read(path)
    assert out.decode() == formats.of(report, format_, Beside.of(report, path))
    assert err == b""
    assert main(["attest", str(path), "--format", format_.value, "--out", "-"]) == ExitCode.PASSED
    assert capfdbinary.readouterr().out == out


def test_a_terminal_that_cannot_show_a_name_gets_the_whole_document(release: Path) -> None:
    path = release / "report.json"
    replace(Report.read(path), model="modèle.onnx").write(path)
    runner = CliRunner(charset="latin-1")
    done = runner.invoke(attest, [str(path), "--format", "junit"], standalone_mode=False)
    assert done.return_value == ExitCode.PASSED
    assert 'value="modèle.onnx"'.encode() in done.stdout_bytes


@pytest.mark.parametrize("format_", Format)
def test_a_file_is_written_where_it_was_asked_for(
    release: Path, format_: Format, capsys: pytest.CaptureFixture[str]
) -> None:
    path = release / "report.json"
    for out in (release, release.parent / "evidence"):
        assert main(["attest", str(path), "--format", format_.value, "--out", str(out)]) == 0
        place = out / formats.FILE_NAMES[format_] if out.is_dir() else out
        assert capsys.readouterr().out == f"{format_}: {place}\n"
        assert place.stat().st_size > 100


def test_a_folder_checks_with_its_statement(
    release: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = str(release / "report.json")
    assert main(["attest", report, "--format", "in-toto", "--out", str(release)]) == 0
    subjects = json.loads((release / "statement.json").read_text())["subject"]
    assert [each["name"] for each in subjects] == ["float32.onnx"]
    assert main(["attest", "--check", str(release)]) == ExitCode.PASSED
    assert "every file is as its report says" in capsys.readouterr().out
    write_onnx(release / "float32.onnx", weights="float[4,3] W = {1,0,0, 0,1,0, 0,0,1, 0,0,9}")
    write_onnx(release / "x\n.onnx")
    assert main(["attest", "--check", str(release)]) == ExitCode.REFUSED
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert all(line.startswith("lmr-guard: ") for line in lines)
    assert any("float32.onnx: expected the bytes" in line for line in lines)
    assert any(r"'x\n.onnx': the report does not know it" in line for line in lines)


def test_a_refused_release_does_not_check(release: Path) -> None:
    refused = replace(REPORT, verdict=Outcome.FAIL, variants=(variant("float32", Outcome.FAIL),))
    refused.write(release / "report.json")
    (release / "float32.onnx").unlink()
    assert main(["attest", "--check", str(release)]) == ExitCode.REFUSED


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ([], ExitCode.USAGE, "expected a report and --format"),
        (["REPORT"], ExitCode.USAGE, "expected a report and --format"),
        (["--format", "sarif"], ExitCode.USAGE, "expected a report and --format"),
        (["REPORT", "--check", "FOLDER"], ExitCode.USAGE, "expected --check alone"),
        (["--check", "FOLDER", "--out", "x"], ExitCode.USAGE, "expected --check alone"),
        (["REPORT", "--format", "pdf"], ExitCode.USAGE, "'pdf' is not one of"),
        (["REPORT", "--format", "sarif", "--out", "REPORT"], ExitCode.USAGE, "an earlier record"),
        (["REPORT", "--format", "sarif", "--out", "FILE"], ExitCode.USAGE, "an earlier record"),
        (["REPORT", "--format", "sarif", "--out", "FOLDER/no/x"], ExitCode.USAGE, "got none"),
        (["FOLDER/none", "--format", "sarif"], ExitCode.UNSAFE_INPUT, "expected a report.json"),
        (["FILE", "--format", "sarif"], ExitCode.UNSAFE_INPUT, "expected JSON in a report"),
        (["--check", "FOLDER/none"], ExitCode.UNSAFE_INPUT, "expected a published folder"),
        (["--check", "FOLDER/.."], ExitCode.UNSAFE_INPUT, "expected a report.json"),
    ],
)
def test_what_is_wrong_is_one_line(
    release: Path,
    words: list[str],
    code: ExitCode,
    told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {
        "REPORT": str(release / "report.json"),
        "FILE": str(release / "float32.onnx"),
        "FOLDER": str(release),
    }
    before = {path: path.read_bytes() for path in release.iterdir()}
    given = [
        word.replace(name, place)
        for word in words
        for name, place in [next(((n, p) for n, p in places.items() if n in word), ("\0", ""))]
    ]
    assert main(["attest", *given]) == code
    out, err = capsys.readouterr()
    assert told in err
    assert (out, err.count("\n")) == ("", 1)
    assert {path: path.read_bytes() for path in release.iterdir()} == before


def test_nobody_who_reads_the_document_is_no_failure(
    release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Closed(BytesIO):
        def write(self, _data: object) -> int:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stdout", TextIOWrapper(Closed()))
    assert main(["attest", str(release / "report.json"), "--format", "sarif"]) == ExitCode.PASSED


def test_a_report_may_lie_apart_from_its_files(release: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.json"
    alone.write_bytes((release / "report.json").read_bytes())
    out = tmp_path / "statement.json"
    assert main(["attest", str(alone), "--format", "in-toto", "--out", str(out)]) == 0
    assert [s["name"] for s in json.loads(out.read_text())["subject"]] == ["float32.onnx"]


def test_a_full_disk_behind_standard_output_is_no_success(
    release: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Full(BytesIO):
        def write(self, _data: object) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("sys.stdout", TextIOWrapper(Full()))
    code = main(["attest", str(release / "report.json"), "--format", "sarif"])
    assert code == ExitCode.FAILED
    assert "expected room on standard output, got No space left" in capsys.readouterr().err
