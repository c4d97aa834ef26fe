# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The lab of ONNX files: small ones are really written and read back, and told apart."""

from pathlib import Path

import pytest

from examples.lab.kit.records import Record, Store
from examples.lab.onnxfiles import __main__ as lab
from examples.lab.onnxfiles.subjects import SUBJECTS


def taken(out: Path, only: str) -> dict[str, Record]:
    """The records of some files, by name."""
    assert lab.main(["run", "--tiny", "--only", only, "--out", str(out)]) == 0
    return {str(record["name"]): record for record in Store(out).read()}


def test_what_keras_wrote_comes_back_and_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "files.jsonl"
    found = taken(out, "Keras")
    assert {record["run"] for record in found.values()} == {"yes"}
    assert {record["groups"] for record in found.values()} == {2}
    assert len(found) == 2
    assert lab.main(["show", "--out", str(out)]) == 0
    assert (
        "2 files: 2 come back, 0 are audited only, 0 are told why neither"
        in capsys.readouterr().out
    )


def test_a_quantised_file_is_audited_only(tmp_path: Path) -> None:
    (record,) = taken(tmp_path / "files.jsonl", "QDQ").values()
    assert record["verify"] == "opens"
    assert record["run"].startswith("exit 4: expected an ONNX file that can be read back")


def test_the_committed_records_are_of_all_files() -> None:
    records = Store(lab.RESULTS).read()
    assert {record["name"] for record in records} == {subject.name for subject in SUBJECTS}
    assert all(record["environment"]["exporters"]["onnx2torch"] for record in records)


def test_tiny_records_are_no_results() -> None:
    assert lab.main(["run", "--tiny"]) == 4
