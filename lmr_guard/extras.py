# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Other tools are extras: each is loaded by the one module that serves it, when it is used."""

from importlib import import_module
from typing import Any

from lmr_guard.errors import ConfigError, first_line

__all__ = ["load"]


def load(name: str, extra: str) -> Any:  # noqa: ANN401 - a module of somebody else's
    """The module ``name`` of another tool.

    Raises:
        ConfigError: It cannot be imported; the message names the extra of this package.
    """
    package = name.partition(".")[0]
    try:
        return import_module(name)
    except ImportError as error:
        # What is missing may be something that the package needs.
        lacking = isinstance(error, ModuleNotFoundError) and error.name in {name, package}
        got = "none installed" if lacking else first_line(error)
        raise ConfigError(
            f"expected {package} to be installed, got {got}; pip install 'lmr-guard[{extra}]'"
        ) from error
