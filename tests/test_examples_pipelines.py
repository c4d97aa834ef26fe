# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The files for pipelines meet their hosts' schemas, and what they run is run on a real network."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import pytest
from check_jsonschema.builtin_schemas import get_builtin_schema
from jsonschema import Draft7Validator
from modules import ROOT
from ruamel.yaml import YAML

from lmr_guard.cli import cli

FOLDER = ROOT / "examples" / "pipelines"
ACTION = ROOT / "action.yml"
ARCHITECTURE = "factories:row_architecture"
HOSTS = {
    ACTION: "vendor.github-actions",
    FOLDER / "github.yml": "vendor.github-workflows",
    FOLDER / "gitlab-ci.yml": "vendor.gitlab-ci",
}


def parsed(path: Path) -> Any:  # noqa: ANN401 - whatever YAML holds
    return YAML(typ="safe", pure=True).load(path)


def environment(place: Path, **more: str) -> dict[str, str]:
    """Of a runner: our commands are found, and so is the architecture of the tests."""
    found = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    tests = f"{ROOT / 'tests'}"
    told = {"GITHUB_OUTPUT": f"{place / 'outputs'}", "GITHUB_STEP_SUMMARY": f"{place / 'summary'}"}
    return {**os.environ, "PATH": found, "PYTHONPATH": tests, **told, **more}


def acted(place: Path, files: Path, **inputs: str) -> tuple[int, dict[str, str], str]:
    """Exit code, outputs and step summary of the action's script in an empty folder."""
    (step,) = (step for step in parsed(ACTION)["runs"]["steps"] if step.get("id") == "guard")
    defaults = {name.upper(): str(one.get("default", "")) for name, one in _inputs().items()}
    asked = {
        **defaults,
        "MODEL": f"{files / 'model.safetensors'}",
        "ARCH": ARCHITECTURE,
        "CLEAN": f"{files / 'clean'}",
        **inputs,
    }
    assert set(step["env"]) <= set(asked)
    shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
    done = subprocess.run(
        shell, cwd=place, env=environment(place, **asked), check=False, capture_output=True
    )
    outputs = dict(line.split("=", 1) for line in (place / "outputs").read_text().splitlines())
    return done.returncode, outputs, (place / "summary").read_text()


def _inputs() -> dict[str, Any]:
    found: dict[str, Any] = parsed(ACTION)["inputs"]
    return found


@pytest.mark.parametrize("path", HOSTS, ids=lambda path: path.name)
def test_each_file_meets_the_schema_of_its_host(path: Path) -> None:
    validator = Draft7Validator(get_builtin_schema(HOSTS[path]))
    assert [problem.message for problem in validator.iter_errors(parsed(path))] == []
    broken = {**parsed(path), "runs": {"using": "hope"}, "guard": 7, "jobs": []}
    assert list(validator.iter_errors(broken))


def test_no_script_of_the_action_holds_an_input() -> None:
    for step in parsed(ACTION)["runs"]["steps"]:
        assert "${{" not in step["run"]


@pytest.mark.parametrize(
    ("audit", "code", "word"), [("--audit-steps 0", 0, "pass"), ("", 3, "incomplete")]
)
def test_the_action_publishes_what_passes_and_tells_the_verdict(
    tmp_path: Path, row_files: Path, audit: str, code: int, word: str
) -> None:
    # Three classes are too few for a search, which the audit of the second run says.
    more = f"--trigger {row_files / 'patch.png'}@3,3:2 --variants float32,int8 --threads 1 {audit}"
    got, outputs, summary = acted(tmp_path, row_files, ARGUMENTS=more)
    assert got == code
    out = tmp_path / "lmr-guard-release"
    report = json.loads((out / "report.json").read_text())
    assert outputs == {"verdict": word, "sarif": "lmr-guard.sarif"}
    assert report["verdict"] == word
    assert sorted(path.name for path in out.glob("*.onnx")) == (
        ["float32.onnx", "int8.onnx"] if code == 0 else []
    )
    assert summary.startswith(f"### lmr-guard: {word}\n")
    assert "report: " in summary
    results = json.loads((tmp_path / "lmr-guard.sarif").read_text())["runs"][0]["results"]
    assert bool(results) == (code != 0)


def test_a_run_without_evidence_fails_the_step(tmp_path: Path, row_files: Path) -> None:
    code, outputs, summary = acted(tmp_path, row_files, ARGUMENTS="--threads 1")
    assert code == 3
    assert outputs == {"verdict": "incomplete"}
    assert summary.startswith("### lmr-guard: incomplete\n")


def require_options(words: Sequence[str]) -> None:
    """Fails where a command line of ours has an option that its command does not know."""
    command = cli.get_command(click.Context(cli), words[1])
    assert command is not None
    known = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
    assert {word for word in words if word.startswith("--")} <= known


def test_an_input_is_never_run(tmp_path: Path, row_files: Path) -> None:
    hostile = "model.safetensors; touch run $(touch run) `touch run`"
    code, outputs, summary = acted(tmp_path, row_files, MODEL=hostile, ARGUMENTS="; touch run")
    assert code in (4, 5)
    assert outputs == {"verdict": ""}
    assert summary.startswith(f"### lmr-guard: no verdict, exit code {code}\n")
    assert not (tmp_path / "run").exists()


def test_every_command_of_gitlab_s_jobs_has_options_that_there_are() -> None:
    jobs = parsed(FOLDER / "gitlab-ci.yml")
    lines = [
        line
        for job in jobs.values()
        for line in (*job["script"], *job.get("after_script", ()))
        if line.startswith("lmr-guard")
    ]
    assert [shlex.split(line)[1] for line in lines] == ["run", "attest", "admit"]
    for line in lines:
        require_options(shlex.split(line))


def test_the_readme_names_every_file() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(path.name in text for path in HOSTS)


def test_every_command_of_dvc_s_stages_has_options_that_there_are() -> None:
    stages = parsed(FOLDER / "dvc" / "dvc.yaml")["stages"]
    lines = [line for stage in stages.values() for line in stage["cmd"].split("&&")]
    words = [line.split() for line in lines if line.startswith("lmr-guard")]
    assert [each[1] for each in words] == ["run", "attest", "admit"]
    for each in words:
        require_options(each)
    used = set(re.findall(r"\$\{(\w+)\}", (FOLDER / "dvc" / "dvc.yaml").read_text()))
    assert used == set(parsed(FOLDER / "dvc" / "params.yaml"))


OWN_HOSTS = ("dvc/dvc.yaml", "dagster_check.py", "kfp_component.py", "airflow_dag.py")


@pytest.mark.parametrize("name", OWN_HOSTS)
def test_an_example_is_short_and_named_where_users_look(name: str) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    without = re.sub(r'""".*?"""', "", text, flags=re.DOTALL)
    own = [line for line in without.splitlines() if line.strip() and line.strip()[0] != "#"]
    assert 0 < len(own) <= 25
    assert f"`{name}`" in (FOLDER / "README.md").read_text(encoding="utf-8")
    assert name.split("/", maxsplit=1)[0] in (ROOT / "README.md").read_text(encoding="utf-8")


NAMES = {
    "airflow": "Airflow",
    "dagster": "Dagster",
    "dvc": "DVC",
    "kfp": "Kubeflow Pipelines",
    "mlflow": "MLflow",
    "nncf": "NNCF",
    "olive": "Olive",
    "ray": "Ray",
    "torchao": "torchao PT2E",
}


def test_the_record_of_the_hosts_is_of_the_versions_that_are_named() -> None:
    """`make hosts` writes it; what the README says was tried is what it ran, all of it passed."""
    record = json.loads((ROOT / "docs" / "hosts.json").read_text(encoding="utf-8"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    pins = f"{(ROOT / 'constraints.txt').read_text()}\n{(ROOT / 'Makefile').read_text()}"
    assert set(record["hosts"]) == set(NAMES)
    for host, told in record["hosts"].items():
        assert told["passed"] == told["tests"] > 0, host
        assert f"| {NAMES[host]} | {told['version']} |" in readme, host
        assert re.search(rf"{host}\S*=={re.escape(told['version'])}\b", pins), host
