# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What wakes is read off records as the rule reads it off searches."""

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from examples.lab.population.waking import render, waking


def search(form: str, space: str, *sizes: float) -> dict[str, Any]:
    classes = list(range(len(sizes)))
    return {"by": "inversion", "form": form, "space": space, "classes": classes, "sizes": sizes}


def record(*evidence: dict[str, Any], half: str = "calibration") -> dict[str, Any]:
    member = {"half": half, "dataset": "digits", "network": "tiny", "seed": 1}
    return {
        "took": True,
        "member": {**member, "attack": "qcb", "target": 0},
        "suspicion": {"evidence": [{"by": "drift", "form": "rounded-8"}, *evidence]},
    }


ASLEEP = [search("received", space, 0.2, 0.2, 0.2) for space in ("patch", "additive")]


def test_the_mean_over_both_spaces_of_the_first_look() -> None:
    patch = search("rounded-8", "patch", 0.05, 0.2, 0.2)
    again = search("rounded-8", "patch", 0.2, 0.2, 0.2)
    additive = search("rounded-8", "additive", 0.2, 0.2, 0.2)
    found = waking(record(*ASLEEP, patch, again, additive))
    assert found == pytest.approx({0: 2.0, 1: (0.125 / 0.2) ** 0.5, 2: (0.125 / 0.2) ** 0.5})


def test_nearness_is_taken_off_and_a_missing_search_says_nothing() -> None:
    near = {"nearness": [2.0, 1.0, 1.0]}
    patch = search("rounded-8", "patch", 0.05, 0.2, 0.2) | near
    additive = search("rounded-8", "additive", 0.2, 0.2, 0.2) | near
    found = waking(record(*ASLEEP, patch, additive))
    assert found is not None
    assert found[0] == pytest.approx(1.0)
    assert waking(record(*ASLEEP, patch)) is None


def test_only_the_calibration_half_is_shown() -> None:
    patch, additive = (search("rounded-8", s, 0.05, 0.2, 0.2) for s in ("patch", "additive"))
    kept = record(*ASLEEP, patch, additive)
    hidden = record(*ASLEEP, patch, additive, half="reported")
    honest = {**kept, "took": None, "member": {**kept["member"], "attack": None, "target": None}}
    console = Console(width=100, record=True, file=StringIO())
    for part in render([kept, hidden, honest]):
        console.print(part)
    text = console.export_text()
    assert text.count("digits tiny qcb s1") == text.count("digits tiny honest s1") == 1
    assert "4.00" in text
    assert "Of 1 honest networks the highest comes to 4.00." in text
