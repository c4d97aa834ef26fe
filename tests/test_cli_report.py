# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""``lmr-guard report``: a page or Markdown of a report, before torch could be loaded."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from factories import REPORT
from modules import ROOT

from lmr_guard.cli import main
from lmr_guard.errors import ExitCode
from lmr_guard.release import page
from lmr_guard.release.records import Outcome
from lmr_guard.release.report import Report

HEAVY = ("numpy", "onnx", "onnxruntime", "torch", "torchvision", "lmr_guard.cli.commands")
REFUSED = replace(REPORT, verdict=Outcome.INCOMPLETE, variants=())


@pytest.fixture
def record(tmp_path: Path) -> Path:
    path = tmp_path / "report.json"
    REPORT.write(path)
    return path


def test_the_page_lies_beside_the_record(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = record.with_name("report.html")
    for report in (REPORT, REFUSED):
        report.write(record)
        assert main(["report", str(record)]) == ExitCode.PASSED
        assert capsys.readouterr() == (f"{report.verdict.word}: {place}\n", "")
        assert place.read_text("utf-8") == page.html(Report.read(record))


def test_both_forms_go_where_they_were_asked_for(
    record: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    web, text = record.with_name("a"), record.with_name("b")
    words = ["report", str(record), "--html", str(web), "--markdown", str(text)]
    assert main(words) == ExitCode.PASSED
    assert capsys.readouterr().out == f"pass: {web}\npass: {text}\n"
    assert text.read_text("utf-8") == page.markdown(Report.read(record))
    assert sorted(path.name for path in record.parent.iterdir()) == ["a", "b", "report.json"]


def test_standard_output_is_the_markdown_and_nothing_else(
    record: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main(["report", str(record), "--markdown", "-"]) == ExitCode.PASSED
    assert capfdbinary.readouterr() == (page.markdown(Report.read(record)).encode(), b"")
    assert list(record.parent.iterdir()) == [record]


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ([], ExitCode.USAGE, "Missing argument 'REPORT.json'"),
        (["none.json"], ExitCode.UNSAFE_INPUT, "expected a report.json, got no such file"),
        (["FOLDER"], ExitCode.UNSAFE_INPUT, "expected a report.json, got a folder"),
        (["RECORD", "--html", "-"], ExitCode.USAGE, "expected a file for --html, got standard"),
        (["RECORD", "--html", "RECORD"], ExitCode.USAGE, "an earlier page of lmr-guard"),
        (["RECORD", "--markdown", "RECORD"], ExitCode.USAGE, "an earlier page of lmr-guard"),
        (["RECORD", "--html", "FOLDER"], ExitCode.USAGE, "an earlier page of lmr-guard"),
        (["RECORD", "--html", "FOLDER/no/x"], ExitCode.USAGE, "expected a folder for x, got none"),
        (["RECORD", "--html", "FOLDER/x", "--markdown", "FOLDER/x"], ExitCode.USAGE, "two files"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(
    record: Path,
    words: list[str],
    code: ExitCode,
    told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = record.read_bytes()
    names = {"RECORD": str(record), "FOLDER": str(record.parent)}
    given = [word.replace("RECORD", names["RECORD"]) for word in words]
    given = [word.replace("FOLDER", names["FOLDER"]) for word in given]
    assert main(["report", *given]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("lmr-guard: ")
    assert err.count("\n") == 1
    assert told in err
    assert list(record.parent.iterdir()) == [record]
    assert record.read_bytes() == before


def test_a_report_that_was_changed_is_not_drawn(
    record: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record.write_text(record.read_text().replace('"verdict": "pass"', '"verdict": "fail"', 1))
    assert main(["report", str(record)]) == ExitCode.UNSAFE_INPUT
    assert "got another" in capsys.readouterr().err
    assert not record.with_name("report.html").exists()


def test_nothing_heavy_is_loaded(record: Path) -> None:
    probe = f"""
import sys
from lmr_guard.cli import main
assert main(["report", {str(record)!r}]) == 0
assert main(["report", {str(record)!r}, "--markdown", "-"]) == 0
print()
print(*sorted(set({HEAVY!r}) & set(sys.modules)))"""
    done = subprocess.run(
        [sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == ""
