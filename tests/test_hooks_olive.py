# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Olive's own workflows with our pass in them: what passes is written, what does not stops."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from factories import row_classifier

from lmr_guard.errors import ExitCode
from lmr_guard.files import sha256_of
from lmr_guard.hooks.olive import AuditRefused, package_config
from lmr_guard.onnxfile.export import export_onnx
from lmr_guard.release.report import Report

pytestmark = [
    pytest.mark.slow,
    # Of Olive, torch and others about their own code.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(row_classifier(), tmp_path_factory.mktemp("olive") / "network.onnx").path


def workflow(place: Path, network: Path, files: Path, **guard: object) -> dict[str, Any]:
    step = {
        "type": "LmrGuardVerify",
        "clean": f"{files / 'clean'}",
        "triggers": [f"{files / 'patch.png'}@3,3:2"],
        "reference": f"{network}",
        "report": f"{place / 'report.json'}",
        **guard,
    }
    return {
        "input_model": {"type": "ONNXModel", "model_path": f"{network}"},
        "passes": {"quantise": {"type": "OnnxDynamicQuantization"}, "guard": step},
        "output_dir": f"{place / 'out'}",
        "cache_dir": f"{place / 'cache'}",
    }


def models(place: Path) -> list[Path]:
    return sorted((place / "out").rglob("*.onnx"))


def test_a_workflow_writes_the_very_file_that_passed(
    network: Path, row_files: Path, tmp_path: Path
) -> None:
    import olive

    olive.run(workflow(tmp_path, network, row_files), package_config=package_config())
    report = Report.read(tmp_path / "report.json")
    (written,) = models(tmp_path)
    assert report.exit_code == 0
    assert sha256_of(written) == report.variants[0].sha256 != sha256_of(network)


def test_a_workflow_stops_where_the_audit_does_not_pass(
    network: Path, row_files: Path, tmp_path: Path
) -> None:
    import olive

    policy = tmp_path / "policy.toml"
    policy.write_text("max_asr = 0.0001\n")
    config = workflow(tmp_path, network, row_files, policy=f"{policy}")
    with pytest.raises(AuditRefused, match="passes the audit, got incomplete") as refusal:
        olive.run(config, package_config=package_config())
    assert refusal.value.exit_code is ExitCode.INCOMPLETE
    assert models(tmp_path) == []
    assert Report.read(tmp_path / "report.json").exit_code == 3


def test_it_is_asked_anew_though_olive_remembers_passes(
    network: Path, row_files: Path, tmp_path: Path
) -> None:
    """The policy changes under its name; the same cache must not answer for it."""
    import olive

    policy = tmp_path / "policy.toml"
    policy.write_text("max_asr = 0.05\n")
    config = workflow(tmp_path, network, row_files, policy=f"{policy}")
    olive.run(config, package_config=package_config())
    policy.write_text("max_asr = 0.0001\n")
    with pytest.raises(AuditRefused, match="got incomplete"):
        olive.run(config, package_config=package_config())


def test_a_candidate_can_be_dropped_instead(network: Path, row_files: Path, tmp_path: Path) -> None:
    """What a search wants; without one Olive then answers with nothing."""
    import olive

    (tmp_path / "policy.toml").write_text("max_asr = 0.0001\n")
    config = workflow(
        tmp_path, network, row_files, policy=f"{tmp_path / 'policy.toml'}", on_refusal="drop"
    )
    olive.run(config, package_config=package_config())
    assert models(tmp_path) == []
    assert Report.read(tmp_path / "report.json").exit_code == 3


@pytest.mark.parametrize(
    ("guard", "told"),
    [
        ({"triggers": []}, "expected evidence"),
        ({"clean": "nowhere"}, "expected"),
        ({"triggers": ["x"]}, "expected"),
    ],
)
def test_what_cannot_be_audited_stops_the_workflow_too(
    guard: dict[str, Any], told: str, network: Path, row_files: Path, tmp_path: Path
) -> None:
    import olive

    with pytest.raises(ValueError, match=told):
        olive.run(workflow(tmp_path, network, row_files, **guard), package_config=package_config())
    assert models(tmp_path) == []


@pytest.mark.parametrize("limit", [pytest.param(0.05, marks=pytest.mark.long), 0.0001])
def test_the_command_line_of_olive_takes_both_files(
    limit: float, network: Path, row_files: Path, tmp_path: Path
) -> None:
    (tmp_path / "policy.toml").write_text(f"max_asr = {limit}\n")
    config = workflow(tmp_path, network, row_files, policy="policy.toml")
    (tmp_path / "run.json").write_text(json.dumps(config))
    (tmp_path / "package.json").write_text(json.dumps(package_config()))
    command = [sys.executable, "-m", "olive", "run", "--config", "run.json"]
    done = subprocess.run(
        [*command, "--package-config", "package.json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    passes = limit > 0.001
    assert (done.returncode == 0) == passes, done.stdout + done.stderr
    assert ("AuditRefused: expected a model that passes" in done.stderr) != passes
    assert len(models(tmp_path)) == int(passes)
    assert (Report.read(tmp_path / "report.json").exit_code == 0) == passes
