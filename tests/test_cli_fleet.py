# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""``lmr-guard fleet``: whole fleets of real runs, killed, resumed, cut into shards, merged."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import pytest
from factories import tree
from fleets import DEFAULTS, environment, fleet_files, units

from lmr_guard.cli import arguments, commands, main
from lmr_guard.cli.fleet import _options
from lmr_guard.errors import ExitCode
from lmr_guard.fleet.plan import Names
from lmr_guard.release.formats.checked import problems

EIGHT = [f"m{i}" for i in range(8)]
COMMAND = [sys.executable, "-m", "lmr_guard", "fleet"]


def start(plan: Path, out: Path, *words: str) -> "subprocess.Popen[str]":
    command = [*COMMAND, str(plan), "--out", str(out), *words]
    return subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(process: "subprocess.Popen[str]") -> tuple[int, list[str], str]:
    out, err = process.communicate()
    return process.returncode, out.splitlines(), err


def records(out: Path) -> dict[str, tuple[int, bytes]]:
    """Of each unit that is done: when its record was written, and what is in it."""
    found = sorted((out / "units").glob("*/unit.json"))
    return {path.parent.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in found}


def summary(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "fleet.json").read_text())
    return found


def alive(folder: Path) -> list[str]:
    """Command lines of processes at work in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if Path(process / "cwd").readlink().is_relative_to(folder):
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


@pytest.mark.long
@pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere units outlive a fleet that is killed"
)
def test_a_fleet_killed_half_way_resumes_and_nothing_is_lost_or_done_twice(tmp_path: Path) -> None:
    home, out = tmp_path / "home", tmp_path / "out"
    home.mkdir()
    plan = fleet_files(home, EIGHT)
    options = ("--executor", "processes", "--workers", "2", "--threads", "1")
    first = start(plan, out, *options)
    while len(records(out)) < 3:
        assert first.poll() is None, ended(first)
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    ended(first)
    deadline = time.monotonic() + 10
    while alive(home):
        assert time.monotonic() < deadline, "units end with their fleet"
        time.sleep(0.1)
    before = records(out)
    assert 3 <= len(before) < 8
    assert not (out / "fleet.json").exists()
    code, told, err = ended(start(plan, out, *options))
    assert code == ExitCode.PASSED, (told, err)
    assert f"fleet of 8: 8 pass; {8 - len(before)} ran, {len(before)} taken over" in told
    after = records(out)
    assert sorted(after) == EIGHT
    assert {name: after[name] for name in before} == before, "a finished unit is not repeated"
    for name in EIGHT:
        assert problems(out / "units" / name / "release") == []
    assert not list(out.rglob(".lmr-guard-part-*"))
    seen = [(unit["name"], unit["verdict"]) for unit in summary(out)["units"]]
    assert seen == [(name, "pass") for name in EIGHT]
    merged = tree(out)
    assert ended(start(plan, out, "--merge"))[0] == ExitCode.PASSED
    assert tree(out).keys() == merged.keys()
    assert summary(out)["units"] == json.loads(merged["fleet.json"] or b"")["units"]


@pytest.mark.slow
def test_shards_are_merged_and_one_that_is_missing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    home, out = tmp_path / "home", tmp_path / "out"
    home.mkdir()
    plan = fleet_files(home, ["a", "b"])
    words = ["fleet", str(plan), "--out", str(out)]
    assert main([*words, "--threads", "1", "--shard", "kubernetes/2"]) == ExitCode.PASSED
    assert "fleet of 1: 1 pass; 1 ran, 0 taken over" in capsys.readouterr().out
    assert not (out / "fleet.json").exists(), "a shard does not speak for the others"
    assert main([*words, "--merge"]) == ExitCode.INCOMPLETE
    assert "b: incomplete: it did not run; run its shard again" in capsys.readouterr().out
    assert [unit["verdict"] for unit in summary(out)["units"]] == ["pass", "incomplete"]
    # The killed one is named, and the next one runs all the same.
    text = plan.read_text()
    plan.write_text(text + units("c", "d", arch="factories:killed_architecture", model="a"))
    killed = text + units("c", arch="factories:killed_architecture", model="a.safetensors")
    plan.write_text(killed + units("d", model="none.safetensors"))
    assert main([*words, "--threads", "1"]) == ExitCode.UNSAFE_INPUT
    told = capsys.readouterr().out
    assert "c: incomplete: its process was ended by SIGKILL" in told
    assert "d: unsafe input: expected a file, got no such file" in told
    assert "fleet of 4: 1 incomplete, 2 pass, 1 unsafe input; 2 ran, 2 taken over" in told
    page = (out / "fleet.html").read_text()
    assert 'href="units/a/release/report.html"' in page
    assert "its process was ended by SIGKILL" in page
    # What was merged once is stale when an input is another.
    plan.write_text(text)
    (home / "fast.toml").write_text('require = ["float32"]\nmax_asr = 0.04\n')
    assert main([*words, "--merge"]) == ExitCode.INCOMPLETE
    assert "are no longer those that it ran with" in capsys.readouterr().out


def test_every_option_of_run_is_a_key_or_the_fleets_own() -> None:
    keys = _options()
    own = {"out", "json", "quiet", "threads"}
    named = [p for p in commands.run.params if isinstance(p, click.Option)]
    assert {p.opts[0].removeprefix("--").replace("-", "_") for p in named} == {*keys, *own}
    files = {key for key, option in keys.items() if option.names is not Names.NOTHING}
    paths = {p.opts[0][2:] for p in named if p.type is arguments.PATH} - own
    assert files == {*paths, "trigger", "triggered"} == {"clean", "drill", "policy", *files} - {""}


BAD = {
    "unknown key": (units("a", nonsense="x"), [], "expected a key of a unit, got 'nonsense'"),
    "threads are not a unit's": (
        units("a") + "threads = 2\n",
        [],
        "expected a key of a unit, got 'threads' in unit a",
    ),
    "no choice": (
        units("a", device="tpu"),
        [],
        "unit a: Invalid value for '--device': 'tpu' is not one of",
    ),
    "out of range": (
        units("a") + "seed = -1\n",
        [],
        "unit a: Invalid value for '--seed': -1 is not in the range",
    ),
    "no policy": (
        units("a", policy="none.toml"),
        [],
        "unit a: expected a policy file, got no such file",
    ),
    "merge and shard": (units("a"), ["--merge", "--shard", "0/2"], "expected --merge alone"),
    "an address without Ray": (units("a"), ["--address", "auto"], "with --executor ray, got"),
    "workers of a cluster": (
        units("a"),
        ["--executor", "ray", "--address", "auto", "--workers", "2"],
        "expected --workers or --address, got both",
    ),
    "workers in a row": (units("a"), ["--workers", "2"], "expected --workers with --executor"),
    "too many threads": (
        units("a"),
        ["--executor", "processes", "--workers", "64", "--threads", "64"],
        "expected 64 workers of 64 threads to find 4096 cores, got",
    ),
    "nothing to merge": (units("a"), ["--merge"], "expected a folder that shards wrote into, got"),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_usage_is_one_line_and_writes_nothing(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, more, message = BAD[case]
    plan = tmp_path / "plan.toml"
    plan.write_text(DEFAULTS + text)
    (tmp_path / "fast.toml").touch()
    before = tree(tmp_path)
    code = run(plan, tmp_path / "out", more)
    err = capsys.readouterr().err
    assert code == ExitCode.USAGE, err
    assert message in err
    assert err.count("\n") == 1
    assert tree(tmp_path) == before


def run(plan: Path, out: Path, more: Sequence[str] = ()) -> int:
    return main(["fleet", str(plan), "--out", str(out), *more])


def test_a_folder_with_other_things_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(DEFAULTS + units("a"))
    (tmp_path / "fast.toml").touch()
    (tmp_path / "clean").mkdir()
    for out, message in {
        tmp_path: "expected an output directory that is empty or a fleet's, got",
        plan: "expected an output directory, got a file",
        tmp_path / "clean" / "out": "expected an output directory outside the clean images",
        tmp_path / ("x" * 300): "expected an output directory, got File name too long",
    }.items():
        assert run(plan, out) == ExitCode.USAGE
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_an_interrupted_fleet_ends_its_units_and_answers_130(tmp_path: Path) -> None:
    home, out = tmp_path / "home", tmp_path / "out"
    home.mkdir()
    process = start(fleet_files(home, ["a", "b"]), out, "--threads", "1")
    while not (out / "units" / "a" / "log.txt").exists():
        assert process.poll() is None, ended(process)
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    code, told, err = ended(process)
    assert code == ExitCode.INTERRUPTED, (told, err)
    assert err.splitlines()[-1] == "lmr-guard: interrupted; nothing half-written was left"
    assert alive(home) == []
    assert not list(out.rglob("release"))
    assert not (out / "fleet.json").exists()
