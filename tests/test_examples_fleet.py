# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What schedulers take: manifests that meet their schemas, and the command lines in them, run."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from fleets import environment, fleet_files
from modules import ROOT
from ruamel.yaml import YAML

from lmr_guard.cli import main
from lmr_guard.errors import ExitCode

FOLDER = ROOT / "examples" / "fleet"
KUBERNETES = "1.37"


def jobs() -> list[dict[str, Any]]:
    """The sharded Job and the one that merges."""
    return list(YAML(typ="safe", pure=True).load_all(FOLDER / "kubernetes.yml"))


def test_the_jobs_meet_the_schemas_of_kubernetes() -> None:
    for job in jobs():
        kubernetes_validate.validate(job, KUBERNETES, strict=True)
        wrong = copy.deepcopy(job)
        wrong["spec"]["completionMod"] = "Indexed"
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(wrong, KUBERNETES, strict=True)


def test_as_many_shards_as_pods_and_no_refusal_is_tried_again() -> None:
    sharded, _ = jobs()
    spec = sharded["spec"]
    assert words(sharded)[-1] == f"kubernetes/{spec['completions']}"
    _, refused = spec["podFailurePolicy"]["rules"]
    final = {ExitCode.REFUSED, ExitCode.USAGE, ExitCode.UNSAFE_INPUT}
    assert set(refused["onExitCodes"]["values"]) == final


def words(job: dict[str, Any], plan: Path | None = None, out: Path | None = None) -> list[str]:
    """The command line of a Job, for other places."""
    (container,) = job["spec"]["template"]["spec"]["containers"]
    found: list[str] = [*container["command"], *container["args"]]
    places = {"/fleet/plan.toml": str(plan), "/fleet/out": str(out)}
    return [places.get(word, word) for word in found]


@pytest.mark.long
def test_the_shards_of_either_scheduler_are_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, out = tmp_path / "home", tmp_path / "out"
    home.mkdir()
    plan = fleet_files(home, ["a", "b"])
    found = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    task = {"PATH": found, "SLURM_ARRAY_TASK_ID": "1", "SLURM_CPUS_PER_TASK": "1"}
    script = ["bash", str(FOLDER / "slurm.sh"), str(plan), str(out)]
    syntax = [script[0], "-n", script[1]]
    assert subprocess.call(syntax) == 0
    assert subprocess.call(script, env=environment() | task) == ExitCode.PASSED
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    sharded, merge = (words(job, plan, out)[1:] for job in jobs())
    assert main([*sharded, "--threads", "1"]) == ExitCode.PASSED
    assert sorted(path.name for path in (out / "units").iterdir()) == ["a", "b"]
    assert main(merge) == ExitCode.PASSED
    assert json.loads((out / "fleet.json").read_text())["counts"] == {"pass": 2}
