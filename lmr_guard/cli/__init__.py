# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The command line: arguments in, exit code out. It and ``terminal`` alone print.

Exit codes: 0 passed, 1 refused by policy, 2 the tool failed, 3 nothing or too little evaluated,
4 usage or configuration, 5 unsafe or unreadable input, 130 interrupted.
"""

import os
import sys
import traceback
from collections.abc import Sequence

import click

from lmr_guard import terminal
from lmr_guard.cli.commands import cli
from lmr_guard.errors import ExitCode, GuardError
from lmr_guard.terminal import complain
from lmr_guard.untrusted import exhausted

__all__ = ["cli", "main"]

_DEBUG = "LMR_GUARD_DEBUG"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; never raises, never exits the process."""
    with terminal.stoppable():
        return _answered(sys.argv[1:] if arguments is None else arguments)


def _answered(arguments: Sequence[str]) -> int:
    try:
        code = cli.main(list(arguments), prog_name="lmr-guard", standalone_mode=False)
    except GuardError as error:
        return complain(str(error), error.exit_code)
    except click.ClickException as error:
        return complain(error.format_message(), ExitCode.USAGE)
    except (KeyboardInterrupt, click.Abort):
        return complain("interrupted; nothing half-written was left", ExitCode.INTERRUPTED)
    except BrokenPipeError:  # Nobody reads the help; what else is told, see ``terminal``.
        code = ExitCode.PASSED
    except Exception as error:  # noqa: BLE001 - the last line of defence: one line, not a trace
        if exhausted(error):
            told = "expected enough memory, got none left; use fewer images"
            return complain(told, ExitCode.FAILED)
        if os.environ.get(_DEBUG):
            traceback.print_exc()
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        return complain(f"internal error: {what}; set {_DEBUG}=1 to see where", ExitCode.FAILED)
    return int(code) if isinstance(code, int) else ExitCode.PASSED
