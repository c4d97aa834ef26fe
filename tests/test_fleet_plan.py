# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What a plan may say, and that a slip in one is told before anything runs."""

from pathlib import Path

import pytest
from fleets import DEFAULTS, OPTIONS, units, written
from hypothesis import given
from hypothesis import strategies as st

from lmr_guard.errors import ConfigError
from lmr_guard.fleet.plan import Plan, Shard, Unit, read


def test_a_unit_is_the_arguments_of_a_run(tmp_path: Path) -> None:
    (unit,) = written(
        tmp_path, DEFAULTS + units("door", seed="seven").replace('"seven"', "7")
    ).units
    assert unit.words == (
        "--arch=factories:row_architecture",
        "--clean=clean",
        "--policy=fast.toml",
        "--trigger=patch.png@3,3:2",
        "--variants=float32",
        "--seed=7",
        "--no-repair",
        "--audit-steps=0",
        "--",
        "door.safetensors",
    )
    assert unit.files == {
        "model": tmp_path / "door.safetensors",
        "clean 0": tmp_path / "clean",
        "policy 0": tmp_path / "fast.toml",
        "trigger 0": tmp_path / "patch.png",
    }


def test_each_model_under_each_policy(tmp_path: Path) -> None:
    text = DEFAULTS.replace('"fast.toml"', '["limits/strict.toml", "usual.toml"]')
    plan = written(tmp_path, text + units("a", "b"))
    assert [(unit.name, unit.policy) for unit in plan.units] == [
        ("a@strict", "limits/strict.toml"),
        ("a@usual", "usual.toml"),
        ("b@strict", "limits/strict.toml"),
        ("b@usual", "usual.toml"),
    ]


def test_a_unit_overrides_the_defaults(tmp_path: Path) -> None:
    plan = written(tmp_path, DEFAULTS + units("a", clean="other") + units("b"))
    assert [unit.clean.name for unit in plan.units] == ["other", "clean"]


def test_one_model_under_many_settings(tmp_path: Path) -> None:
    text = DEFAULTS + 'model = "one"\n' + "".join(f'[[unit]]\nname = "s{n}"\n' for n in range(2))
    assert [unit.model for unit in written(tmp_path, text).units] == ["one", "one"]


def test_switches_numbers_and_lists(tmp_path: Path) -> None:
    more = 'scale = 2\ncompare = true\nvariants = ["float32", "int8"]\ntriggered = ["a:1", "b"]\n'
    (unit,) = written(tmp_path, '[defaults]\nclean = "c"\n' + units("a") + more).units
    assert set(unit.words[1:-2]) == {
        "--scale=2",
        "--compare",
        "--variants=float32,int8",
        "--triggered=a:1",
        "--triggered=b",
    }
    assert {path.name for path in unit.files.values()} == {"a", "b", "c", "a.safetensors"}


def test_no_value_passes_for_an_option(tmp_path: Path) -> None:
    text = units("a", clean="--out=elsewhere", model="--help")
    (unit,) = written(tmp_path, text).units
    assert unit.words == ("--clean=--out=elsewhere", "--", "--help")


def test_a_plan_of_an_editor_on_windows_reads(tmp_path: Path) -> None:
    assert written(tmp_path, "\ufeff" + (DEFAULTS + units("a")).replace("\n", "\r\n")).units


LONG = "x" * 101
HOSTILE = {
    "not UTF-8": (b'[[unit]]\nname = "\xff"\n', "expected TOML, got UnicodeDecodeError"),
    "no TOML": ("[[unit]\n", "expected TOML, got TOMLDecodeError"),
    "nested too deep": ("a = " + "[" * 5000, "expected TOML, got RecursionError"),
    "empty": ("", "expected units, each under [[unit]], got none"),
    "units are none": ("unit = 3\n", "expected units, each under [[unit]], got none"),
    "one table": ('[unit]\nname = "a"\n', "expected units, each under [[unit]], got none"),
    "a unit is no table": ('unit = ["a"]\n', "expected unit 1 to be a table, got 'a'"),
    "defaults are no table": ("defaults = 1\n", "expected defaults to be a table, got 1"),
    "unknown at the top": ("units = []\n", "got 'units' in "),
    "unknown in a unit": (
        units("a", clea="c"),
        "expected a key of a unit, got 'clea' in unit a; did you mean clean?",
    ),
    "unknown in the defaults": (
        '[defaults]\nname = "a"\n' + units("a"),
        "expected an option of run, got 'name' in defaults",
    ),
    "the fleet's own": (units("a", out="o"), "expected a key of a unit, got 'out' in unit a"),
    "no name": ('[[unit]]\nmodel = "m"\n', "expected a name of unit 1 that a file can have"),
    "a number as name": ("[[unit]]\nname = 3\n", "after the first), got 3"),
    "a slash": (units("a/b"), "got 'a/b'"),
    "upwards": (units(".."), "got '..'"),
    "hidden": (units(".a"), "got '.a'"),
    "an empty name": (units(""), "got ''"),
    "a line break": ('[[unit]]\nname = "a\\nb"\n', "got 'a\\nb'"),
    "NUL": ('[[unit]]\nname = "a\\u0000"\n', "got 'a\\x00'"),
    "a long name": (units(LONG), "got 'xxxx"),
    "the sign of policies": (units("a@b"), "got 'a@b'"),
    "twice": (DEFAULTS + units("a", "b", "a"), "expected each name once, got 'a' again"),
    "twice but for case": (DEFAULTS + units("a", "A"), "expected each name once, got 'A' again"),
    "policies of one name": (
        DEFAULTS.replace('"fast.toml"', '["x/p.toml", "y/p.toml"]') + units("a"),
        "expected each name once, got 'a@p' again",
    ),
    "no policies": (
        DEFAULTS.replace('"fast.toml"', "[]") + units("a"),
        "expected policies in unit a, got []",
    ),
    "policies of another type": (
        DEFAULTS.replace('"fast.toml"', "[1]") + units("a"),
        "expected policies in unit a, got [1]",
    ),
    "a policy without a plain name": (
        DEFAULTS.replace('"fast.toml"', '["a b.toml"]') + units("a"),
        "expected policy files of plain names in unit a, got 'a b.toml'",
    ),
    "no model": ('[[unit]]\nname = "a"\nclean = "c"\n', "expected model in unit a or in the"),
    "no images": (units("a"), "expected clean in unit a or in the defaults, got none"),
    "text for a number": (
        DEFAULTS + units("a", seed="7"),
        "expected a whole number for seed in unit a, got '7'",
    ),
    "a switch for a number": (
        DEFAULTS + units("a") + "seed = true\n",
        "expected a whole number for seed in unit a, got True",
    ),
    "a number for a switch": (
        DEFAULTS + units("a") + "repair = 0\n",
        "expected true or false for repair in unit a, got 0",
    ),
    "a number for text": (
        DEFAULTS + units("a") + "arch = 1\n",
        "expected text for arch in unit a, got 1",
    ),
    "a number that Python cannot write": (
        DEFAULTS + units("a") + f"seed = 0x{'f' * 5000}\n",
        "expected a whole number for seed in unit a, got a number of thousands of digits",
    ),
    "such a number in a list": (
        DEFAULTS + units("a") + f"variants = [0x{'f' * 5000}]\n",
        "expected text or a list for variants in unit a, got a number of thousands of digits",
    ),
    "keys nested too deep": (
        DEFAULTS + units("a") + f"seed{'.a' * 1000} = 1\n",
        "expected a whole number for seed in unit a, got ",
    ),
    "a list for one": (
        DEFAULTS + units("a") + 'arch = ["x"]\n',
        "expected text for arch in unit a, got ['x']",
    ),
    "a table for a list": (
        DEFAULTS + units("a") + "trigger = {a = 1}\n",
        "expected text or a list for trigger in unit a, got {'a': 1}",
    ),
    "a comma in a list": (
        DEFAULTS + units("a") + 'variants = ["a,b"]\n',
        "expected text or a list for variants in unit a, got 'a,b'",
    ),
    "a crooked trigger": (
        DEFAULTS + units("a", trigger="patch.png"),
        "expected PATCH.png@X,Y or PATCH.png@X,Y:TARGET",
    ),
    "a model of another type": (
        DEFAULTS + '[[unit]]\nname = "a"\nmodel = ["m"]\n',
        "expected text for model in unit a, got ['m']",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_plan_is_one_line(case: str, tmp_path: Path) -> None:
    text, message = HOSTILE[case]
    with pytest.raises(ConfigError) as told:
        written(tmp_path, text)
    assert message in str(told.value)
    assert "\n" not in str(told.value)


def test_there_must_be_a_plan(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a plan, got no such file"):
        read(tmp_path / "none.toml", OPTIONS)
    with pytest.raises(ConfigError, match="expected a plan, got a folder"):
        read(tmp_path, OPTIONS)


# --- shards -------------------------------------------------------------------------------------


def plan_of(count: int) -> Plan:
    made = [
        Unit(name=f"u{i}", model="m", policy=None, arch=None, clean=Path(), words=(), files={})
        for i in range(count)
    ]
    return Plan(Path("plan.toml"), Path("/"), tuple(made), "0" * 64)


@given(st.integers(0, 40), st.integers(1, 12))
def test_the_shards_hold_every_unit_once(units_: int, count: int) -> None:
    plan = plan_of(units_)
    parts = [Shard(index, count).of(plan) for index in range(count)]
    assert sorted(u.name for part in parts for u in part) == sorted(u.name for u in plan.units)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_a_scheduler_says_which_shard() -> None:
    said = {"JOB_COMPLETION_INDEX": "2", "SLURM_ARRAY_TASK_ID": "0"}
    assert Shard.parse("kubernetes/3", said) == Shard(2, 3)
    assert Shard.parse("slurm/3", said) == Shard(0, 3)


@pytest.mark.parametrize(
    ("text", "said", "message"),
    [
        ("3/3", {}, "expected shard I/N with I in 0..N-1, got 3/3; shards are counted from 0"),
        ("0/0", {}, "got 0/0"),
        ("-1/3", {}, "expected --shard I/N, kubernetes/N or slurm/N, got '-1/3'"),
        ("1", {}, "got '1'"),
        ("1/3/5", {}, "got '1/3/5'"),
        ("٣/٤", {}, "expected --shard I/N"),
        ("9999999/9999999", {}, "expected --shard I/N"),
        (
            "slurm/3",
            {},
            "expected a whole number in SLURM_ARRAY_TASK_ID for --shard slurm/3, got no",
        ),
        ("slurm/3", {"SLURM_ARRAY_TASK_ID": "x"}, "got 'x'; start it as a task of an array"),
        ("kubernetes/3", {"JOB_COMPLETION_INDEX": "3"}, "got 3/3"),
    ],
)
def test_no_shard_is_guessed(text: str, said: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as told:
        Shard.parse(text, said)
    assert message in str(told.value)
