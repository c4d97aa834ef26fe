# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The Dagster example, materialised by Dagster in this process on a real network."""

from pathlib import Path

import dagster as dg
import pytest
import torch

from examples.pipelines import dagster_check as example
from lmr_guard.compress.recipes import parse
from lmr_guard.evidence import Patch
from lmr_guard.files import sha256_of
from lmr_guard.release.policy import Policy
from lmr_guard.settings import Settings

# Of Dagster about its own code.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def situated(row_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a user writes at the top of the file, for the small network."""
    values = {
        "MODEL": str(row_files / "model.safetensors"),
        "ARCH": "factories:row_architecture",
        "CLEAN": str(row_files / "clean"),
        "OUT": tmp_path / "release",
        "TRIGGERS": [Patch(torch.ones(1, 1, 1), x=3, y=3, target=2)],
    }
    for name, value in values.items():
        monkeypatch.setattr(example, name, value)
    return tmp_path / "release"


def materialised(monkeypatch: pytest.MonkeyPatch, policy: Policy) -> dg.ExecuteInProcessResult:
    settings = Settings(
        recipes=parse(["float32", "int8"]), listening=None, threads=1, policy=policy
    )
    monkeypatch.setattr(example, "SETTINGS", settings)
    assets = [example.release, example.passed_the_guard, example.deployed]
    with dg.DagsterInstance.ephemeral() as instance:
        return dg.materialize(assets, instance=instance, raise_on_error=False)


def test_what_passes_goes_on(situated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = materialised(monkeypatch, Policy())
    assert result.success
    (check,) = result.get_asset_check_evaluations()
    assert check.passed
    assert check.metadata["upper_asr_int8"].value < 0.05
    assert str(check.metadata["summary"].value).startswith("<Report PASS: 2 of 2 variants")
    assert result.output_for_node("deployed") == sha256_of(situated / "int8.onnx")


def test_what_is_refused_blocks_all_downstream(
    situated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A limit that so few images cannot show to be kept.
    result = materialised(monkeypatch, Policy(max_asr=0.0001))
    assert not result.success
    (check,) = result.get_asset_check_evaluations()
    assert (check.passed, check.blocking) == (False, True)
    assert check.metadata["lmr_guard_verdict"].value == 1
    ran = {event.asset_key.to_user_string() for event in result.get_asset_materialization_events()}
    assert ran == {"release"}
    assert {path.name for path in situated.iterdir()} == {"report.html", "report.json"}
