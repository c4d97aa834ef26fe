# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What an index says, before anything that it names is opened."""

import json
from pathlib import Path

import pytest

from lmr_guard.errors import InputError
from lmr_guard.received.shards import indexed, require_whole


def test_an_index_lists_its_files(tmp_path: Path) -> None:
    (tmp_path / "one").touch()
    (tmp_path / "two").touch()
    index = tmp_path / "index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one", "b": "two", "c": "one"}}))
    assert indexed(index) == {"one": ["a", "c"], "two": ["b"]}


@pytest.mark.parametrize(
    "text", ["{}", "[1]", "no JSON", '{"weight_map": {}}', '{"weight_map": 3}']
)
def test_other_json_is_no_index(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    assert indexed(tmp_path / "a.json") is None
    assert indexed(tmp_path / "a.safetensors") is None


@pytest.mark.parametrize(
    "name", ["model-00001-of-00001.safetensors", "resnet-50.pt", "a-1-of-b.pt"]
)
def test_a_single_file_is_whole(tmp_path: Path, name: str) -> None:
    require_whole(tmp_path / name)


def test_one_of_several_is_not(tmp_path: Path) -> None:
    told = "part 1 of 3; give the index 'pytorch_model.bin.index.json', which is not beside it"
    with pytest.raises(InputError, match=told):
        require_whole(tmp_path / "pytorch_model-00001-of-00003.bin")


def test_a_name_that_no_file_can_have_is_missing(tmp_path: Path) -> None:
    index = tmp_path / "index.json"
    index.write_text(json.dumps({"weight_map": {"a": "x" * 5000}}))
    with pytest.raises(InputError, match=r"names beside it, got none of x{200}: ") as refused:
        indexed(index)
    assert len(str(refused.value)) < 1000
