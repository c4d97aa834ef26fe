# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The lab of architectures: some really go through, and no form passes under a false name."""

from pathlib import Path

import pytest

from examples.lab.architectures import __main__ as lab
from examples.lab.architectures.subjects import SUBJECTS
from examples.lab.kit.records import Store

DOCS = Path(__file__).parent.parent / "docs" / "architectures.md"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("lcnet_035", "PASS"),
        pytest.param("test_efficientnet_gn", "INCOMPLETE", marks=pytest.mark.long),
        pytest.param("shufflenet_v2_x0_5", "INCOMPLETE", marks=pytest.mark.long),
    ],
)
def test_an_architecture_goes_through(
    name: str, outcome: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "networks.jsonl"
    assert lab.main(["run", "--tiny", "--only", name, "--out", str(out)]) == 0
    (record,) = Store(out).read()
    made = record["variants"]
    assert set(made) == {"float32", "int8", "l1-0.3"}
    hits, trials = made["float32"]["right"]
    assert hits > trials / 2
    assert made["int8"]["bytes"] < made["float32"]["bytes"]
    assert made["l1-0.3"]["achieved"][0] == outcome
    assert made["l1-0.3"]["weights"] > 0
    assert lab.main(["show", "--out", str(out)]) == 0
    assert f"1 networks: 1 {'reached' if outcome == 'PASS' else outcome}" in capsys.readouterr().out


def test_no_committed_record_reaches_a_name_that_it_does_not_deserve() -> None:
    records = Store(lab.RESULTS).read()
    assert records
    assert {record["name"] for record in records} <= {subject.name for subject in SUBJECTS}
    for record in records:
        cut = record["variants"].get("l1-0.3")
        if cut is not None:
            outcome, reason = cut["achieved"]
            if outcome == "PASS":
                assert cut["channels"] >= 0.9 * 0.3, record["name"]
            else:
                assert cut["channels"] < 0.3 - 0.02, record["name"]
                assert "not cut: " in reason
        else:
            assert record["notes"]


def test_the_page_holds_the_committed_records(capsys: pytest.CaptureFixture[str]) -> None:
    assert lab.main(["page"]) == 0
    assert capsys.readouterr().out.strip() in DOCS.read_text(encoding="utf-8")


def test_tiny_records_are_no_results() -> None:
    assert lab.main(["run", "--tiny"]) == 4
