# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What the stages came to: what the records refuse, and how they are read back."""

from io import BytesIO
from math import inf, nan

import pytest
import torch
from PIL import Image

from lmr_guard.contracts import Inverted, Rate
from lmr_guard.evidence import Patch
from lmr_guard.results import Achieved, Drawing, Margins, Method, Suspicion, Tried, TriggerResult


@pytest.mark.parametrize(
    ("method", "looked"),
    [
        (Method.INVERSION, True),
        (Method.UNLEARNING, True),
        (Method.DRIFT, True),
        (Method.NOT_LOOKED_FOR, False),
    ],
)
def test_localize_abstained_where_it_looked_and_named_nobody(method: Method, looked: bool) -> None:
    assert Suspicion(None, (1.0, 1.2), method).abstained is looked
    assert Suspicion(None, (), method).abstained is looked
    assert not Suspicion(1, (1.0, 1.2), method).abstained


def test_patterns_and_class_names_do_not_tell_suspicions_apart() -> None:
    pattern: Inverted = Patch(torch.ones(1, 1, 1), 0, 0, target=1)  # type: ignore[assignment]
    bare = Suspicion(1, (1.0, 2.5), Method.DRIFT)
    assert bare == Suspicion(1, (1.0, 2.5), Method.DRIFT, patterns=(pattern,), classes=("a", "b"))
    assert bare != Suspicion(1, (1.0, 2.5), Method.INVERSION)


@pytest.mark.parametrize(
    ("tried", "label"),
    [
        ("shown", "patch@l1-0.4"),
        ("replayed", "replayed:patch@l1-0.4"),
        ("searched", "searched:patch@l1-0.4"),
    ],
)
def test_a_pattern_is_called_by_what_was_done_with_it(tried: Tried, label: str) -> None:
    rate = Rate(0, 200)
    assert TriggerResult("patch@l1-0.4", "inverted", 1, rate, rate, tried=tried).label == label


@pytest.mark.parametrize("achieved", [Achieved(), Achieved(0.41, 0.64, 8)])
def test_what_compression_did_is_read_as_it_was_written(achieved: Achieved) -> None:
    assert set(achieved.to_json()) == {"sparsity", "parameter_sparsity", "bits"}
    assert Achieved.from_json(achieved.to_json()) == achieved


# --- drawings of patterns -----------------------------------------------------------------------


def png(width: int, height: int, noise: bool = False) -> bytes:
    file, image = BytesIO(), Image.new("L", (width, height))
    if noise:
        image = Image.effect_noise((width, height), 90)
    image.save(file, "PNG", compress_level=0 if noise else 9)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GIF89a",
        b"<svg onload=alert(1)>",
        png(65, 1),
        png(1, 65),
        png(4000, 4000),
        png(8, 8)[:20],
    ],
)
def test_a_drawing_is_a_small_png_or_none(content: bytes) -> None:
    with pytest.raises(ValueError, match="expected a PNG of at most 32768 bytes and 64 pixels"):
        Drawing("patch@received", 0, 0.1, content)


@pytest.mark.parametrize(
    "values",
    [(), (0.0,) * 10, (0.0,) * 12, (*range(10), 8), (*range(10), inf), (nan,) * 11],
)
def test_margins_are_eleven_ascending_numbers_or_none(values: tuple[float, ...]) -> None:
    good = tuple(map(float, range(11)))
    assert Margins.from_json(Margins(good, good).to_json()) == Margins(good, good)
    for pair in ((values, good), (good, values)):
        with pytest.raises(ValueError, match="expected 11 ascending margins, got"):
            Margins(*pair)


def test_a_drawing_is_read_as_it_was_written() -> None:
    drawn = Drawing("patch@received", 0, 0.1, png(64, 64, noise=True))
    record = drawn.to_json()
    assert Drawing.from_json(record) == drawn
    with pytest.raises(ValueError, match=r".+"):
        Drawing.from_json({**record, "png": "<script>"})
