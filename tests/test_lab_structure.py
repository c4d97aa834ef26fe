# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What is counted about the code itself, held against sources that can be counted by eye."""

import re
import subprocess
from pathlib import Path

import pytest
from modules import module_files

from examples.lab.structure.__main__ import main
from examples.lab.structure.measures import HABITS, Function, Renaming, measured
from lmr_guard.errors import ExitCode, InputError

SOURCE = '''"""A module."""

import numpy as np
import numpy as numbers
from torch.nn import functional as F
from a.b import c as c, d as e


@decorated
def outer(one, /, two=2, *rest, three, **others):
    """One line."""
    def inner(self): ...

    return inner


class Kept:
    @staticmethod
    def still(): ...

    async def method(self, one, *, two):
        """Several

        lines.
        """
        from f import g as h
'''


def test_a_source_is_counted_as_by_eye() -> None:
    module = measured("m.py", SOURCE)
    assert module.lines == 26
    assert sorted(module.functions, key=lambda function: function.name) == [
        Function("inner", 0, 1),
        Function("method", 2, 2),
        Function("outer", 3, 4),
        Function("still", 0, 1),
    ]
    assert set(module.renamings) == {
        Renaming("numpy", "numbers"),
        Renaming("a.b.d", "e"),
        Renaming("f.g", "h"),
    }


def test_what_is_no_python_is_told_with_its_name() -> None:
    for source in ("def", "a\0b"):
        with pytest.raises(InputError, match=r"^expected Python, got SyntaxError: .*: odd\.py$"):
            measured("odd.py", source)


def test_a_habit_is_one_of_that_module_alone() -> None:
    assert HABITS["F"] == "torch.nn.functional"
    (found,) = measured("m.py", "import torch.fft as F").renamings
    assert found == Renaming("torch.fft", "F")


def checkout(folder: Path) -> Path:
    """A checkout of one package, one example, one test and two results, one of them deleted."""
    files = {
        "lmr_guard/__init__.py": "",
        "lmr_guard/a.py": SOURCE,
        "lmr_guard/deep/b.py": "\n" * 7,
        "lmr_guard/schema.json": "{}",
        "examples/c.py": "def f(a, b, c, d): ...\n",
        "examples/results.jsonl": "",
        "docs/gone.json": "",
        "tests/test_a.py": "def f():\n" + "    f()\n" * 51,
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    for command in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", *command], cwd=folder, check=True)  # noqa: S607
    (folder / "docs" / "gone.json").unlink()
    (folder / "untracked.py").write_text("def")
    return folder


def numbers(text: str, row: str) -> list[int]:
    (line,) = (line for line in text.splitlines() if line.startswith(f"│ {row} "))
    return [int(number) for number in re.findall(r"\d+", line.removeprefix(f"│ {row}"))]


def test_the_command_counts_a_checkout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", str(checkout(tmp_path)), "--most", "1"]) == ExitCode.PASSED
    told = capsys.readouterr().out
    assert numbers(told, "entries in lmr_guard/") == [4]
    assert numbers(told, "files") == [7]
    assert numbers(told, "of these JSON results") == [1]
    assert numbers(told, "package") == [3, 33, 26, 3, 0, 3]
    assert numbers(told, "examples") == [1, 1, 1, 4, 0, 0]
    assert numbers(told, "tests") == [1, 52, 52, 0, 1, 0]
    assert "longest modules: lmr_guard/a.py 26\n" in told
    assert "widest functions: lmr_guard/a.py:outer 3\n" in told
    assert "functions above 50 lines: none\n" in told
    assert "renaming imports: lmr_guard/a.py: numpy as numbers\n" in told


def test_where_there_is_no_checkout_one_line_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for root in (tmp_path, tmp_path / "none"):
        assert main(["--root", str(root)]) == ExitCode.USAGE
        told = capsys.readouterr().err
        assert told.startswith("error: expected a checkout of git, got ")
        assert told.count("\n") == 1


def test_the_package_stays_as_short_and_as_narrow_as_it_is() -> None:
    package = [measured(name, path.read_text("utf-8")) for name, path in module_files().items()]
    functions = [(m.path, f) for m in package for f in m.functions]
    assert len(functions) > 1000
    assert [(path, f.name) for path, f in functions if f.lines > 50] == []
    assert [(path, f.name) for path, f in functions if f.arguments > 8] == []
    assert [(m.path, r) for m in package for r in m.renamings] == []
