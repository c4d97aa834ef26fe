# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The lab of ONNX files: small ones are really written and read back, and told apart."""

from pathlib import Path

import pytest
import torch
from factories import row_classifier, row_images, row_network
from torch import nn

from examples.lab.kit.records import Record, Store
from examples.lab.onnxfiles import __main__ as lab
from examples.lab.onnxfiles import routes
from examples.lab.onnxfiles.norms import with_norms
from examples.lab.onnxfiles.subjects import SUBJECTS


def taken(out: Path, only: str) -> dict[str, Record]:
    """The records of some files, by name."""
    assert lab.main(["run", "--tiny", "--only", only, "--out", str(out)]) == 0
    return {str(record["name"]): record for record in Store(out).read()}


def test_what_keras_wrote_comes_back_and_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "files.jsonl"
    found = taken(out, "Keras")
    assert {record["run"] for record in found.values()} == {"yes"}
    assert {record["groups"] for record in found.values()} == {2}
    assert len(found) == 2
    assert lab.main(["show", "--out", str(out)]) == 0
    assert (
        "2 files: 2 come back, 0 are audited only, 0 are told why neither"
        in capsys.readouterr().out
    )


def test_a_quantised_file_is_audited_only(tmp_path: Path) -> None:
    (record,) = taken(tmp_path / "files.jsonl", "QDQ").values()
    assert record["verify"] == "opens"
    assert record["run"].startswith("exit 4: expected an ONNX file that can be read back")


def test_the_committed_records_are_of_all_files() -> None:
    records = Store(lab.RESULTS).read()
    assert {record["name"] for record in records} == {subject.name for subject in SUBJECTS}
    assert all(record["environment"]["exporters"]["onnx2torch"] for record in records)


def test_tiny_records_are_no_results() -> None:
    assert lab.main(["run", "--tiny"]) == 4


# --- one network by three routes ----------------------------------------------------------------


def test_a_norm_that_is_put_back_changes_nothing_until_it_is_trained() -> None:
    bare = row_classifier(lambda: row_network(norm=False))
    images = row_images(60)
    model, count = with_norms(bare, images)
    assert count == 1
    assert torch.allclose(model(images.pixels), bare(images.pixels), atol=1e-4)
    # In train mode it goes by the batch, of which these are the very statistics.
    assert torch.allclose(model.train()(images.pixels), bare(images.pixels), atol=1e-2)
    (norm,) = (m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    assert norm.weight.requires_grad
    assert not any(isinstance(m, nn.BatchNorm2d) for m in bare.modules())


def test_networks_with_norms_and_heads_stay_as_they_are() -> None:
    images = row_images(60)
    assert with_norms(row_classifier(), images)[1] == 0
    convolution = row_classifier(lambda: row_network(norm=False, head="conv"))
    assert with_norms(convolution, images)[1] == 1


@pytest.mark.long
def test_a_route_is_taken_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "routes.jsonl"
    only = ["--tiny", "--only", "s10 file with norm", "--out", str(out)]
    assert routes.main(["run", *only]) == 0
    (record,) = Store(out).read()
    assert set(record["forms"]) == {"float32", "int8", "l1-0.2"}
    assert routes.main(["show", "--out", str(out)]) == 0
    assert "file with norm: " in capsys.readouterr().out


def test_the_committed_routes_are_of_every_network() -> None:
    records = Store(routes.RESULTS).read()
    assert {record["name"] for record in records} == {piece.name for piece in routes.PIECES}
    assert not any(record["settings"]["tiny"] for record in records)
