# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Counts what a reader of this repository has to walk through.

Of what git tracks, as it lies in the working tree. JSON results are what commands of this
repository wrote, below ``docs`` and ``examples``; the rest is told by ``measures``.
"""

import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

from rich.console import Console
from rich.table import Table

from examples.lab.kit import command
from examples.lab.kit.tables import framed_table
from examples.lab.structure.measures import Module, measured
from lmr_guard.errors import ConfigError, ExitCode, first_line

__all__ = ["main", "places", "tracked"]

_ROOT = Path(__file__).parents[3]
_PLACES = {
    "package": ("compress", "hooks", "lmr_guard"),
    "examples": ("examples",),
    "tests": ("tests",),
}
_LONG = 50
_JSON = frozenset({".json", ".jsonl"})


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the numbers, and return the exit code."""
    return command.answer(partial(_act, arguments), width=120, pieces="numbers")


def _act(arguments: Sequence[str] | None, console: Console) -> int:
    parser = command.parser("structure", __doc__)
    parser.add_argument("--root", type=Path, default=_ROOT, help="a checkout; default: this one")
    parser.add_argument("--most", type=int, default=5, help="names below the numbers, of each kind")
    options = parser.parse_args(arguments)
    files = tracked(options.root)
    found = places(options.root, files)
    console.print(_files(files))
    console.print(_modules(found))
    for line in _named(found["package"], options.most):
        console.print(line, markup=False)
    return ExitCode.PASSED


def tracked(root: Path) -> list[PurePosixPath]:
    """What git tracks and is there, from the root of a checkout.

    Raises:
        ConfigError: It is no checkout, or there is no git.
    """
    asked = ["git", "ls-files", "-z"]
    try:
        told = subprocess.run(asked, cwd=root, capture_output=True, text=True, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError) as error:
        got = first_line(error)
        raise ConfigError(f"expected a checkout of git, got {got}: {root}") from error
    named = (name for name in told.stdout.split("\0") if name)
    return [PurePosixPath(name) for name in named if (root / name).exists()]


def places(root: Path, files: Iterable[PurePosixPath]) -> dict[str, list[Module]]:
    """The modules of the package, of the examples and of the tests.

    Raises:
        InputError: One of them is no Python.
    """
    sources = [path for path in files if path.suffix == ".py"]
    return {
        place: [
            measured(str(path), (root / path).read_text(encoding="utf-8"))
            for path in sources
            if path.parts[0] in folders
        ]
        for place, folders in _PLACES.items()
    }


def _files(files: Sequence[PurePosixPath]) -> Table:
    entries = {path.parts[1] for path in files if path.parts[0] == "lmr_guard"}
    written = [p for p in files if p.suffix in _JSON and p.parts[0] in {"docs", "examples"}]
    table = framed_table("Files that git tracks", ["what"], ["count"])
    table.add_row("entries in lmr_guard/", str(len(entries)))
    table.add_row("files", str(len(files)))
    table.add_row("of these JSON results", str(len(written)))
    return table


def _modules(found: dict[str, list[Module]]) -> Table:
    numbers = ["modules", "lines", "longest", "widest", f"above {_LONG} lines", "renaming"]
    table = framed_table("Modules, functions and imports", ["where"], numbers)
    for place, modules in found.items():
        functions = [function for module in modules for function in module.functions]
        counts = (
            len(modules),
            sum(module.lines for module in modules),
            max((module.lines for module in modules), default=0),
            max((function.arguments for function in functions), default=0),
            sum(function.lines > _LONG for function in functions),
            sum(len(module.renamings) for module in modules),
        )
        table.add_row(place, *map(str, counts))
    return table


def _named(modules: Sequence[Module], most: int) -> list[str]:
    """The modules and functions of the package that the numbers come from."""
    functions = [(f, f"{m.path}:{f.name}") for m in modules for f in m.functions]
    long = [(f.lines, name) for f, name in functions if f.lines > _LONG]
    renamings = [f"{m.path}: {r.imported} as {r.name}" for m in modules for r in m.renamings]
    first: Callable[[list[tuple[int, str]]], str] = partial(_largest, most=most)
    return [
        f"longest modules: {first([(m.lines, m.path) for m in modules])}",
        f"widest functions: {first([(f.arguments, name) for f, name in functions])}",
        f"functions above {_LONG} lines: {first(long) or 'none'}",
        f"renaming imports: {'; '.join(renamings[:most]) or 'none'}",
    ]


def _largest(counted: list[tuple[int, str]], most: int) -> str:
    ordered = sorted(counted, key=lambda each: (-each[0], each[1]))
    return "; ".join(f"{name} {count}" for count, name in ordered[:most])


if __name__ == "__main__":
    sys.exit(main())
