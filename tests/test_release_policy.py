# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What a policy may say, and how it is read."""

import json
import math
from dataclasses import asdict, fields
from pathlib import Path

import pytest

from lmr_guard.errors import ConfigError
from lmr_guard.release.policy import Policy, policy_from_toml


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("max_asr", 1, r"max_asr in \[0, 1\), got 1"),
        ("max_asr", -0.1, "max_asr"),
        ("max_asr", "0.05", "got '0.05'"),
        ("max_asr", True, "got True"),
        ("max_asr", float("nan"), "got nan"),
        pytest.param("min_trials", 10**5000, "got a number of thousands of digits", id="digits"),
        pytest.param("require", (10**5000,), "got a number of thousands of digits", id="more"),
        ("max_accuracy_drop", 3, r"max_accuracy_drop in \[0, 1\], got 3"),
        ("min_trials", 0, "min_trials a whole number >= 1, got 0"),
        ("min_trials", 1.5, "min_trials"),
        ("min_trials", True, "min_trials"),
        ("confidence", 1.0, r"confidence in \(0, 0.9+\], got 1.0"),
        ("require", (), "require a list of variant names"),
        ("require", "int8", "require a list of variant names, got 'int8'"),
        ("require", (8,), "require a list of variant names"),
        ("publish", "some", "publish 'all' or 'smallest', got 'some'"),
        ("max_excess", 1.1, r"max_excess in \[0, 1\], got 1.1"),
        ("max_strangeness", 0.9, "max_strangeness of 1 or more, got 0.9"),
        ("accept_inverted", 1, "accept_inverted true or false, got 1"),
    ],
)
def test_an_impossible_policy_is_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Policy(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "field", ["max_asr", "max_accuracy_drop", "confidence", "max_excess", "max_strangeness"]
)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, True, "1"])
def test_a_limit_is_a_finite_number(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"expected {field} "):
        Policy(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "policy",
    [
        Policy(),
        Policy(
            max_asr=0.1,
            max_accuracy_drop=0.0,
            min_trials=7,
            confidence=0.5,
            require=("l1-0.2+int8",),
            publish="smallest",
            max_excess=1.0,
            max_strangeness=1.0,
            accept_inverted=True,
        ),
    ],
)
def test_a_policy_is_read_from_json_as_it_was_written(policy: Policy) -> None:
    assert Policy.from_json(json.loads(json.dumps(asdict(policy)))) == policy


def test_a_policy_in_json_keeps_defaults_and_is_validated() -> None:
    assert Policy.from_json({}) == Policy()
    with pytest.raises(ConfigError, match="require a list of variant names, got 'int8'"):
        Policy.from_json({"require": "int8"})


def test_a_policy_comes_from_toml_and_keeps_defaults(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text('max_asr = 0.1\nrequire = ["int8"]\npublish = "smallest"\n')
    assert policy_from_toml(path) == Policy(max_asr=0.1, require=("int8",), publish="smallest")
    path.write_bytes(b"\xef\xbb\xbfmax_asr = 0.1")
    assert policy_from_toml(path) == Policy(max_asr=0.1)
    path.write_text("")
    assert policy_from_toml(path) == Policy()


def test_the_policy_in_the_documentation_is_the_default(tmp_path: Path) -> None:
    text = (Policy.__doc__ or "").partition("::")[2].partition("Args:")[0]
    path = tmp_path / "policy.toml"
    path.write_text(text)
    assert policy_from_toml(path) == Policy()
    assert all(f"{field.name} = " in text for field in fields(Policy))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"max_ars = 0.1", "got 'max_ars' in .*; did you mean max_asr?"),
        (b"zebra = 1", "got 'zebra' in .*; use max_asr, max_accuracy_drop"),
        (b"max_asr = ", "expected TOML, got"),
        (b"\xff", "expected TOML, got"),
        (b"max_asr = 2", "max_asr in"),
        (b"max_asr" + b".a" * 1000 + b" = 1", "max_asr in .*, got"),
        (b"max_asr" + b".a" * 1001 + b" = 1", "expected at most 1000 dots in a line, got more"),
        (b"[policy]\nmax_asr = 0.1", "got 'policy'"),
    ],
)
def test_a_bad_policy_file_is_a_usage_error(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        policy_from_toml(path)


def test_a_missing_policy_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a policy file, got no such file"):
        policy_from_toml(tmp_path / "policy.toml")
