# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What is known by its name as left by a program, and what was passed over in words."""

from pathlib import Path

import pytest

from lmr_guard.received.leavings import Passed, is_leaving

LEFT = ("@eaDir", "@tmp", "#snapshot", "Thumbs", "_thumbnails_", "thumbnail", "__MACOSX")
LEFT += ("RECYCLER", "Photos.photoslibrary", "CaptureOne", "lost+found", "$RECYCLE.BIN")
LEFT += ("SYNOFILE_THUMB_M.jpg", "._a.png")


@pytest.mark.parametrize("name", LEFT)
def test_leavings(name: str) -> None:
    assert is_leaving(Path("images") / name)


@pytest.mark.parametrize(
    "name", ["thumb.jpg", "#1.png", "@home.jpg", "trash", "thumbtack", "n02123045", "a~b", "größe"]
)
def test_no_leavings(name: str) -> None:
    assert not is_leaving(Path("@eaDir") / name)


def test_nothing_passed_over_is_nothing_told() -> None:
    assert Passed().notes() == ()


def test_many_endings_are_one_line_and_write_nothing_to_the_terminal() -> None:
    passed = Passed()
    for i in range(30):
        passed.unread(Path(f"a.{i:02d}\x1b[2J"))
    (told,) = passed.notes()
    assert told.isprintable()
    assert told.endswith("and 20 more.")
