# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Strange values in one line."""

import pytest
import torch

from lmr_guard.errors import described, first_line, printable, some


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


def test_of_many_names_some_are_told() -> None:
    assert some(["a", "b", "c"]) == "a, b, c"
    assert some(iter("abcd")) == "a, b, c, ..."
