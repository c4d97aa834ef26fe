# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The exceptions: what cannot go on. A finding about a model is a value, never an exception.

::

    GuardError                 exit code 2   the tool failed
    ├── StageError             exit code 2   a stage could not do its work
    ├── ConfigError            exit code 4   usage or configuration (also a ValueError)
    ├── InputError             exit code 5   unsafe or unreadable input
    └── ExportRefused          exit code 1   the policy refused (3 where too little was evaluated)

Messages follow one grammar: *expected …, got …; what to do*.
"""

from enum import IntEnum

__all__ = ["ConfigError", "ExitCode", "ExportRefused", "GuardError", "InputError", "StageError"]


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
    """A flag, a policy or an argument is wrong; nothing was read or written yet."""

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
