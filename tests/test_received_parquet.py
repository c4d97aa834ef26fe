# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Images in Parquet files, with the columns and the metadata that datasets writes."""

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from lmr_guard.classifier import Preprocessing
from lmr_guard.errors import ConfigError, InputError
from lmr_guard.received.data import read_images
from lmr_guard.received.parquet import read_parquet

EIGHT = Preprocessing(height=8, width=8)
NAMES = ["dog", "cat"]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def picture(seed: int) -> bytes:
    values = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


def pixels(seed: int) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(io.BytesIO(picture(seed))))).permute(2, 0, 1)


def images(count: int, first: int = 0) -> pa.Array:
    held = [{"bytes": picture(i), "path": f"{i}.png"} for i in range(first, first + count)]
    return pa.array(held, IMAGE)


def written(path: Path, columns: dict[str, pa.Array], names: Sequence[str] | None = NAMES) -> Path:
    table = pa.table(columns)
    if names is not None:
        features: dict[str, Any] = {"image": {"_type": "Image"}}
        features["label"] = {"names": names, "_type": "ClassLabel"}
        held = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": held})
    parquet.write_table(table, path)
    return path


def test_images_come_back_with_the_classes_in_the_order_of_the_file(tmp_path: Path) -> None:
    for part in range(2):
        labels = pa.array([i % 2 for i in range(20)])
        path = tmp_path / f"train-0000{part}-of-00002.parquet"
        written(path, {"image": images(20, 20 * part), "label": labels})
    expected = torch.stack([pixels(i) for i in range(40)])
    for place in (tmp_path, path):
        data = read_images(place, EIGHT, expected_classes=2)
        assert data.classes == ("dog", "cat")
        assert data.labels.tolist() == [0, 1] * 20
        assert torch.equal(data.images, expected)
    turned = read_images(tmp_path, EIGHT, classes=["cat", "dog"])
    assert turned.labels.tolist() == [1, 0] * 20


@pytest.mark.parametrize("labels", [["b", "a", "b"], [1, 0, 1]])
def test_a_column_called_label_is_enough(tmp_path: Path, labels: list[Any]) -> None:
    columns = {"n": pa.array([1, 2, 3]), "img": images(3), "label": pa.array(labels)}
    found = read_parquet([written(tmp_path / "a.parquet", columns, None)])
    assert found.labels == [str(label) for label in labels]
    assert found.classes is None
    assert len(list(found.pictures())) == 3


NONE = pa.array([{"bytes": None, "path": "elsewhere.png"}], IMAGE)
ONE = pa.array([1])
CASES: dict[str, tuple[dict[str, pa.Array], str]] = {
    "no images": ({"label": ONE}, r"and one of labels, got 0 and 1 among label"),
    "no labels": ({"image": images(1)}, r"and one of labels, got 1 and 0 among image"),
    "two images": ({"a": images(1), "b": images(1), "label": ONE}, r"got 2 and 1 among a, b, lab"),
    "floats": ({"image": images(1), "label": pa.array([0.5])}, r"as a label, got float"),
    "no label": ({"image": images(1), "label": pa.array([None], pa.int64())}, r"got NoneType"),
    "elsewhere": ({"image": NONE, "label": ONE}, r"the bytes of every image, got none of one"),
    "no rows": ({"image": images(0), "label": pa.array([], pa.int64())}, r"got no row in"),
}


@pytest.mark.parametrize(("columns", "match"), CASES.values(), ids=list(CASES))
def test_other_columns_are_refused_in_one_line(
    tmp_path: Path, columns: dict[str, pa.Array], match: str
) -> None:
    with pytest.raises(InputError, match=match) as refused:
        read_parquet([written(tmp_path / "a.parquet", columns, None)])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_of_no_class_is_refused(tmp_path: Path, label: int) -> None:
    columns = {"image": images(2), "label": pa.array([0, label])}
    with pytest.raises(InputError, match=rf"a label of 2 classes, from 0, got {label} in"):
        read_parquet([written(tmp_path / "a.parquet", columns)])


def test_parts_of_other_classes_are_refused(tmp_path: Path) -> None:
    columns = {"image": images(1), "label": ONE}
    paths = [written(tmp_path / "a.parquet", columns)]
    paths += [written(tmp_path / "b.parquet", columns, ["dog", "bird"])]
    with pytest.raises(InputError, match=r"the same classes in every part, got others in"):
        read_parquet(paths)


@pytest.mark.parametrize("metadata", ["[", "[]", '{"info": {"features": []}}', "{}"])
def test_metadata_of_another_form_tell_nothing(tmp_path: Path, metadata: str) -> None:
    table = pa.table({"image": images(1), "label": ONE})
    table = table.replace_schema_metadata({"huggingface": metadata})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert read_parquet([tmp_path / "a.parquet"]).classes is None


@pytest.mark.parametrize("kept", [0, 4, 100, -4, -40])
def test_files_that_are_cut_off_are_refused_in_one_line(tmp_path: Path, kept: int) -> None:
    path = written(tmp_path / "a.parquet", {"image": images(8), "label": pa.array([1] * 8)})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"expected a Parquet file") as refused:
        read_parquet([path])
    assert "\n" not in str(refused.value)


def test_an_image_that_does_not_decode_is_told_by_its_row(tmp_path: Path) -> None:
    held = pa.array([{"bytes": picture(i), "path": ""} for i in range(6)], IMAGE).to_pylist()
    held[4]["bytes"] = b"\0" * 99
    columns = {"image": pa.array(held, IMAGE), "label": pa.array([0, 1] * 3)}
    path = written(tmp_path / "a.parquet", columns)
    with pytest.raises(InputError, match=r"does not decode: '.*a.parquet, row 4' \(none of AVIF"):
        read_images(path, EIGHT)


@pytest.mark.skipif(sys.platform != "linux", reason="limits on memory are those of Linux")
def test_a_file_that_unpacks_to_far_more_than_it_has_ends_in_its_own_process(
    tmp_path: Path,
) -> None:
    row = {"bytes": b"\0" * (1 << 27), "path": ""}
    table = pa.table({"image": pa.array([row] * 6, IMAGE), "label": pa.array([0] * 6)})
    path = tmp_path / "a.parquet"
    parquet.write_table(table, path, compression="zstd")
    del table
    assert path.stat().st_size < 1 << 20
    with pytest.raises(InputError, match=r"expected a Parquet file like .*, got one"):
        read_parquet([path])


def test_without_pyarrow_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "a.parquet", {"image": images(1), "label": ONE})
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigError, match=r"pyarrow .* got none .*'lmr-guard\[parquet\]'"):
        read_parquet([path])
