# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The doctor: this machine is well, and what is wrong with others is seen."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from modules import ROOT

from lmr_guard.doctor import State, examine

PROBE = """
from pathlib import Path
from lmr_guard.doctor import State, examine
for found in examine(Path()):
    if found.state is not State.FINE:
        print(found.about, found.state, found.told)
"""


def elsewhere(place: Path) -> str:
    """What is odd or bad in a process that finds ``place`` before everything else."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(place), "COVERAGE_PROCESS_START": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_this_machine_is_well(tmp_path: Path) -> None:
    found = list(examine(tmp_path))
    assert [each for each in found if each.state is State.BAD] == []
    told = {each.about: each.told for each in found}
    assert told["session"].startswith("ran on CPUExecutionProvider; built with ")
    assert f"torch {torch.__version__}" in told["versions"]
    assert f"at {tmp_path}" in told["disk for results"]
    assert ("none" in told["gpu"]) is not torch.cuda.is_available()


def test_packages_that_do_not_load_and_two_runtimes_in_one_folder_are_seen(tmp_path: Path) -> None:
    """All in one process, for torch is loaded anew in each; nothing else is told."""
    for name in ("onnxruntime", "onnxruntime_gpu"):
        metadata = tmp_path / f"{name}-1.0.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    for module in ("onnxruntime", "torch_pruning"):
        (tmp_path / f"{module}.py").write_text("raise RuntimeError('damaged\\nin two lines')\n")
    pruning, runtimes, session = elsewhere(tmp_path).splitlines()
    assert runtimes.startswith(
        "onnxruntime bad expected one of onnxruntime and onnxruntime-gpu, got both"
    )
    for about, line in (("torch_pruning", pruning), ("session", session)):
        assert line.startswith(f"{about} bad expected ")
        assert "RuntimeError: damaged" in line


def test_more_threads_than_cores_are_told(tmp_path: Path) -> None:
    before, many = torch.get_num_threads(), 2 * (os.cpu_count() or 1)
    torch.set_num_threads(many)
    try:
        found = {each.about: each for each in examine(tmp_path)}
    finally:
        torch.set_num_threads(before)
    assert found["threads"].state is State.ODD
    assert found["threads"].told.startswith(f"torch uses {many}, the process may run on ")


def test_a_folder_that_is_not_there_is_bad(tmp_path: Path) -> None:
    found = {each.about: each for each in examine(tmp_path / "none")}
    assert found["disk for results"].state is State.BAD
    assert "expected a folder, got No such file" in found["disk for results"].told
