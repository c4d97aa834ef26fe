# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Every known way past the gate, tried: the tests of bypasses, and how each of them ended."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lmr_guard.errors import StageError

__all__ = ["TESTS", "tried"]

TESTS = Path(__file__).parents[3] / "tests" / "test_bypasses.py"
"""One test for each way, and a few for what has to get through."""

_ENDED = re.compile(r"^\S*::test_(\S+) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", re.MULTILINE)
_WHOLE = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)


def tried(tests: Path = TESTS) -> dict[str, str]:
    """How each test ended, ``passed`` or another word of pytest's, by what it says of the gate.

    Args:
        tests: A file of tests.

    Raises:
        StageError: None of them ran, or pytest did not come to its end.
    """
    asked = [sys.executable, "-m", "pytest", "-vv", "--tb=no", "-p", "no:cacheprovider", str(tests)]
    plain = {**os.environ, "NO_COLOR": "1", "COLUMNS": "1000"}
    done = subprocess.run(asked, capture_output=True, text=True, check=False, env=plain)  # noqa: S603
    found = {name.replace("_", " "): word.lower() for name, word in _ENDED.findall(done.stdout)}
    if not found or done.returncode not in _WHOLE:  # What was cut short says nothing of the rest.
        told = (done.stdout + done.stderr).strip().splitlines()
        raise StageError(
            f"expected tests that run, got exit code {done.returncode} of pytest: "
            f"{told[-1] if told else 'nothing said'}"
        )
    return found
