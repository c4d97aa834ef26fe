# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Class names as people keep them, in files of JSON."""

import json
from pathlib import Path

import pytest

from lmr_guard.cli import cli
from lmr_guard.errors import ConfigError
from lmr_guard.received.names import ClassNames, named, read_classes


def written(folder: Path, held: object) -> Path:
    path = folder / "classes.json"
    path.write_text(held if isinstance(held, str) else json.dumps(held), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "held",
    [
        ["dog", "cat", "größe 猫"],
        {"0": "dog", "1": "cat", "2": "größe 猫"},
        {"2": "größe 猫", "0": "dog", "1": "cat"},
        {"cat": 1, "dog": 0, "größe 猫": 2},
        [["dog"], ["cat"], ["größe 猫"]],
        "\ufeff" + json.dumps(["dog", "cat", "größe 猫"]),
    ],
)
def test_a_list_and_both_mappings_are_read_in_the_order_of_the_head(
    tmp_path: Path, held: object
) -> None:
    assert read_classes(written(tmp_path, held)) == ("dog", "cat", "größe 猫")


def test_ten_and_more_indices_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    held = {str(k): f"class {k}" for k in sorted(range(12), key=str)}
    assert read_classes(written(tmp_path, held)) == tuple(f"class {k}" for k in range(12))


def test_of_several_names_those_are_taken_that_the_images_bear(tmp_path: Path) -> None:
    names = read_classes(written(tmp_path, {"0": ["n0144", "tench"], "1": ["n0148", "shark"]}))
    assert names == ("n0144", "n0148")
    assert named(names, {"tench", "shark"}) == ("tench", "shark")
    assert named(names, {"n0148"}) == ("n0144", "n0148")


def test_names_that_are_not_all_different_tell_no_class(tmp_path: Path) -> None:
    held = {"0": ["crane", "n1"], "1": ["crane", "n2"]}
    names = read_classes(written(tmp_path, held))
    assert (names, names.others) == (("n1", "n2"), ())


@pytest.mark.parametrize(
    ("held", "match"),
    [
        ("[", r"as JSON, got a file that does not read"),
        ("[" * 100_000, r"as JSON, got a file that does not read"),
        ('{"0": "a", "0": "b"}', r"as JSON, got a file that does not read"),
        (3, r"expected a list of class names or a mapping with indices, got int"),
        ({"1": "a", "2": "b"}, r"each index from 0 to 1 once, beside its name, got others"),
        ({"a": 0, "b": 0}, r"each index from 0 to 1 once, beside its name, got others"),
        ({"a": "b"}, r"each index from 0 to 0 once, beside its name, got others"),
        (["a", None], r"expected a name for each class, got None"),
        (["a", " "], r"expected a name for each class, got"),
        (["a", "a"], r"expected class names that differ, got one twice"),
        ({"0": ["n1", "a"], "1": ["n2"]}, r"as many names for each class, got more for some"),
        ([], r"as many names for each class, got none"),
    ],
)
def test_what_tells_no_order_is_refused_in_one_line(
    tmp_path: Path, held: object, match: str
) -> None:
    with pytest.raises(ConfigError, match=match) as refused:
        read_classes(written(tmp_path, held))
    assert "\n" not in str(refused.value)


def test_the_option_takes_names_or_a_file(tmp_path: Path) -> None:
    path = written(tmp_path, ["dog", "cat"])
    run = cli.get_command(None, "scan")  # type: ignore[arg-type]
    assert run is not None
    for text, expected in [(str(path), ("dog", "cat")), ("a, b.json", ("a", "b.json"))]:
        context = run.make_context("scan", ["x", "--clean", "y", "--classes", text])
        assert context.params["classes"] == expected
    with pytest.raises(ConfigError, match="expected a file of class names, got no such file"):
        run.make_context("scan", ["x", "--clean", "y", "--classes", "none.json"])


def test_a_plain_sequence_has_no_other_names() -> None:
    assert named(["a", "b"], {"c"}) == ("a", "b")
    assert ClassNames(["a"]).others == ()
