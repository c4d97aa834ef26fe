# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""``python -m lmr_guard`` is the command line."""

import sys

from lmr_guard.cli import main

if __name__ == "__main__":
    sys.exit(main())
