# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What a path to images is taken for, and that all kinds come to the same images."""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from factories import toy_images, write_images
from pyarrow import parquet

from lmr_guard.classifier import Preprocessing
from lmr_guard.contracts import Labelled
from lmr_guard.errors import InputError
from lmr_guard.evidence import Triggered, TriggeredFolder
from lmr_guard.received import inputs
from lmr_guard.received.data import read_images
from lmr_guard.received.sources import found_in

TOY = Preprocessing(channels=1, height=2, width=2, mean=(0.0,), std=(1.0,))


def files(data: Labelled, folder: Path) -> list[tuple[Path, str]]:
    """Images as files beside one another, and the names of their classes."""
    write_images(data, folder / "held")
    return [(path, path.parent.name) for path in sorted((folder / "held").rglob("*.png"))]


def csv_list(data: Labelled, folder: Path) -> Path:
    rows = [f"{path.relative_to(folder)},{label}" for path, label in files(data, folder)]
    (folder / "labels.csv").write_text("\n".join(rows))
    return folder / "labels.csv"


def imagefolder(data: Labelled, folder: Path) -> Path:
    """As ``datasets`` lays out a folder of images with metadata."""
    lines = [
        json.dumps({"file_name": str(path.relative_to(folder)), "label": label})
        for path, label in files(data, folder)
    ]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def shards(data: Labelled, folder: Path) -> Path:
    (folder / "shards").mkdir()
    with tarfile.open(folder / "shards" / "a-0000.tar", "w") as archive:
        for path, label in files(data, folder):
            archive.add(path, f"{path.stem}.png")
            (folder / "label").write_text(str(data.classes.index(label)))
            archive.add(folder / "label", f"{path.stem}.cls")
    return folder / "shards"


def hub(data: Labelled, folder: Path) -> Path:
    """As the hub keeps a data set: one folder called data."""
    (folder / "hub" / "data").mkdir(parents=True)
    (folder / "hub" / "README.md").touch()
    held = files(data, folder)
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": path.read_bytes(), "path": None} for path, _ in held], struct)
    table = pa.table({"image": images, "label": [label for _, label in held]})
    parquet.write_table(table, folder / "hub" / "data" / "train-00000-of-00001.parquet")
    return folder / "hub"


KINDS = [csv_list, imagefolder, shards, hub]


@pytest.mark.parametrize("make", KINDS)
def test_every_kind_comes_to_the_images_of_a_folder_per_class(
    tmp_path: Path, make: Callable[[Labelled, Path], Path]
) -> None:
    data = toy_images(12)
    place = make(data, tmp_path)
    expected = read_images(tmp_path / "held", TOY)
    found = inputs.images(place, TOY, 3, ("c", "a", "b") if make is not shards else None)
    names = [found.classes[k] for k in found.labels.tolist()]
    if make is shards:
        names = [expected.classes[int(name)] for name in names]
    key = [
        (image.flatten().tolist(), name) for image, name in zip(found.images, names, strict=True)
    ]
    theirs = [expected.classes[k] for k in expected.labels.tolist()]
    assert sorted(key) == sorted(
        (image.flatten().tolist(), name)
        for image, name in zip(expected.images, theirs, strict=True)
    )


@pytest.mark.parametrize("make", KINDS)
def test_triggered_images_are_taken_in_every_kind(
    tmp_path: Path, make: Callable[[Labelled, Path], Path]
) -> None:
    clean = toy_images(6)
    shown = clean.images.clone()
    shown.view(6, 4)[:, 3] = 255
    place = make(Labelled(shown, clean.labels, clean.classes), tmp_path)
    (found,) = inputs.triggers([TriggeredFolder(place, 1)], clean, TOY)
    assert isinstance(found, Triggered)
    assert sorted(found.data.labels.tolist()) == [0, 0, 1, 1, 2, 2]
    assert found.data.classes == clean.classes
    assert torch.equal(found.data.images[:, 0, 1, 1], torch.full((6,), 255, dtype=torch.uint8))


def test_class_folders_beside_a_list_without_labels_say_the_classes(tmp_path: Path) -> None:
    write_images(toy_images(12), tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name,text\na/00000.png,a bright pixel\n")
    assert found_in(tmp_path) is None
    assert read_images(tmp_path, TOY).classes == ("a", "b", "c")


def test_archives_beside_class_folders_are_left_alone(tmp_path: Path) -> None:
    write_images(toy_images(12), tmp_path)
    (tmp_path / "backup.tar").touch()
    (tmp_path / "old.parquet").touch()
    assert found_in(tmp_path) is None


def test_two_lists_and_arrow_files_are_told(tmp_path: Path) -> None:
    (tmp_path / "data-00000-of-00001.arrow").touch()
    with pytest.raises(InputError, match=r"got Arrow files, as save_to_disk writes them, in"):
        found_in(tmp_path)
    (tmp_path / "metadata.csv").touch()
    (tmp_path / "metadata.jsonl").touch()
    with pytest.raises(InputError, match=r"one list .*, got metadata.csv and metadata.jsonl in"):
        found_in(tmp_path)


@pytest.mark.parametrize("name", ["a.zip", "none.txt"])
def test_other_files_are_told_what_is_taken(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.zip").touch()
    with pytest.raises(InputError, match=r"one folder of images for each class, got .* \.parquet"):
        read_images(tmp_path / name, TOY)


@pytest.mark.parametrize("name", ["none.csv", "none.tar", "none.parquet"])
def test_what_is_not_there_is_said(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"got no such file: '"):
        read_images(tmp_path / name, TOY)
