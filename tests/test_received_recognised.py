# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Files that are no checkpoints are called what they are."""

from pathlib import Path

import pytest
import torch
from factories import small_network, write_onnx
from safetensors.torch import save_file

from lmr_guard.received.recognised import other_kind

BEGINNINGS = {
    b"version https://git-lfs.github.com/spec/v1\noid": "a git-lfs pointer",
    b"\n<!doctype html>": "a web page",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"GGUF\x03\0\0\0": "a GGUF file",
    b"\x93NUMPY\x01\0": "a NumPy array",
    b"\x1f\x8b\x08": "a gzip archive",
    b"\x1c\0\0\0TFL3": "a TensorFlow Lite file",
    b"\x89PNG\r\n": "a picture",
    b' {"architectures": ["ResNet"]}': "a JSON file",
}


@pytest.mark.parametrize("begin", BEGINNINGS)
def test_kinds(tmp_path: Path, begin: bytes) -> None:
    (tmp_path / "model.bin").write_bytes(begin)
    told = other_kind(tmp_path / "model.bin")
    assert told is not None
    assert told.startswith(BEGINNINGS[begin])


def test_an_onnx_file_is_told_by_its_content_and_by_its_name(tmp_path: Path) -> None:
    write_onnx(tmp_path / "model.bin")
    assert other_kind(tmp_path / "model.bin") == "an ONNX file"
    (tmp_path / "cut.onnx").write_bytes(b"\0")
    assert other_kind(tmp_path / "cut.onnx") == "an ONNX file, by its name"


def test_checkpoints_are_no_other_kind(tmp_path: Path) -> None:
    weights = small_network().state_dict()
    torch.save(weights, tmp_path / "new.pt")
    torch.save(weights, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_file(weights, tmp_path / "a.safetensors")
    for name in ("new.pt", "old.pt", "a.safetensors"):
        assert other_kind(tmp_path / name) is None, name
    (tmp_path / "a.json").write_text("{" * 9999)
    assert other_kind(tmp_path / "a.json") is None
