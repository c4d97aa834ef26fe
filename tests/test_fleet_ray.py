# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Fleets on real Ray clusters: one started for the fleet, one that was there; ``make hosts``."""

import ast
import json
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleets import environment, fleet_files, units
from modules import ROOT

from lmr_guard.errors import ExitCode

pytestmark = [pytest.mark.hosts, pytest.mark.slow]

CLUSTER = """\
import sys
import ray
found = ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 << 20)
print(found.address_info["gcs_address"], flush=True)
sys.stdin.read()
ray.shutdown()
"""


# What a cluster asks of who connects; in the environment, so that none is made in the home folder.
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """Two that pass, one that is killed, and one that takes Ray's worker along."""
    home = tmp_path / "home"
    home.mkdir()
    path = fleet_files(home, ["a", "b"])
    killed = {"c": "killed_architecture", "d": "parricidal_architecture"}
    for name, arch in killed.items():
        more = units(name, model="a.safetensors", arch=f"factories:{arch}")
        path.write_text(path.read_text() + more)
    return path


@pytest.fixture
def cluster() -> Iterator[str]:
    """The address of a cluster of somebody else's."""
    command = [sys.executable, "-c", CLUSTER]
    quiet = environment() | TOKEN | {"RAY_USAGE_STATS_ENABLED": "0"}
    with subprocess.Popen(
        command, env=quiet, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if ":" in line:
                yield line.strip()
                break
        assert process.stdin is not None
        process.stdin.close()


def fleet(plan: Path, out: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "lmr_guard", "fleet", str(plan), "--out", str(out)]
    return subprocess.run(
        [*command, "--executor", "ray", *words],
        env=environment() | TOKEN,
        capture_output=True,
        text=True,
        check=False,
    )


def outcomes(out: Path) -> dict[str, str]:
    content = json.loads((out / "fleet.json").read_text())
    return {unit["name"]: unit["verdict"] for unit in content["units"]}


ALL = {"a": "pass", "b": "pass", "c": "incomplete", "d": "incomplete"}


def test_ray_runs_all_units_whichever_of_them_die(plan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = fleet(plan, out, "--workers", "2", "--threads", "1")
    assert done.returncode == ExitCode.INCOMPLETE, done.stdout + done.stderr
    assert outcomes(out) == ALL
    assert "c: incomplete: its process was ended by SIGKILL" in done.stdout
    assert "d: incomplete: its worker was lost" in done.stdout
    again = fleet(plan, out, "--workers", "2", "--threads", "1")
    assert "2 ran, 2 taken over" in again.stdout
    assert outcomes(out) == ALL


def test_ray_takes_a_cluster_that_is_up_and_leaves_it_up(
    plan: Path, cluster: str, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        done = fleet(plan, tmp_path / name, "--address", cluster)
        assert done.returncode == ExitCode.INCOMPLETE, done.stdout + done.stderr
        assert outcomes(tmp_path / name) == ALL


def test_ray_that_is_not_there_is_told(plan: Path, tmp_path: Path) -> None:
    done = fleet(plan, tmp_path / "out", "--address", "127.0.0.1:1")
    assert done.returncode == ExitCode.USAGE, done.stdout + done.stderr
    (line,) = [each for each in done.stderr.splitlines() if each.startswith("lmr-guard: expected")]
    assert line.startswith("lmr-guard: expected a Ray cluster at 127.0.0.1:1, got ")


def test_the_example_runs_on_ray_and_is_short(plan: Path, tmp_path: Path) -> None:
    source = (ROOT / "examples" / "fleet" / "on_ray.py").read_text(encoding="utf-8")
    (main,) = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    assert main.end_lineno is not None
    assert main.end_lineno - main.lineno < 25
    home = plan.parent
    given = (str(home), str(home / "clean"), f"{home / 'patch.png'}@3,3:2")
    command = [sys.executable, "-m", "examples.fleet.on_ray", *given]
    done = subprocess.run(
        [*command, "factories:row_architecture", str(tmp_path / "out")],
        cwd=ROOT,
        env=environment() | TOKEN,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == ExitCode.PASSED, done.stdout + done.stderr
    assert outcomes(tmp_path / "out") == {"a": "pass", "b": "pass"}
