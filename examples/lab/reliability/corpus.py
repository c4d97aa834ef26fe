# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Every bad input of this folder, made anew each time: nothing hostile is stored."""

from collections.abc import Iterator

from examples.lab.reliability import checkpoints, folders, lists, onnxfiles, pictures, settings
from examples.lab.reliability.trial import Case

__all__ = ["corpus"]


def corpus() -> Iterator[Case]:
    """All cases, family by family."""
    yield from checkpoints.cases()
    yield from onnxfiles.cases()
    yield from pictures.cases()
    yield from settings.cases()
    yield from lists.cases()
    yield from folders.cases()
