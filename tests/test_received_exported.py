# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Programs of torch.export: read only where their maker is trusted, and then like ONNX files."""

from pathlib import Path

import pytest
import torch
from factories import row_classifier
from safetensors.torch import save_file

from lmr_guard.classifier import Classifier
from lmr_guard.cli import main
from lmr_guard.errors import ConfigError, InputError
from lmr_guard.files import sha256_of
from lmr_guard.onnxfile.fileformat import FileFormat
from lmr_guard.received import inputs

NORMALISED = FileFormat(mean=(0.3,), std=(0.3,), trusted=True)
NOWHERE = Path("nowhere")


@pytest.fixture(scope="module")
def trained() -> Classifier:
    return row_classifier()


@pytest.fixture(params=[True, False], ids=["free batch", "fixed batch"])
def program(tmp_path: Path, trained: Classifier, request: pytest.FixtureRequest) -> Path:
    """Takes normalised images."""
    shapes = ({0: torch.export.Dim("batch")},) if request.param else None
    example = (torch.rand(3, 1, 4, 4),)
    torch.export.save(
        torch.export.export(trained.network, example, dynamic_shapes=shapes), tmp_path / "m.pt2"
    )
    return tmp_path / "m.pt2"


def test_a_trusted_program_comes_back_as_the_network_it_was(
    program: Path, trained: Classifier
) -> None:
    received = inputs.model(program, NORMALISED, NOWHERE)
    pixels = torch.rand(5, 1, 4, 4)
    assert torch.allclose(received.classifier(pixels), trained(pixels), atol=1e-5)
    assert (received.name, received.sha256) == (str(program), sha256_of(program))
    assert received.origin["architecture"] == "torch.export"
    assert received.file is None


def test_without_trust_nothing_of_it_is_read(
    program: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.export, "load", None)  # Whoever calls it, fails.
    for said in (None, FileFormat()):
        with pytest.raises(InputError, match=r"can run what is in it: '.*m.pt2'; give its weig"):
            inputs.model(program, said, NOWHERE)
    assert main(["scan", str(program), "--clean", "nowhere"]) == 5
    assert capsys.readouterr().err.count("\n") == 1


def test_trust_is_for_such_programs_alone(tmp_path: Path, trained: Classifier) -> None:
    save_file(trained.network.state_dict(), tmp_path / "m.safetensors")
    words = ["scan", str(tmp_path / "m.safetensors"), "--clean", "nowhere", "--trust"]
    assert main(words) == 4
    assert main([*words, "--arch", "factories:row_architecture"]) == 4


def test_a_file_that_is_none_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "m.pt2").write_bytes(b"PK\x03\x04 no program")
    with pytest.raises(InputError, match=r"an exported program, got a file that does not read"):
        inputs.model(tmp_path / "m.pt2", NORMALISED, NOWHERE)
    with pytest.raises(InputError, match=r"expected an exported program, got no such file"):
        inputs.model(tmp_path / "none.pt2", NORMALISED, NOWHERE)


class Sums(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1).cumsum(dim=1)[:, :3]


def test_a_program_that_is_no_classifier_is_told(tmp_path: Path) -> None:
    program = torch.export.export(Sums(), (torch.rand(2, 1, 4, 4),))
    torch.export.save(program, tmp_path / "m.pt2")
    with pytest.raises((ConfigError, InputError)) as refused:
        inputs.model(tmp_path / "m.pt2", NORMALISED, NOWHERE)
    assert "\n" not in str(refused.value)
