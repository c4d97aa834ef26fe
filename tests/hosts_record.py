# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What ``make hosts`` ran, with versions, from pytest's JUnit file: ``docs/hosts.json``."""

import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from junitparser import JUnitXml, TestCase
from modules import ROOT

# Name of a host in the tests, its distribution.
OURS = {
    "mlflow": "mlflow-skinny",
    "dagster": "dagster",
    "torchao": "torchao",
    "nncf": "nncf",
    "olive": "olive-ai",
    "ray": "ray",
}
OWN = {"dvc": "dvc", "kfp": "kfp", "airflow": "apache-airflow"}
_ASK = "import sys; from importlib.metadata import version; sys.stdout.write(version(sys.argv[1]))"


def record(xml: Path) -> dict[str, Any]:
    """One entry a host: its version, where it was installed, how many tests ran and how."""
    cases = [case for suite in JUnitXml.fromfile(str(xml)) for case in suite]
    hosts = {
        **{host: _entry(host, version(name), "shared", cases) for host, name in OURS.items()},
        **{host: _entry(host, _own(host), "own", cases) for host in OWN},
    }
    return {
        "command": "make hosts",
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": {name: version(name) for name in ("lmr-guard", "torch", "onnx")},
        "hosts": dict(sorted(hosts.items())),
    }


def _own(host: str) -> str:
    python = ROOT / ".make" / "hosts" / host / "bin" / "python"
    return subprocess.run(
        [str(python), "-c", _ASK, OWN[host]], capture_output=True, text=True, check=True
    ).stdout


def _entry(host: str, found: str, environment: str, cases: list[TestCase]) -> Mapping[str, object]:
    own = [case for case in cases if host in f"{case.classname}.{case.name}"]
    return {
        "version": found,
        "environment": environment,
        "tests": len(own),
        "passed": sum(case.is_passed for case in own),
    }


if __name__ == "__main__":
    text = json.dumps(record(Path(sys.argv[1])), indent=1)
    Path(sys.argv[2]).write_text(f"{text}\n", encoding="utf-8")
