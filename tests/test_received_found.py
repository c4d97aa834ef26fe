# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""From labels as they are written to the classes of the model; several files of one set."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmr_guard.errors import ConfigError, InputError
from lmr_guard.received.found import Found, listed, numbered, parts_of, require_counts
from lmr_guard.received.names import ClassNames


def found(*labels: str, classes: tuple[str, ...] | None = None) -> Found:
    return Found("the list 'a.csv'", labels, lambda: [], classes)


@pytest.mark.parametrize(
    ("labels", "classes", "expected", "result"),
    [
        (("dog", "cat", "dog"), None, 2, (("cat", "dog"), [1, 0, 1])),
        (("dog", "cat"), ("dog", "cat"), 2, (("dog", "cat"), [0, 1])),
        (("dog", "cat"), ("dog", "cat", "bird"), 3, (("dog", "cat", "bird"), [0, 1])),
        (("1", "0", "2.0"), None, None, (("0", "1", "2"), [1, 0, 2])),
        (("1", "0", "1"), None, 4, (("0", "1", "2", "3"), [1, 0, 1])),
        (("1", "0"), ("dog", "cat"), 2, (("dog", "cat"), [1, 0])),
        # What is a name is taken so, even where it could be an index.
        (("7", "3"), ("7", "3"), 2, (("7", "3"), [0, 1])),
        (("0", "1"), ("1", "0"), 2, (("1", "0"), [1, 0])),
        (("1", "0", "a"), None, None, (("0", "1", "a"), [1, 0, 2])),
    ],
)
def test_labels_are_names_or_indices(
    labels: tuple[str, ...],
    classes: tuple[str, ...] | None,
    expected: int | None,
    result: tuple[tuple[str, ...], list[int]],
) -> None:
    assert numbered(found(*labels), classes, expected) == result


@given(st.permutations(["a", "b", "c", "d"]), st.lists(st.sampled_from("abcd"), min_size=1))
def test_an_index_always_leads_back_to_its_label(order: list[str], labels: list[str]) -> None:
    names, indices = numbered(found(*labels), order, 4)
    assert [names[k] for k in indices] == labels
    assert numbered(found(*map(str, indices)), order, 4) == (names, indices)


def test_a_place_that_tells_its_own_order_is_followed_unless_the_user_tells_another() -> None:
    own = found("dog", "cat", classes=("dog", "cat"))
    assert numbered(own, None, 2) == (("dog", "cat"), [0, 1])
    assert numbered(own, ["cat", "dog"], 2) == (("cat", "dog"), [1, 0])


def test_of_several_names_those_that_are_written_count() -> None:
    names = ClassNames(["n2", "n1"])
    names.others = (("tench", "shark"),)
    assert numbered(found("shark", "tench"), names, 2) == (("tench", "shark"), [1, 0])


@pytest.mark.parametrize(
    ("labels", "classes", "expected", "match"),
    [
        (("a", "b"), ("a", "c"), None, r"labels that are classes, a, c, got b in the list 'a.csv'"),
        (("a", "1"), ("a", "c"), None, r"labels that are classes, a, c, got 1 in"),
        (("1", "2"), ("a", "b"), None, r"labels 0 to 1, got 2 in the list 'a.csv'; count from 0"),
        (("1", "2"), None, 2, r"labels 0 to 1, got 2 in the list"),
        (("0", "999999999"), None, None, r"counted from 0 without large gaps, got 999999999"),
        (("a", "b"), None, 3, r"expected 3 classes, as the model has, got 2 in .*: a, b; where"),
        (("a", "a"), None, None, r"expected at least two classes, got a in the list"),
        (("-1", "0"), ("a", "b"), None, r"labels that are classes, a, b, got -1, 0 in"),
    ],
)
def test_labels_of_no_class_are_refused(
    labels: tuple[str, ...], classes: tuple[str, ...] | None, expected: int | None, match: str
) -> None:
    with pytest.raises(InputError, match=match):
        numbered(found(*labels), classes, expected)


def test_a_class_named_twice_is_the_user_s_mistake() -> None:
    with pytest.raises(ConfigError, match="class names that differ, got a, a"):
        numbered(found("a"), ["a", "a"], None)
    with pytest.raises(InputError, match="class names that differ, got a, a in"):
        numbered(replace(found("a"), classes=("a", "a")), None, None)


def test_a_class_with_too_few_images_is_told() -> None:
    require_counts(found(), ["a", "b"], [0, 0, 1, 1], 2)
    with pytest.raises(InputError, match=r"at least 2 images in every class, got b: 1, c: 0 in"):
        require_counts(found(), ["a", "b", "c"], [0, 0, 1], 2)


def test_long_lists_of_names_are_cut() -> None:
    assert listed(["a\x1b", *map(str, range(11))]).endswith("8 and 2 more")
    assert listed(["a\x1b"]) == r"'a\x1b'"


def names_of(files: list[Path]) -> list[str]:
    return [file.name for file in files]


def test_parts_that_belong_together_are_taken_together(tmp_path: Path) -> None:
    for name in ["train-00001-of-00002.tar", "train-00000-of-00002.tar", ".x.tar", "README.md"]:
        (tmp_path / name).touch()
    both = ["train-00000-of-00002.tar", "train-00001-of-00002.tar"]
    assert names_of(parts_of(tmp_path, ".tar")) == both
    assert names_of(parts_of(tmp_path / both[1], ".tar")) == both
    (tmp_path / "test-00000-of-00001.tar").touch()
    (tmp_path / "set_003.tar").touch()
    assert names_of(parts_of(tmp_path / both[0], ".tar")) == both
    assert names_of(parts_of(tmp_path / "set_003.tar", ".tar")) == ["set_003.tar"]
    with pytest.raises(InputError, match=r"one set of images, got set, test, train in .*; give"):
        parts_of(tmp_path, ".tar")
    (tmp_path / both[0]).unlink()
    with pytest.raises(InputError, match=r"expected all 2 parts of the images, got 1 in"):
        parts_of(tmp_path / both[1], ".tar")


def test_shards_are_numbered_without_a_count_too(tmp_path: Path) -> None:
    for name in ["set-000001.tar", "set-000000.tar", "set-000002.TAR"]:
        (tmp_path / name).touch()
    expected = ["set-000000.tar", "set-000001.tar", "set-000002.TAR"]
    assert names_of(parts_of(tmp_path, ".tar")) == expected
