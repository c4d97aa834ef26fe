# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What a module shows: ``__all__`` is complete (ruff sorts it), and all of it is documented."""

import ast
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from modules import module_files

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
MODULES = {n: p for n, p in module_files().items() if not n.endswith("__main__")}


def is_public(name: str) -> bool:
    return not name.startswith("_")


def targets(node: ast.stmt) -> Iterator[str]:
    """The names that a top-level statement binds by ``=`` or a definition; imports do not count."""
    if isinstance(node, Definition):
        yield node.name
    for target in getattr(node, "targets", [getattr(node, "target", None)]):
        if isinstance(target, ast.Name):
            yield target.id


def defined(tree: ast.Module) -> set[str]:
    """Public names that a module makes itself."""
    return {name for node in tree.body for name in targets(node) if is_public(name)}


def undocumented(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
    """Public functions, classes and their public methods without a docstring."""
    for node in body:
        if isinstance(node, Definition) and is_public(node.name):
            if ast.get_docstring(node) is None:
                yield prefix + node.name
            if isinstance(node, ast.ClassDef):
                yield from undocumented(node.body, f"{prefix}{node.name}.")


@pytest.mark.parametrize(("name", "path"), MODULES.items(), ids=list(MODULES))
def test_all_is_complete(name: str, path: Path) -> None:
    module = import_module(name)
    listed = list(getattr(module, "__all__", []))
    assert len(listed) == len(set(listed))
    assert [n for n in listed if not hasattr(module, n)] == []
    own = defined(ast.parse(path.read_text(encoding="utf-8")))
    assert own - set(listed) == set()


@pytest.mark.parametrize(("name", "path"), MODULES.items(), ids=list(MODULES))
def test_everything_public_is_documented(name: str, path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{name} has no docstring"
    assert list(undocumented(tree.body)) == []


def test_the_checks_see_what_is_missing() -> None:
    source = "A = 1\nB: int = 2\ndef f(): ...\nclass C:\n  '''Doc.'''\n  def m(self): ...\n_d = 1"
    tree = ast.parse(source)
    assert defined(tree) == {"A", "B", "f", "C"}
    assert list(undocumented(tree.body)) == ["f", "C.m"]
