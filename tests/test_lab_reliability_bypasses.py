# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""How the known ways past the gate ended is what pytest says of their tests."""

from pathlib import Path

import pytest

from examples.lab.reliability import bypasses, page
from lmr_guard.errors import StageError

TESTS = """
import pytest

def test_what_holds():
    pass

def test_what_lets_through():
    assert False

def test_what_was_not_tried():
    pytest.skip("no such machine")
"""


def test_each_test_is_told_by_how_it_ended(tmp_path: Path) -> None:
    tests = tmp_path / "test_ways.py"
    tests.write_text(TESTS)
    assert bypasses.tried(tests) == {
        "what holds": "passed",
        "what lets through": "failed",
        "what was not tried": "skipped",
    }


def test_tests_that_do_not_run_are_no_evidence(tmp_path: Path) -> None:
    tests = tmp_path / "test_ways.py"
    tests.write_text("def test_(:")
    with pytest.raises(StageError, match="expected tests that run, got exit code"):
        bypasses.tried(tests)


def test_a_run_that_is_cut_short_is_no_evidence(tmp_path: Path) -> None:
    tests = tmp_path / "test_ways.py"
    tests.write_text("import os\n\ndef test_a():\n    pass\n\ndef test_b():\n    os._exit(3)\n")
    with pytest.raises(StageError, match="got exit code 3 of pytest"):
        bypasses.tried(tests)


def test_the_page_counts_and_names_them(tmp_path: Path) -> None:
    assert "Not run yet: `python -m examples.lab.reliability bypasses`." in page.page(tmp_path)
    found = {"what holds": "passed", "what lets through": "failed", "not tried": "skipped"}
    page.save(page.bypasses_record(found, 3.2), tmp_path / "bypasses.json")
    text = page.page(tmp_path)
    assert "3 tried, 2 ended wrongly. Those that held:\n\n- what holds\n\nFaults:" in text
    assert "- `what lets through`: `failed`\n- `not tried`: `skipped`" in text


def test_there_are_as_many_ways_as_promised() -> None:
    assert bypasses.TESTS.read_text("utf-8").count("\ndef test_") >= 20
