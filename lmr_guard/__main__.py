# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""``lmr-guard`` and ``python -m lmr_guard``: the command line, which takes seconds to load."""

import sys

from lmr_guard.errors import ExitCode


def main() -> int:
    """Run the command line; an interrupt while it loads is told as a later one is."""
    try:
        from lmr_guard import cli
    except KeyboardInterrupt:
        sys.stderr.write("lmr-guard: interrupted; nothing was read or written yet\n")
        return ExitCode.INTERRUPTED
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
