# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Runs that are cut short at a few places, and the checks of what they leave, which can fail."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from examples.lab.reliability import blows
from examples.lab.reliability.kills import KINDS, Blow, Extent, Struck, audit, judged, run, steps
from examples.lab.reliability.page import kills_record
from examples.lab.reliability.running import Bench, Ended, Job
from examples.lab.reliability.states import Held, held, leftovers, untold

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks of a warm process")
KILLED = -int(signal.SIGKILL)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def published(bench: Bench) -> Path:
    """What one whole run left."""
    out = bench.home() / "out"
    assert bench.fork(Job(bench.run(out))).wait() == Ended(0, "")
    return out


@pytest.mark.parametrize("existing", [False, True], ids=["a new folder", "an empty folder"])
def test_a_kill_while_publishing_leaves_nothing_or_all(bench: Bench, existing: bool) -> None:
    found = list(steps(bench, existing, first=19, last=20))
    assert [each.faults for each in found] == [()] * len(found)
    assert len(found) == 4
    assert {each.code for each in found} == {KILLED}


@pytest.mark.parametrize(
    "blow",
    [
        Blow("at a moment", after=0.1),
        Blow("a full disk", partial(blows.fail_at, 10), None, (2,)),
        Blow("not allowed to write", blows.as_nobody, None, (4,), existing=True),
        Blow("no memory", partial(blows.limit_memory, 0), None, (2, 5)),
        Blow("a reader dies", partial(blows.kill_worker, 0.0), None, (5,), model="model.pt"),
        Blow("left behind", blows.kill_beside_worker, existing=True, model="model.pt"),
        Blow("clocks jump", partial(blows.jump_clocks, 0)),
    ],
    ids=lambda blow: blow.name,
)
def test_other_blows_are_survived(bench: Bench, blow: Blow) -> None:
    found = run(bench, blow)
    assert found.faults == ()
    assert (found.code == 0) == (blow.name == "clocks jump")


def test_random_moments_go_on_until_so_many_runs_have_died(bench: Bench) -> None:
    found = list(KINDS["killed at random moments"](bench, Extent(moments=1)))
    assert [each.faults for each in found] == [()] * len(found)
    assert sum(each.code == KILLED for each in found) == 2


def test_an_earlier_report_stays_or_is_replaced(bench: Bench) -> None:
    found = audit(bench, "before step 2", partial(blows.kill_at, 2, "before"))
    assert (found.code, found.held, found.faults) == (KILLED, Held.NOTHING, ())
    found = audit(bench, "unharmed", lambda: None)
    assert (found.code, found.held, found.faults) == (0, Held.WHOLE, ())


# --- the checks can fail ------------------------------------------------------------------------


def _without_record(out: Path) -> None:
    (out / "report.json").unlink()


def _without_file(out: Path) -> None:
    (out / "float32.onnx").unlink()


def _half_a_record(out: Path) -> None:
    os.truncate(out / "report.json", 1000)


def _other_bytes(out: Path) -> None:
    (out / "float32.onnx").write_bytes(b"other")


def _a_stranger(out: Path) -> None:
    (out / "int8.onnx").write_bytes(b"")


def _a_refusal(out: Path) -> None:
    path = out / "report.json"
    said = json.loads(path.read_text())
    for variant in said["variants"]:
        variant["published"] = None
    path.write_text(json.dumps(said))
    (out / "float32.onnx").unlink()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_without_record, "float32.onnx, report.html without report.json"),
        (_without_file, "a report without float32.onnx"),
        (_half_a_record, "a report that does not read"),
        (_other_bytes, "float32.onnx has other bytes"),
        (_a_stranger, "int8.onnx is not in the report"),
        (_a_refusal, "a report that publishes nothing"),
    ],
)
def test_a_bad_state_is_seen(
    published: Path, tmp_path: Path, spoil: Callable[[Path], None], told: str
) -> None:
    out = tmp_path / "out"
    shutil.copytree(published, out)
    assert held(out) == (Held.WHOLE, [])
    spoil(out)
    state, faults = held(out)
    assert state is Held.WRONG
    assert told in faults[0]


def test_a_half_filled_folder_counts_where_the_next_run_is_told_of_it(
    published: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(published, out)
    _without_file(out)
    journal = out / ".lmr-guard-part-x" / "filling.json"
    journal.parent.mkdir()
    journal.write_text('["report.json", "report.html"]')
    assert held(out)[0] is Held.WRONG
    journal.write_text('["report.json", "report.html", "float32.onnx"]')
    assert held(out) == (Held.BEGUN, [])
    assert held(tmp_path / "none") == (Held.NOTHING, [])


def test_what_is_left_behind_and_what_is_not_told_is_seen(tmp_path: Path) -> None:
    (tmp_path / ".lmr-guard-part-x").mkdir()
    assert leftovers(tmp_path, tmp_path / "none") == [
        f"left behind: .lmr-guard-part-x in {tmp_path.name}"
    ]
    assert untold(Ended(2, "lmr-guard: expected a, got b\n"), (2,)) == []
    assert "exit code 2" in untold(Ended(2, "lmr-guard: expected a, got b\n"), (0,))[0]
    assert "0 lines" in untold(Ended(2, ""), (2,))[0]
    assert "1 lines" in untold(Ended(2, "lmr-guard: internal error: x\n"), (2,))[0]


def test_an_exit_code_that_lies_and_a_folder_that_blocks_are_seen(bench: Bench) -> None:
    out = bench.home() / "out"
    out.mkdir()
    (out / "stranger").write_bytes(b"")
    faults = judged(bench, Blow("a stranger"), out, Ended(0, "")).faults
    assert faults[0] == "stranger without report.json"
    assert any("exit code 0, and the output holds wrong" in fault for fault in faults)
    assert any("once more: exit code 4" in fault for fault in faults)


def test_a_run_that_hangs_is_ended(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("examples.lab.reliability.running._PATIENCE", 0.2)
    ended = bench.fork(Job(["--help"], partial(blows.wait_at, 0, 30.0))).wait()
    assert ended.code == KILLED
    assert "still at work after 0.2 seconds" in ended.said


def test_the_record_counts_and_names_faults() -> None:
    found = [
        Struck("a", KILLED, Held.NOTHING, ()),
        Struck("b", KILLED, Held.BEGUN, ()),
        Struck("c", 0, Held.WRONG, ("odd",)),
    ]
    record = kills_record({"kind": found}, Extent().seed, 1.0)
    counts = record["kinds"]["kind"]
    assert (counts["tried"], counts["killed"], counts["survived"], counts["wrong"]) == (3, 2, 2, 1)
    assert counts["held"]["begun"] == 1
    assert record["faults"] == [{"name": "kind: c", "faults": ["odd"]}]
