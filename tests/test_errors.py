# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Exit codes and the exceptions that carry them, and strange values in one line."""

import re

import pytest
import torch

from lmr_guard import errors
from lmr_guard.errors import (
    ConfigError,
    ExitCode,
    ExportRefused,
    GuardError,
    InputError,
    StageError,
    cut_short,
    described,
    first_line,
    printable,
    some,
)


def test_the_exit_codes_are_what_orchestrators_rely_on() -> None:
    assert {code.name: int(code) for code in ExitCode} == {
        "PASSED": 0,
        "REFUSED": 1,
        "FAILED": 2,
        "INCOMPLETE": 3,
        "USAGE": 4,
        "UNSAFE_INPUT": 5,
        "INTERRUPTED": 130,
    }


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (GuardError("x"), 2),
        (StageError("x"), 2),
        (ConfigError("x"), 4),
        (InputError("x"), 5),
        (ExportRefused("x"), 1),
        (ExportRefused("x", incomplete=True), 3),
    ],
)
def test_each_error_knows_its_exit_code_and_keeps_its_message(error: GuardError, code: int) -> None:
    assert isinstance(error, GuardError)
    assert error.exit_code == code
    assert str(error) == "x"


def test_a_refusal_does_not_change_the_next_one() -> None:
    assert ExportRefused("a", incomplete=True).exit_code is ExitCode.INCOMPLETE
    assert ExportRefused("b").exit_code is ExitCode.REFUSED
    assert GuardError.exit_code is ExitCode.FAILED


def test_a_configuration_error_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="expected 1, got 2"):
        raise ConfigError("expected 1, got 2")


@pytest.mark.parametrize("kind", [GuardError, StageError, ConfigError, InputError])
def test_the_tree_in_the_docstring_is_true(kind: type[GuardError]) -> None:
    assert errors.__doc__ is not None
    drawn = re.search(rf"\b{kind.__name__} +exit code (\d)", errors.__doc__)
    assert drawn is not None
    assert int(drawn.group(1)) == kind.exit_code


# --- strange values in one line -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({}, "an empty dict"),
        ([1], "list"),
        (torch.zeros(2, 3), "a torch.strided tensor of shape (2, 3)"),
    ],
)
def test_a_value_by_its_kind(value: object, text: str) -> None:
    assert described(value) == text


def test_an_error_by_its_first_line() -> None:
    assert first_line(ValueError("one\ntwo")) == "ValueError: one"
    assert first_line(ValueError()) == "ValueError"
    assert len(first_line(ValueError("x" * 500))) == len("ValueError: ") + 160


def test_what_could_steer_a_terminal_is_escaped() -> None:
    assert printable("a b") == "a b"
    assert "\x1b" not in printable("\x1b[2J")


def test_what_cannot_be_written_is_told_in_words() -> None:
    nested: list[object] = []
    for _ in range(200_000):
        nested = [nested]
    assert cut_short("a" * 100, 5) == "'aaaa"
    assert cut_short(10**5000, 80) == "a number of thousands of digits"
    assert cut_short(nested, 80) == "a value that is nested too deep"


def test_of_many_names_some_are_told() -> None:
    assert some(["a", "b", "c"]) == "a, b, c"
    assert some(iter("abcd")) == "a, b, c, ..."
