# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""A published folder against its own report and statement: what changed is told, file by file."""

import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import onnx.numpy_helper
import pytest
from factories import REPORT, variant, write_onnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmr_guard.errors import InputError
from lmr_guard.files import sha256_of
from lmr_guard.release import formats, page
from lmr_guard.release.formats import Beside, Format
from lmr_guard.release.formats.checked import examined, problems
from lmr_guard.release.records import Outcome, Variant, Verdict
from lmr_guard.release.report import Report

Change = Callable[[Path], None]


def shipped(path: Path, name: str | None = None) -> Variant:
    """A variant that passed, with the digest of the file at ``path``."""
    passed = variant(path.stem, published=name or path.name)
    digest = sha256_of(path)
    return replace(passed, sha256=digest, verdict=Verdict(digest, passed.verdict.findings))


def published(folder: Path, *, external: bool = False) -> Report:
    """A folder with two files and their report, as a run leaves it."""
    folder.mkdir()
    write_onnx(folder / "float32.onnx")
    if external:
        model = onnx.load(folder / "float32.onnx")
        for tensor in model.graph.initializer:  # Only raw data can lie elsewhere.
            values = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        place, data = folder / "float32.onnx", "float32.onnx.data"
        onnx.save(model, place, save_as_external_data=True, location=data, size_threshold=0)
    write_onnx(folder / "int8.onnx", weights="float[4,3] W = {2,0,0, 0,2,0, 0,0,2, 0,0,0}")
    files = [folder / "float32.onnx", folder / "int8.onnx"]
    report = replace(REPORT, variants=tuple(map(shipped, files)))
    report.write(folder / "report.json")
    page.write(report, folder / "report.html")
    return report


def state(report: Report, folder: Path) -> None:
    beside = Beside.of(report, folder / "report.json")
    formats.write(report, folder, Format.IN_TOTO, beside)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a statement."""
    place = tmp_path / "release"
    state(published(place), place)
    return place


def test_a_folder_as_it_was_published_has_no_problem(tmp_path: Path, folder: Path) -> None:
    assert problems(folder) == []
    (folder / "statement.json").unlink()
    (folder / "README.txt").write_text("notes of the user are no model")
    assert problems(folder) == []
    link = tmp_path / "link"
    link.symlink_to(folder)
    assert problems(link) == []


def gone(folder: Path) -> None:
    (folder / "int8.onnx").unlink()


def one_byte(folder: Path) -> None:
    path = folder / "int8.onnx"
    path.write_bytes(path.read_bytes() + b"\0")


def exchanged(folder: Path) -> None:
    one, other = folder / "int8.onnx", folder / "float32.onnx"
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def stranger(folder: Path) -> None:
    write_onnx(folder / "other.onnx")


def deep_stranger(folder: Path) -> None:
    (folder / "sub").mkdir()
    shutil.copy(folder / "int8.onnx", folder / "sub" / "INT8.ONNX")


def a_folder(folder: Path) -> None:
    (folder / "int8.onnx").unlink()
    (folder / "int8.onnx").mkdir()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (gone, "int8.onnx"),
        (one_byte, "int8.onnx: expected the bytes"),
        (exchanged, "float32.onnx: expected the bytes"),
        (stranger, "other.onnx: the report does not know it"),
        (deep_stranger, "sub/INT8.ONNX: the report does not know it"),
        (a_folder, "got a folder"),
    ],
)
@pytest.mark.parametrize("stated", [True, False])
def test_a_change_is_told(folder: Path, change: Change, told: str, stated: bool) -> None:
    if not stated:
        (folder / "statement.json").unlink()
    change(folder)
    assert any(told in line for line in problems(folder))


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_changed_byte_is_told(folder: Path, data: st.DataObject) -> None:
    path = folder / data.draw(st.sampled_from(["float32.onnx", "int8.onnx"]))
    before = path.read_bytes()
    place = data.draw(st.integers(0, len(before) - 1))
    changed = bytearray(before)
    changed[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(changed))
    try:
        assert any(path.name in line for line in problems(folder))
    finally:
        path.write_bytes(before)


# --- the page -----------------------------------------------------------------------------------


def redrawn(folder: Path) -> None:
    place = folder / "report.html"
    place.write_text(place.read_text().replace("0.0%", "0.1%", 1) + " ")


def by_hand(folder: Path) -> None:
    (folder / "report.html").write_text("<h1>PASS</h1>")


def emptied(folder: Path) -> None:
    (folder / "report.html").write_bytes(b"")


def a_pipe(folder: Path) -> None:
    (folder / "report.html").unlink()
    os.mkfifo(folder / "report.html")


def a_loop(folder: Path) -> None:
    (folder / "report.html").unlink()
    (folder / "report.html").symlink_to("report.html")


@pytest.mark.parametrize("change", [redrawn, by_hand, emptied, a_pipe, a_loop])
@pytest.mark.parametrize("stated", [True, False])
def test_a_changed_page_is_told(folder: Path, change: Change, stated: bool) -> None:
    if not stated:
        (folder / "statement.json").unlink()
    change(folder)
    (told,) = problems(folder)
    assert told.startswith("report.html: expected")
    assert examined(folder).uncovered == ()


def test_a_page_is_a_subject_and_may_be_missing_only_where_it_is_none(folder: Path) -> None:
    listed = json.loads((folder / "statement.json").read_text())["subject"]
    assert {
        "name": "report.html",
        "digest": {"sha256": sha256_of(folder / "report.html")},
    } in listed
    (folder / "report.html").unlink()
    assert problems(folder) == ["report.html: the statement is about it, and it is gone"]
    (folder / "statement.json").unlink()
    assert problems(folder) == []


def test_an_old_statement_without_the_page_is_read(folder: Path) -> None:
    def older(document: dict[str, object]) -> None:
        listed = document["subject"]
        assert isinstance(listed, list)
        document["subject"] = [each for each in listed if each["name"] != "report.html"]

    assert stated(folder, older) == []
    by_hand(folder)
    assert problems(folder) == [
        "report.html: expected the page that report.json makes, got another"
    ]


def other_version(folder: Path) -> None:
    place = folder / "report.html"
    mark = f"{page.MARK}{importlib.metadata.version('lmr-guard')}"
    place.write_text(place.read_text().replace(mark, f"{page.MARK}0.0.1"))


def test_a_page_of_another_version_is_covered_by_a_statement_alone(folder: Path) -> None:
    other_version(folder)
    assert problems(folder)[0].startswith("report.html: expected the bytes that the statement")
    (folder / "statement.json").unlink()
    found = examined(folder)
    assert found.problems == ()
    assert found.uncovered == (
        "report.html: not covered, for lmr-guard 0.0.1 drew it; `lmr-guard report report.json` "
        "draws it anew",
    )


def test_a_statement_is_not_written_about_a_page_of_something_else(folder: Path) -> None:
    by_hand(folder)
    state(Report.read(folder / "report.json"), folder)
    assert "report.html" not in (folder / "statement.json").read_text()
    assert problems(folder) == [
        "report.html: expected the page that report.json makes, got another"
    ]


# --- reports ------------------------------------------------------------------------------------


def rewritten(folder: Path, report: Report) -> list[str]:
    report.write(folder / "report.json")
    page.write(report, folder / "report.html")
    (folder / "statement.json").unlink()
    return problems(folder)


def test_a_report_that_did_not_pass_is_a_problem_of_its_own(folder: Path) -> None:
    refused = replace(REPORT, verdict=Outcome.FAIL, variants=(variant("float32", Outcome.FAIL),))
    found = rewritten(folder, refused)
    assert "report.json: the verdict is fail, not pass" in found
    assert "float32.onnx: the report does not know it" in found


def test_a_report_that_published_nothing_is_a_problem(folder: Path) -> None:
    for path in folder.glob("*.onnx"):
        path.unlink()
    nothing = replace(REPORT, variants=(variant("float32"),))
    assert rewritten(folder, nothing) == ["report.json: nothing was published"]


@pytest.mark.parametrize("name", ["../float32.onnx", "/etc/passwd", "..", "a\0b", "sub/x.onnx"])
def test_a_report_cannot_lead_out_of_its_folder(folder: Path, name: str) -> None:
    report = Report.read(folder / "report.json")
    first, second = report.variants
    shutil.copy(folder / "float32.onnx", folder.parent / "float32.onnx")
    found = rewritten(folder, replace(report, variants=(replace(first, published=name), second)))
    assert any("no name of a file beside the report" in line for line in found)
    assert "float32.onnx: the report does not know it" in found
    assert all(line.isprintable() for line in found)


def test_two_variants_cannot_be_one_file(folder: Path) -> None:
    report = Report.read(folder / "report.json")
    first, _ = report.variants
    found = rewritten(folder, replace(report, variants=(first, replace(first, name="again"))))
    assert "float32.onnx: published twice" in found


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"verdict": "pass"}'])
def test_no_report_is_no_answer(folder: Path, text: str) -> None:
    (folder / "report.json").write_text(text)
    with pytest.raises(InputError):
        problems(folder)


def test_a_report_that_was_changed_is_no_answer(folder: Path) -> None:
    path = folder / "report.json"
    path.write_text(path.read_text().replace('"outcome": "pass"', '"outcome": "fail"', 1))
    with pytest.raises(InputError, match="the report was changed"):
        problems(folder)


def test_no_folder_is_no_answer(tmp_path: Path) -> None:
    for place in (tmp_path / "none", tmp_path / ("x" * 300)):
        with pytest.raises(InputError, match="expected a published folder"):
            problems(place)


# --- statements ---------------------------------------------------------------------------------


def stated(folder: Path, change: Callable[[dict[str, object]], object]) -> list[str]:
    path = folder / "statement.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return problems(folder)


def test_a_statement_about_other_files_is_told(folder: Path) -> None:
    found = stated(folder, lambda d: d.update(subject=d["subject"][:1]))  # type: ignore[index]
    assert len(found) == 1
    assert found[0].startswith("statement.json: expected the subject int8.onnx with ")
    more = {"name": "x\x1b.onnx", "digest": {"sha256": "0" * 64}}
    found = stated(folder, lambda d: d.update(subject=[*d["subject"], more]))  # type: ignore[misc]
    assert any("is not here" in line for line in found)
    assert all(line.isprintable() for line in found)


def test_a_statement_about_another_report_is_told(folder: Path) -> None:
    report = Report.read(folder / "report.json")
    replace(report, notes=("changed later",)).write(folder / "report.json")
    assert problems(folder) == [
        "statement.json: expected the policy and the report that lie here, got others"
    ]


def test_a_statement_with_another_result_is_told(folder: Path) -> None:
    found = stated(folder, lambda d: d["predicate"].update(result="FAILED"))  # type: ignore[attr-defined]
    assert found == ["statement.json: expected the result PASSED, got another"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "[" * 100_000,
        '{"subject": [{"name": 1}]}',
        '{"subject": [{"name": 1, "digest": {"sha256": []}}, {"name": "a", "digest": '
        '{"sha256": 1}}], "predicate": {"configuration": [], "result": "PASSED"}, "_type": 1, '
        '"predicateType": 2}',
        '{"subject": [], "predicate": {"configuration": [], "result": "PASSED"},'
        '"_type": "https://in-toto.io/Statement/v0.1", "predicateType": "x"}',
    ],
)
def test_no_statement_is_no_answer(folder: Path, text: str) -> None:
    (folder / "statement.json").write_text(text)
    with pytest.raises(InputError, match="in-toto statement"):
        problems(folder)


# --- companions ---------------------------------------------------------------------------------


def test_data_beside_a_file_must_be_covered_by_the_statement(tmp_path: Path) -> None:
    """``publish`` lets no such file out; somebody else's tool may have split it before."""
    folder = tmp_path / "release"
    report = published(folder, external=True)
    assert problems(folder) == ["float32.onnx.data: data of float32.onnx that no digest covers"]
    state(report, folder)
    assert problems(folder) == []
    subjects = json.loads((folder / "statement.json").read_text())["subject"]
    assert [each["name"] for each in subjects] == [
        "float32.onnx",
        "float32.onnx.data",
        "int8.onnx",
        "report.html",
    ]
    data = folder / "float32.onnx.data"
    data.write_bytes(data.read_bytes()[::-1])
    assert any("expected the subject float32.onnx.data" in line for line in problems(folder))
    data.unlink()
    assert any("float32.onnx" in line for line in problems(folder))
