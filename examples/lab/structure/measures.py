# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What is counted in the source of one module; nothing is imported or run."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType

from lmr_guard.errors import InputError, first_line

__all__ = ["HABITS", "Function", "Module", "Renaming", "measured"]

HABITS = MappingProxyType(
    {
        "F": "torch.nn.functional",
        "np": "numpy",
        "pa": "pyarrow",
        "ET": "xml.etree.ElementTree",
        "st": "hypothesis.strategies",
        "tp": "torch_pruning",
        "dg": "dagster",
    }
)
"""Other names of modules that their own documentation uses; whoever knows them expects these."""


@dataclass(frozen=True, slots=True)
class Function:
    """A function or a method.

    Args:
        name: Its own, without its class.
        arguments: Named ones; ``self``, ``cls`` and what ``*`` and ``**`` gather do not count.
        lines: From ``def`` to its end, without decorators and without the docstring.
    """

    name: str
    arguments: int
    lines: int


@dataclass(frozen=True, slots=True)
class Renaming:
    """An import under another name that is none of ``HABITS``."""

    imported: str
    name: str


@dataclass(frozen=True, slots=True)
class Module:
    """One source file.

    Args:
        path: From the root of the checkout, with slashes.
        lines: All of them.
        functions: All, nested ones and methods too, in no order.
        renamings: At its top and inside functions.
    """

    path: str
    lines: int
    functions: tuple[Function, ...]
    renamings: tuple[Renaming, ...]


def measured(path: str, source: str) -> Module:
    """A module from its source.

    Raises:
        InputError: It is no Python.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise InputError(f"expected Python, got {first_line(error)}: {path}") from error
    nodes = list(ast.walk(tree))
    functions = tuple(
        _function(node)
        for node in nodes
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    return Module(path, len(source.splitlines()), functions, tuple(_renamings(nodes)))


def _function(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Function:
    given = node.args
    placed = [argument.arg for argument in (*given.posonlyargs, *given.args)]
    named = len(placed) + len(given.kwonlyargs) - (placed[:1] in (["self"], ["cls"]))
    lines = _lines(node)
    if ast.get_docstring(node, clean=False) is not None:
        lines -= _lines(node.body[0])
    return Function(node.name, named, lines)


def _lines(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def _renamings(nodes: list[ast.AST]) -> Iterator[Renaming]:
    for node in nodes:
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        module = node.module if isinstance(node, ast.ImportFrom) else None
        for alias in node.names:
            full = alias.name if module is None else f"{module}.{alias.name}"
            own = alias.asname
            # `import x as x` and the like say that a name is meant to be imported from here.
            if own is not None and own != alias.name and HABITS.get(own) != full:
                yield Renaming(full, own)
