# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The examples in the docstrings run. By import name: a path would make ``hooks`` a top level."""

import doctest
from importlib import import_module

import pytest
from modules import module_files


@pytest.mark.parametrize("name", [n for n in module_files() if not n.endswith("__main__")])
def test_the_docstring_examples_hold(name: str) -> None:
    assert doctest.testmod(import_module(name)).failed == 0


def test_there_are_examples() -> None:
    assert doctest.testmod(import_module("lmr_guard.contracts")).attempted > 0
