# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The worst unit speaks for a fleet, and what units say is text on its page."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmr_guard.errors import ExitCode
from lmr_guard.fleet.plan import Plan, Unit
from lmr_guard.fleet.summary import Row, Summary
from lmr_guard.fleet.unit import LOG, Done

UNIT = Unit(name="a", model="m", policy=None, arch=None, clean=Path("clean"), words=(), files={})
DONE = Done(name="a", digest="d", exit_code=0, told="fine")
CODES = [code for code in ExitCode if code is not ExitCode.INTERRUPTED]


def summary(*rows: Row) -> Summary:
    return Summary(Plan(Path("plan.toml"), Path("/"), (UNIT,), "0" * 64), rows)


def came_to(code: int) -> Row:
    return Row(UNIT, replace(DONE, exit_code=code))


@given(st.lists(st.sampled_from(CODES), min_size=1))
def test_the_exit_code_is_that_of_a_unit_and_0_for_passes_alone(codes: list[ExitCode]) -> None:
    found = summary(*map(came_to, codes))
    assert found.exit_code in codes
    assert (found.exit_code == 0) == (set(codes) == {ExitCode.PASSED})
    assert sum(found.counts.values()) == len(codes)
    assert len(list(found.reasons())) == len(codes) - codes.count(ExitCode.PASSED)


@pytest.mark.parametrize(("better", "worse"), [(0, 3), (3, 1), (1, 4), (4, 5), (5, 2)])
def test_codes_have_an_order(better: int, worse: int) -> None:
    assert summary(came_to(better), came_to(worse)).exit_code == worse
    assert summary(came_to(worse), came_to(better)).exit_code == worse


def test_a_shard_without_units_is_no_failure() -> None:
    assert summary().exit_code == ExitCode.PASSED
    assert summary().line() == "fleet of 0: no unit; 0 ran, 0 taken over"


def test_what_units_say_is_text_on_the_page(tmp_path: Path) -> None:
    hostile = '<script>alert(1)</script>\x1b[31m"&'
    unit = replace(UNIT, model=hostile, policy=hostile)
    row = Row(unit, replace(DONE, exit_code=2, told=hostile))
    summary(row, came_to(0)).write(tmp_path)
    page = (tmp_path / "fleet.html").read_text("utf-8")
    assert "<script" not in page
    assert "\x1b" not in page
    assert page.count("&lt;script&gt;") == 3
    assert "default-src 'none'" in page
    content = json.loads((tmp_path / "fleet.json").read_text("utf-8"))
    assert content["exit_code"] == 2
    assert content["units"][0]["told"] == hostile
    assert content["plan"] == {"path": "plan.toml", "sha256": "0" * 64}


def test_a_unit_without_a_verdict_shows_its_log(tmp_path: Path) -> None:
    died = replace(DONE, exit_code=3)
    assert Row.of(UNIT, died, tmp_path, again=True).page is None
    (tmp_path / LOG).touch()
    assert Row.of(UNIT, died, tmp_path, again=True).page == "units/a/log.txt"


def test_another_file_is_not_replaced_by_the_page(tmp_path: Path) -> None:
    (tmp_path / "fleet.html").write_text("mine")
    with pytest.raises(ValueError, match="expected nothing or an earlier page of lmr-guard"):
        summary(came_to(0)).write(tmp_path)
    assert (tmp_path / "fleet.html").read_text() == "mine"
