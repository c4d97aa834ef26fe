# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The examples of the hooks run as a user would run them, only shorter."""

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from modules import ROOT

FOLDER = ROOT / "examples" / "hooks"
EXAMPLES = ("gated_export", "prune_with_torch_pruning", "quantize_with_onnxruntime")

pytestmark = pytest.mark.slow


def run(name: str, out: Path) -> Any:  # noqa: ANN401 - each example returns what suits it
    """What the example's main returns; torch's own generator is as before."""
    state = torch.get_rng_state()
    found = import_module(f"examples.hooks.{name}").main(["--tiny", "--out", str(out)])
    assert torch.equal(torch.get_rng_state(), state)
    return found


@pytest.mark.long
@pytest.mark.parametrize("name", ["prune_with_torch_pruning", "quantize_with_onnxruntime"])
def test_the_backdoor_survives_compression_but_not_the_hook(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without, guarded = run(name, tmp_path)
    assert without.lower() > 0.8
    assert guarded.upper() < 0.1
    printed = capsys.readouterr().out
    assert "class 3 repelled (" in printed
    assert "no verdict: no trigger was tried" in printed


def test_only_audited_weights_are_exported(tmp_path: Path) -> None:
    assert run("gated_export", tmp_path) == [
        "refused, exit code 3",
        "refused, exit code 1",
        "refused, exit code 3",
        "exported",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["repaired-its-audit.onnx"]


def test_the_readme_names_every_example_and_no_other() -> None:
    named = re.findall(
        r"python -m examples\.hooks\.(\w+)", (FOLDER / "README.md").read_text(encoding="utf-8")
    )
    assert set(named) == set(EXAMPLES)
    assert all((FOLDER / f"{name}.py").is_file() for name in named)
