# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Lists of images: what spreadsheets, pandas and image folders of datasets write."""

import json
from pathlib import Path

import pytest
from PIL import Image

from lmr_guard.errors import InputError
from lmr_guard.received import tables
from lmr_guard.received.found import Found
from lmr_guard.received.tables import read_list

FILES = ("a.png", "deep/b, c.png", "größe.png")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "deep").mkdir()
    for name in FILES:
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    return tmp_path


def read(place: Path, text: str, name: str = "labels.csv", encoding: str = "utf-8") -> Found:
    (place / name).write_text(text, encoding=encoding, newline="")
    found = read_list(place / name)
    assert found is not None
    return found


def shown(place: Path, found: Found) -> list[tuple[str, str]]:
    names = [str(picture.relative_to(place)) for picture in found.pictures()]  # type: ignore[union-attr]
    return list(zip(names, found.labels, strict=True))


EXPECTED = [("a.png", "dog"), ("deep/b, c.png", "3"), ("größe.png", "a cat")]
CASES = {
    "bare": ("labels.csv", 'a.png,dog\n"deep/b, c.png",3\ngröße.png,a cat\n'),
    "header": ("labels.csv", 'path,label\na.png,dog\n"deep/b, c.png",3\ngröße.png,a cat'),
    "other columns": (
        "labels.CSV",
        ',Label,split,File_Name\r\n0,dog,x,a.png\r\n1,3,,"deep/b, c.png"\r\n2,a cat,y,größe.png',
    ),
    "byte order mark": ("l.csv", '\ufeffpath,label\na.png,dog\n"deep/b, c.png",3\ngröße.png,a cat'),
    "semicolons": ("l.csv", "file;class\na.png;dog\ndeep/b, c.png;3\n\n größe.png; a cat \n"),
    "tabs": ("labels.tsv", "a.png\tdog\ndeep/b, c.png\t3\ngröße.png\ta cat\n"),
    "dotted": ("l.csv", './a.png,dog\n"deep/./b, c.png",3\ngröße.png,a cat'),
    "lines": (
        "labels.jsonl",
        '{"path": "a.png", "label": "dog"}\n\n{"label": 3, "path": "deep/b, c.png"}\r\n'
        '{"file_name": "größe.png", "Label": "a cat", "more": [1, {}]}',
    ),
}


@pytest.mark.parametrize(("name", "text"), CASES.values(), ids=list(CASES))
def test_lists_are_read_as_people_write_them(place: Path, name: str, text: str) -> None:
    found = read(place, text, name)
    assert shown(place, found) == EXPECTED
    assert found.notes == ()


def test_absolute_paths_inside_the_folder_are_taken(place: Path) -> None:
    assert shown(place, read(place, f"{place}/a.png,dog\n")) == [("a.png", "dog")]


def test_an_image_that_is_listed_again_counts_once_and_is_told(place: Path) -> None:
    found = read(place, "a.png,1\n./a.png,1\ngröße.png,0\na.png, 1\n")
    assert shown(place, found) == [("a.png", "1"), ("größe.png", "0")]
    (told,) = found.notes
    assert told.startswith("2 rows of the list '")
    assert told.endswith("labels.csv' name an image again; each was counted once.")


ESCAPES = ["../a.png", "deep/../../x.png", "/etc/hostname", "deep/../a.png", "", "."]


@pytest.mark.parametrize("path", ESCAPES)
def test_a_path_that_could_leave_the_folder_is_refused(place: Path, path: str) -> None:
    with pytest.raises(InputError, match=r"paths inside the list's folder, got .* in line 2: '"):
        read(place, f'path,label\n"{path}",dog\n')
    with pytest.raises(InputError, match=r"paths inside the list's folder, got .* in line 1: '"):
        read(place, json.dumps({"path": path, "label": 1}), "labels.jsonl")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", r"expected images and their labels, got no row in the list"),
        ("path,label\n", r"expected images and their labels, got no row in the list"),
        ("a.png,1\nb.png,2\nc.png,3\n", r"got none of b.png, c.png \(2 of 3\): '.*labels.csv'$"),
        ("fname,klass\na.png,1\n", r"got none of fname \(1 of 2\).*; the first line is no path\?"),
        (
            "a.png,1\na.png,2\n",
            r"one label for an image, got 1 in line 1 and 2 in line 2 for a.png",
        ),
        ("a.png,\n", r"expected a label in every row, got none in line 1"),
        ("path,other\na.png,1\n", r"expected a label in every row, got none in line 2"),
        ("path,x,label\na.png,1\n", r"a path and a label in every row, got 2 columns in line 2"),
        ("a.png\n", r"a header that names path and label, or two columns without one, got 1"),
        ("a.png,1,2\n", r"or two columns without one, got 3 columns that begin with 'a.png'"),
        ('a.png,1\n"b.png,2\n', r"one that does not read in line 2 .*unexpected end of data"),
        ("a.png,1\nb\0.png,2\n", r"got none of 'b\\x00.png'"),
        ("x" * 5000 + ".png,1\n", r"got none of x+.png \(1 of 1\)"),
        ("deep,1\n", r"got none of deep \(1 of 1\)"),
        ("a" * 200_000 + ",1\n", r"one that does not read in line 1 .*field larger"),
    ],
)
def test_lists_that_are_not_whole_are_refused_in_one_line(
    place: Path, text: str, match: str
) -> None:
    with pytest.raises(InputError, match=match) as refused:
        read(place, text)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("[1]", r"a JSON object in every line, got list in line 1"),
        ("{", r"a JSON object in every line, got none in line 1"),
        ("[" * 100_000, r"a JSON object in every line, got none in line 1"),
        ('{"path": "a.png", "label": 1, "label": 0}', r"got a key twice in line 1"),
        ('{"path": "a.png", "label": 1, "Label": 0}', r"got a key in two cases in line 1"),
        ('{"path": "a.png", "label": 1.5}', r"a name or a whole number, .* got path, label in"),
        ('{"path": "a.png", "label": true}', r"a name or a whole number, .* got path, label in"),
        ('{"path": 3, "label": 1}', r"expected a path and a label, .* got path, label in line 1"),
        ("{}", r"expected a path and a label, .* got nothing in line 1"),
        ('{"path": "a.png"}', r"expected a label in every row, got none in line 1"),
        ('{"path": "\\ud800.png", "label": 1}', r"paths inside the list's folder"),
    ],
)
def test_lines_that_hold_something_else_are_refused(place: Path, line: str, match: str) -> None:
    with pytest.raises(InputError, match=match) as refused:
        read(place, line, "labels.jsonl")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl"])
def test_more_lines_than_are_read_are_refused(
    place: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_MOST", 20)
    for text in ("\n" * 21, "\r" * 21):
        with pytest.raises(InputError, match="a list of at most 20 lines, got more"):
            read(place, text, f"labels{ending}")
    row = '{"path": "a", "label": 1}\n' if ending == ".jsonl" else "a,b\n".replace(",", "\t")
    with pytest.raises(InputError, match="a list of at most 20 lines, got more"):
        read(place, row * 21, f"labels{ending}")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_may_end_in_any_way(place: Path, end: str) -> None:
    text = end.join(["path,label", 'a.png,"cat', 'dog"', "größe.png,1"])
    assert list(read(place, text).labels) == [f"cat{end}dog", "1"]


def test_another_encoding_is_named(place: Path) -> None:
    with pytest.raises(InputError, match=r"expected a list in UTF-8, got another encoding"):
        read(place, "größe.png,dog\n", encoding="utf-16")


def test_a_list_without_labels_may_be_none(place: Path) -> None:
    (place / "metadata.csv").write_text("file_name,text\na.png,a dog\n")
    assert read_list(place / "metadata.csv", labels_elsewhere=True) is None
