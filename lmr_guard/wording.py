# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What somebody else's names, values and errors look like in one line of a message."""

from collections.abc import Iterable

from torch import Tensor

__all__ = ["described", "first_line", "printable", "some"]


def described(value: object) -> str:
    """What a value is, without its content: its type, of a tensor its layout and shape."""
    if isinstance(value, Tensor):
        return f"a {value.layout} tensor of shape {tuple(value.shape)}"
    return f"{'an empty ' if value == {} else ''}{type(value).__name__}"


def first_line(error: Exception) -> str:
    """The first line of an error, in a length that can be read."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {printable(lines[0][:160])}" if lines else type(error).__name__


def printable(text: str) -> str:
    """Escaped where it could write more than text to a terminal: names come from the file."""
    return text if text.isprintable() else repr(text)


def some(names: Iterable[str]) -> str:
    """The first three names; more are told by dots."""
    listed = [printable(name) for name in names]
    return ", ".join(listed[:3]) + (", ..." if len(listed) > 3 else "")
