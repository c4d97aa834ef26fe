# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""How cores are dealt out, and what an executor does without its tool; runs are elsewhere."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmr_guard.errors import ConfigError
from lmr_guard.fleet import executors
from lmr_guard.fleet.executors import cores


@given(st.integers(1, 64), st.integers(1, 64))
def test_workers_never_take_more_cores_than_there_are(workers: int, there: int) -> None:
    if workers > there:
        with pytest.raises(ConfigError, match=f"to find {workers} cores, got {there}; take fewer"):
            cores(workers, None, there)
        return
    dealt = cores(workers, None, there)
    assert dealt.workers * dealt.threads <= there < dealt.workers * (dealt.threads + 1)
    assert cores(workers, dealt.threads, there) == dealt


def test_threads_that_were_asked_for_are_not_cut() -> None:
    assert cores(2, 1, 8).threads == 1
    with pytest.raises(ConfigError, match="expected 2 workers of 5 threads to find 10 cores, got"):
        cores(2, 5, 8)


def test_no_jobs_end_at_once() -> None:
    assert list(executors.serial([])) == []
    assert list(executors.processes([], workers=3)) == []


def test_ray_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'lmr-guard\[ray\]'"):
        list(executors.ray([], workers=1, threads=1))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:99999"])
def test_nobody_at_an_address_is_told_at_once(address: str) -> None:
    with pytest.raises(ConfigError, match=f"expected a Ray cluster at {address}, got"):
        list(executors.ray([], workers=1, threads=1, address=address))
