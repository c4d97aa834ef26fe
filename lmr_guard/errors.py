# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The exceptions: what cannot go on. A finding about a model is a value, never an exception.

::

    GuardError                 exit code 2   the tool failed
    ├── StageError             exit code 2   a stage could not do its work
    ├── ConfigError            exit code 4   usage or configuration (also a ValueError)
    ├── InputError             exit code 5   unsafe or unreadable input
    └── ExportRefused          exit code 1   the policy refused (3 where too little was evaluated)

Messages follow one grammar: *expected …, got …; what to do*. Below the exceptions stands how
somebody else's names, values and errors look in one line of a message.
"""

import re
from collections.abc import Iterable
from enum import IntEnum

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
# Where in C++ it was raised, with a signature that leaves no room for what went wrong.
_RAISED = re.compile(r"/\S+\.(?:cc|cpp|h):\d+ [^()]*\([^()]*\) ")

__all__ = [
    "ConfigError",
    "ExitCode",
    "ExportRefused",
    "GuardError",
    "InputError",
    "StageError",
    "cut_short",
    "described",
    "first_line",
    "is_text",
    "printable",
    "some",
]


class ExitCode(IntEnum):
    """What the process answers; the same table stands in the README."""

    PASSED = 0
    REFUSED = 1
    FAILED = 2
    INCOMPLETE = 3
    USAGE = 4
    UNSAFE_INPUT = 5
    INTERRUPTED = 130


class GuardError(Exception):
    """Base of everything that this package raises on purpose."""

    exit_code = ExitCode.FAILED


class StageError(GuardError):
    """A stage could not do its work: an export that differs, a plan that removed nothing."""


class ConfigError(GuardError, ValueError):
    """A flag, a policy or an argument is wrong; nothing was written."""

    exit_code = ExitCode.USAGE


class InputError(GuardError):
    """A file that was handed in is missing, unreadable, unsafe, or not what it must be."""

    exit_code = ExitCode.UNSAFE_INPUT


class ExportRefused(GuardError):
    """The evidence does not allow the export.

    Args:
        message: Why, in one line.
        incomplete: True where too little was evaluated, rather than a limit broken.
    """

    def __init__(self, message: str, *, incomplete: bool = False) -> None:
        super().__init__(message)
        self.exit_code = ExitCode.INCOMPLETE if incomplete else ExitCode.REFUSED


def described(value: object) -> str:
    """What a value is, without its content: its type, of a tensor its layout and shape."""
    from torch import Tensor  # torch takes long to load, and not every error needs it

    if isinstance(value, Tensor) and value.is_quantized:
        return f"a quantised tensor of shape {tuple(value.shape)}"
    if isinstance(value, Tensor):
        return f"a {value.layout} tensor of shape {tuple(value.shape)}"
    return f"{'an empty ' if value == {} else ''}{type(value).__name__}"


def first_line(error: Exception) -> str:
    """The first line of an error, in a length that can be read."""
    lines = _RAISED.sub("", _COLOURS.sub("", str(error))).strip().splitlines()
    return f"{type(error).__name__}: {printable(lines[0][:160])}" if lines else type(error).__name__


def printable(text: str) -> str:
    """Escaped where it could write more than text to a terminal: names come from the file."""
    return text if text.isprintable() else repr(text)


def cut_short(value: object, most: int) -> str:
    """``repr`` of anything that a file said, cut to ``most`` letters."""
    try:
        return repr(value)[:most]
    except ValueError:  # Python writes no integer of more than 4300 digits.
        return "a number of thousands of digits"
    except RecursionError:
        return "a value that is nested too deep"


def is_text(name: str) -> bool:
    """Whether a name can be written: those of files may hold bytes that are no UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def some(names: Iterable[str]) -> str:
    """The first three names; more are told by dots."""
    listed = [printable(name) for name in names]
    return ", ".join(listed[:3]) + (", ..." if len(listed) > 3 else "")
