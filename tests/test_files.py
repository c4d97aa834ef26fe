# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Files and their digests: complete at their place, or not at all."""

import hashlib
from pathlib import Path

import pytest
from factories import room_for, row_classifier, same
from safetensors.torch import load_file
from torch import nn

from lmr_guard.errors import InputError, StageError
from lmr_guard.files import Artifact, atomic, save_weights, sha256_of


def test_atomic_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    with pytest.raises(TypeError, match="bytes-like"), atomic(path) as file:
        file.write("half")  # type: ignore[call-overload]
    assert path.read_bytes() == b"old"
    with atomic(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_no_room_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    with (
        room_for(512),
        pytest.raises(StageError, match=r"expected to write .*f, got File too large; choose"),
        atomic(tmp_path / "f") as file,
    ):
        file.write(bytes(5000))
    assert list(tmp_path.iterdir()) == []


def test_a_digest_is_that_of_the_whole_file(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    (tmp_path / "f").write_bytes(data)
    assert sha256_of(tmp_path / "f") == hashlib.sha256(data).hexdigest()
    found = Artifact.of(tmp_path / "f")
    assert found == Artifact(tmp_path / "f", hashlib.sha256(data).hexdigest(), len(data))


def test_what_is_no_file_has_no_digest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a file, got a folder: "):
        sha256_of(tmp_path)
    with pytest.raises(InputError, match=r"expected a file, got no such file: .*absent"):
        Artifact.of(tmp_path / "absent")


@pytest.mark.parametrize("bare", [True, False], ids=["network", "classifier"])
def test_saved_weights_are_the_network_s_and_replace_a_file(bare: bool, tmp_path: Path) -> None:
    classifier, path = row_classifier(), tmp_path / "m.safetensors"
    path.write_bytes(b"old")
    save_weights(classifier.network if bare else classifier, path)
    assert same(load_file(path), classifier.network.state_dict())
    assert list(tmp_path.iterdir()) == [path]


def test_weights_that_share_memory_or_lie_crosswise_are_saved(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    network[1].weight = network[0].weight
    network[0].weight.data = network[0].weight.data.T
    save_weights(network, tmp_path / "m.safetensors")
    assert same(load_file(tmp_path / "m.safetensors"), network.state_dict())


def test_weights_that_cannot_be_written_are_one_line(tmp_path: Path) -> None:
    with room_for(512), pytest.raises(StageError, match=r"expected to write .*, got File too larg"):
        save_weights(row_classifier(), tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []
