# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""``lmr-guard`` and ``python -m lmr_guard``: the command line; most commands load for seconds."""

import sys

from lmr_guard.errors import ExitCode


def main() -> int:
    """Run the command line; an interrupt while it loads is told as a later one is."""
    try:
        from lmr_guard import cli, terminal
    except KeyboardInterrupt:
        sys.stderr.write("lmr-guard: interrupted; nothing was read or written yet\n")
        return ExitCode.INTERRUPTED
    code = cli.main()
    if code == ExitCode.INTERRUPTED:
        terminal.ignore_stops()
    return code


if __name__ == "__main__":
    sys.exit(main())
