# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The examples for hosts that live in environments of their own, run by these: ``make hosts``."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from modules import ROOT

pytestmark = [pytest.mark.hosts, pytest.mark.slow]

FOLDER = ROOT / "examples" / "pipelines"
TOOLS = ROOT / ".make" / "hosts"
ARCH = "factories:row_architecture"
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def place(row_files: Path, tmp_path: Path) -> Path:
    """Where a user works: a model, clean images, a patch, a policy."""
    shutil.copytree(row_files, tmp_path, dirs_exist_ok=True)
    (tmp_path / "policy.toml").write_text("max_asr = 0.05\n")
    return tmp_path


@pytest.fixture
def run(place: Path) -> Run:
    """Runs a program of a host's environment, in which ``lmr-guard`` is on the path."""

    def started(host: str, program: str, *words: str) -> subprocess.CompletedProcess[str]:
        own = TOOLS / host / "bin"
        assert (own / program).exists(), f"no {own / program}: make hosts"
        found = (str(own), str(Path(sys.executable).parent), os.environ["PATH"])
        environment = {
            **os.environ,
            "PATH": os.pathsep.join(found),
            "PYTHONPATH": f"{ROOT / 'tests'}",
            "OMP_NUM_THREADS": "1",
            "AIRFLOW_HOME": f"{place / 'airflow'}",
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DAGS_FOLDER": f"{FOLDER}",
        }
        command = [str(own / program), *words]
        return subprocess.run(
            command, cwd=place, env=environment, capture_output=True, text=True, check=False
        )

    return started


def arguments(place: Path, *, audited: bool = False) -> str:
    """Three classes are too few for a search, which an audited run says: it is incomplete."""
    search = "" if audited else "--audit-steps 0"
    patch = f"{place / 'patch.png'}@3,3:2"
    return f"--trigger {patch} --variants float32,int8 --threads 1 {search}".strip()


def published(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


REPORT = ["report.html", "report.json"]
ALL = ["float32.onnx", "int8.onnx", *REPORT]


# --- DVC ----------------------------------------------------------------------------------------


def set_dvc(place: Path, *, audited: bool) -> None:
    lines = {
        "model": "model.safetensors",
        "arch": ARCH,
        "clean": "clean",
        "policy": "policy.toml",
        "arguments": arguments(Path(), audited=audited),
    }
    text = "".join(f"{name}: {value}\n" for name, value in lines.items())
    (place / "params.yaml").write_text(text)


def test_dvc_repro_runs_the_stages_once_and_reads_the_metrics(place: Path, run: Run) -> None:
    shutil.copy(FOLDER / "dvc" / "dvc.yaml", place)
    set_dvc(place, audited=False)
    assert run("dvc", "dvc", "init", "--no-scm").returncode == 0
    done = run("dvc", "dvc", "repro")
    assert done.returncode == 0, done.stdout + done.stderr
    assert published(place / "release") == ALL
    assert (place / "deployed.onnx").read_bytes() == (place / "release/int8.onnx").read_bytes()
    shown = json.loads(run("dvc", "dvc", "metrics", "show", "--json").stdout)
    (found,) = shown[""]["data"].values()
    assert found["data"]["lmr_guard_passed"] == 1
    assert found["data"]["upper_asr_int8"] < 0.05
    again = run("dvc", "dvc", "repro")
    assert again.stdout.count("didn't change, skipping") == 3
    set_dvc(place, audited=True)
    refused = run("dvc", "dvc", "repro")
    assert refused.returncode != 0
    assert "failed to reproduce 'guard'" in refused.stderr
    assert published(place / "release") == REPORT


def test_dvc_takes_the_example_as_it_stands(place: Path, run: Run) -> None:
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(FOLDER / "dvc" / name, place)
    assert run("dvc", "dvc", "init", "--no-scm").returncode == 0
    listed = run("dvc", "dvc", "stage", "list", "--name-only")
    assert listed.stdout.split() == ["guard", "metrics", "deploy"]


# --- Kubeflow Pipelines -------------------------------------------------------------------------

KFP = """\
import json, sys
import kfp_component as example
from kfp import compiler, local
compiler.Compiler().compile(example.release_model, "pipeline.yaml")
local.init(local.SubprocessRunner(use_venv=False), pipeline_root="kfp")
task = example.guard(**json.loads(sys.argv[1]))
print(json.dumps(task.outputs["metrics"].metadata))
"""


@pytest.mark.parametrize("audited", [False, True])
def test_kfp_runs_the_component_and_fails_on_a_refusal(
    audited: bool, place: Path, run: Run
) -> None:
    shutil.copy(FOLDER / "kfp_component.py", place)
    (place / "main.py").write_text(KFP)
    given = {
        "model": f"{place / 'model.safetensors'}",
        "arch": ARCH,
        "clean": f"{place / 'clean'}",
        "arguments": arguments(place, audited=audited),
    }
    done = run("kfp", "python", "main.py", json.dumps(given))
    (out,) = (place / "kfp").glob("*/guard/release")
    assert published(out) == (REPORT if audited else ALL)
    assert "YOUR-REGISTRY/lmr-guard" in (place / "pipeline.yaml").read_text()
    if audited:
        assert done.returncode != 0
        assert "returned non-zero exit status 3" in done.stdout + done.stderr
    else:
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads(done.stdout.splitlines()[-1])["lmr_guard_passed"] == 1


# --- Airflow ------------------------------------------------------------------------------------

AIRFLOW = """\
import json, sys
import airflow_dag as example
run = example.dag.test(run_conf=json.loads(sys.argv[1]))
states = {each.task_id: str(each.state) for each in run.get_task_instances()}
print(json.dumps([str(run.state), states]))
"""


@pytest.mark.parametrize("audited", [False, True])
def test_airflow_runs_the_tasks_and_deploys_nothing_that_was_refused(
    audited: bool, place: Path, run: Run
) -> None:
    shutil.copy(FOLDER / "airflow_dag.py", place)
    (place / "main.py").write_text(AIRFLOW)
    assert run("airflow", "airflow", "db", "migrate").returncode == 0
    given = {
        "model": f"{place / 'model.safetensors'}",
        "arch": ARCH,
        "clean": f"{place / 'clean'}",
        "arguments": arguments(place, audited=audited),
        "out": f"{place / 'release'}",
    }
    done = run("airflow", "python", "main.py", json.dumps(given))
    assert done.returncode == 0, done.stdout + done.stderr
    state, tasks = json.loads(done.stdout.splitlines()[-1])
    assert published(place / "release") == (REPORT if audited else ALL)
    if audited:
        assert (state, tasks) == ("failed", {"guard": "failed", "deploy": "upstream_failed"})
    else:
        assert (state, tasks) == ("success", {"guard": "success", "deploy": "success"})
