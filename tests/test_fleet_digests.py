# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The digest of a unit changes with all that decides it, and with nothing else."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from factories import write_onnx
from fleets import DEFAULTS, units, written
from onnx import numpy_helper
from onnx.external_data_helper import convert_model_to_external_data

from lmr_guard.errors import InputError
from lmr_guard.fleet import digests
from lmr_guard.fleet.digests import Digests, code

TEXT = DEFAULTS.replace("factories", "nets.rows") + units("a")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Files of any bytes: what is in them, only a run wants to know."""
    home = tmp_path / "home"
    (home / "clean" / "x").mkdir(parents=True)
    (home / "nets").mkdir()
    for name in ("a.safetensors", "clean/x/1.png", "patch.png", "fast.toml", "nets/rows.py"):
        (home / name).write_bytes(name.encode())
    (home / "nets" / "__init__.py").touch()
    return home


def digest(home: Path, text: str = TEXT) -> str:
    return Digests().of(*read(home, text))


def read(home: Path, text: str = TEXT) -> tuple[tuple[str, ...], dict[str, Path]]:
    (unit,) = written(home, text).units
    source = code(unit.arch, home)
    assert source is not None
    return unit.words, {**unit.files, "code": source}


def test_it_depends_on_the_content_alone(place: Path, tmp_path: Path) -> None:
    before = digest(place)
    os.utime(place / "a.safetensors", (0, 0))
    assert digest(place) == before
    assert digest(Path(shutil.copytree(place, tmp_path / "copy"))) == before


CHANGES: dict[str, Callable[[Path], object]] = {
    "the model": lambda p: (p / "a.safetensors").write_bytes(b"other"),
    "an image": lambda p: (p / "clean/x/1.png").write_bytes(b"other"),
    "one more image": lambda p: (p / "clean/x/2.png").touch(),
    "an image of another name": lambda p: (p / "clean/x/1.png").rename(p / "clean/x/2.png"),
    "an image of another class": lambda p: (p / "clean/x").rename(p / "clean/y"),
    "the trigger": lambda p: (p / "patch.png").write_bytes(b"other"),
    "the policy": lambda p: (p / "fast.toml").write_bytes(b"other"),
    "the code of the network": lambda p: (p / "nets/rows.py").write_bytes(b"other"),
    "code beside it": lambda p: (p / "nets/more.py").touch(),
}


@pytest.mark.parametrize("case", CHANGES)
def test_it_changes_with_what_is_read(case: str, place: Path) -> None:
    before = digest(place)
    CHANGES[case](place)
    assert digest(place) != before


def test_it_changes_with_settings_and_versions(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {digest(place), digest(place, TEXT.replace("steps = 0", "steps = 300"))}
    monkeypatch.setattr(digests, "_PACKAGES", ("lmr-guard",))
    found.add(digest(place))
    assert len(found) == 3


def test_a_path_is_read_once_until_asked_anew(place: Path) -> None:
    held = Digests()
    before = held.of(*read(place))
    (place / "a.safetensors").write_bytes(b"other")
    assert held.of(*read(place)) == before
    assert digest(place) != before


def test_a_circle_of_links_ends(place: Path) -> None:
    before = digest(place)
    (place / "clean" / "x" / "again").symlink_to(place / "clean")
    assert digest(place) == before


def test_a_pipe_among_images_is_passed_over(place: Path) -> None:
    before = digest(place)
    os.mkfifo(place / "clean" / "x" / "3.png")
    assert digest(place) == before


def test_weights_in_several_files_count(place: Path) -> None:
    (place / "w-1.safetensors").write_bytes(b"one")
    index = {"weight_map": {"layer": "w-1.safetensors"}}
    (place / "a.safetensors.index.json").write_text(json.dumps(index))
    text = TEXT.replace('"a.safetensors"', '"a.safetensors.index.json"')
    before = digest(place, text)
    (place / "w-1.safetensors").write_bytes(b"two")
    assert digest(place, text) != before


def test_data_beside_an_onnx_file_count(place: Path) -> None:
    model = onnx.load(write_onnx(place / "a.onnx"))
    for weights in model.graph.initializer:  # Only raw data can lie outside.
        weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights), weights.name))
    convert_model_to_external_data(model, location="a.data", size_threshold=0)
    onnx.save(model, place / "a.onnx")
    text = TEXT.replace('"a.safetensors"', '"a.onnx"')
    before = digest(place, text)
    data = np.fromfile(place / "a.data", dtype=np.uint8)
    data[0] ^= 1
    data.tofile(place / "a.data")
    assert digest(place, text) != before


@pytest.mark.parametrize("name", ["a.safetensors", "clean", "patch.png", "fast.toml"])
def test_what_is_missing_is_told(name: str, place: Path) -> None:
    path = place / name
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    with pytest.raises(InputError, match="got no such file"):
        digest(place)


def test_a_model_that_is_no_onnx_file_is_told(place: Path) -> None:
    (place / "a.onnx").write_bytes(b"no")
    with pytest.raises(InputError, match="expected an ONNX model"):
        digest(place, TEXT.replace('"a.safetensors"', '"a.onnx"'))


def test_code_is_looked_for_where_a_run_looks(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert code("nets.rows:net", place) == place / "nets"
    (place / "single.py").touch()
    assert code("single:net", place) == place / "single.py"
    for name in (None, "torchvision:resnet18", "timm:vit", "none_such:net"):
        assert code(name, place) is None
    (tmp_path / "beside.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert code("beside:net", place) is None
