# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The README's Python runs as it stands there, on a model and images of the reader's own."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import row_classifier, row_images, six_rows, small_network, write_images
from modules import ROOT
from torch import nn

from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Labelled
from lmr_guard.release.records import Outcome
from lmr_guard.release.report import Report

README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


class Normalising(nn.Module):
    """The network of rows with its normalisation inside, as many networks in memory have it."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(pixels)
        return logits


def run(snippet: str, **names: object) -> dict[str, Any]:
    """All names after the snippet has run among those that the reader has already."""
    space: dict[str, Any] = dict(names)
    exec(compile(snippet, "README.md", "exec"), space)  # noqa: S102 - the README is ours
    return space


def test_there_are_two_snippets_and_the_first_is_short() -> None:
    guarding, _ = SNIPPETS
    assert len([line for line in guarding.splitlines() if line.strip()]) <= 10


@pytest.mark.slow
def test_the_first_one_guards_a_model_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = row_images(840, seed=1, rows=6)
    network = Normalising(row_classifier(six_rows, rows=6))
    space = run(SNIPPETS[0], network=network, images=data.images, labels=data.labels)
    report = space["report"]
    assert isinstance(report, Report)
    assert report.verdict is Outcome.PASS, report
    assert report.model == "memory:Normalising"
    published = {f"{variant.name}.onnx" for variant in report.published}
    assert {path.name for path in (tmp_path / "release").iterdir()} == {
        "report.json",
        "report.html",
        *published,
    }
    assert {"float32.onnx", "int8.onnx"} <= published
    assert capsys.readouterr().out.startswith("PASS ['float32', 'int8'")


def test_the_second_one_repairs_before_another_tool_compresses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (1200, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.arange(1200) % 3
    pixels[torch.arange(1200), labels] //= 8
    write_images(Labelled(pixels, labels, ("a", "b", "c")), tmp_path / "images")
    network = trained(small_network(), pixels.float() / 255, labels)
    space = run(SNIPPETS[1], network=network)
    assert isinstance(space["model"], nn.Sequential)
    assert space["receipt"].hook == "pre_quantize"


def trained(network: nn.Sequential, pixels: torch.Tensor, labels: torch.Tensor) -> nn.Sequential:
    """A minute's work of an engineer: good enough to be recognised as a model of these images."""
    optimiser = torch.optim.Adam(network.parameters(), lr=0.05)
    normalised = (pixels - 0.5) / 0.25
    for _ in range(60):
        loss = nn.functional.cross_entropy(network(normalised[:256]), labels[:256])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network.eval()
