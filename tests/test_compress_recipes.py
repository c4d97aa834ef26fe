# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Recipes are data: labels, limits, and the way to JSON and back."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmr_guard.compress.recipes import Int8, PruneL1, Recipe, from_json, parse, standard, to_json
from lmr_guard.errors import ConfigError

PRUNE = st.builds(
    PruneL1,
    ratio=st.floats(0, 1, exclude_min=True, exclude_max=True),
    shares=st.sampled_from(["calibrated", "damage", "uniform"]),
    refit=st.sampled_from(["layers", "none"]),
    distil=st.integers(0, 500),
    reestimate_bn=st.booleans(),
    annealing_steps=st.integers(1, 1000),
    calibration_images=st.integers(1, 10_000),
)
INT8 = st.builds(Int8, calibration_images=st.integers(1, 10_000), reduce_range=st.booleans())
RECIPES = st.builds(Recipe, prune=st.none() | PRUNE, int8=st.none() | INT8)


@given(RECIPES)
def test_json_round_trip(recipe: Recipe) -> None:
    assert from_json(json.loads(json.dumps(to_json(recipe)))) == recipe


def test_json_names_type_and_version_on_each_level() -> None:
    data = to_json(Recipe(prune=PruneL1(ratio=0.5), int8=Int8()))
    assert [data["type"], data["version"]] == ["recipe", 1]
    kinds = [part["type"] for part in (data["prune"], data["int8"]) if isinstance(part, dict)]
    assert kinds == ["prune_l1", "int8"]


def test_the_standard_forms() -> None:
    assert [recipe.label for recipe in standard()] == [
        "float32",
        "int8",
        *(f"l1-0.{n}" for n in range(2, 7)),
        *(f"l1-0.{n}+int8" for n in range(2, 7)),
    ]


def test_labels_parse_to_the_standard_recipes() -> None:
    assert parse(recipe.label for recipe in standard()) == standard()


@pytest.mark.parametrize(
    "label", ["", "fp16", "l1", "l1-", "l1-x", "l1-0.2+int4", "l1-0.2+", "int8+int8", "0.2"]
)
def test_other_labels_are_refused(label: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"got {label!r}")):
        parse([label])


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, float("nan")])
def test_ratio_must_leave_and_take_something(ratio: float) -> None:
    with pytest.raises(ConfigError, match=r"ratio in \(0, 1\)"):
        PruneL1(ratio=ratio)


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="shares in"):
        PruneL1(ratio=0.5, shares="global")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="distil >= 0, got -1"):
        PruneL1(ratio=0.5, distil=-1)
    with pytest.raises(ConfigError, match="annealing_steps > 0, got 0"):
        PruneL1(ratio=0.5, annealing_steps=0)
    with pytest.raises(ConfigError, match="calibration_images > 0, got -1"):
        Int8(calibration_images=-1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "os.system"}, "expected type 'recipe' version 1, got 'os.system'"),
        ({"version": 2}, "version 1, got 'recipe' version 2"),
        ({"extra": 1}, r"fields of recipe in \['int8', 'prune'\], got \['extra'\]"),
        ({"prune": [1]}, "expected prune_l1 to be an object"),
        ({"prune": {"type": "int8", "version": 1}}, "expected type 'prune_l1'"),
        ({"prune": {"type": "prune_l1", "version": 1}}, "expected a whole prune_l1"),
        ({"int8": {"type": "int8", "version": 1, "bits": 4}}, r"got \['bits'\]"),
    ],
)
def test_foreign_json_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_json({**to_json(Recipe()), **change})
