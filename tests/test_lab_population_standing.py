# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What standing out is worth is read off records as the rule reads it off searches."""

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from examples.lab.kit.records import Record
from examples.lab.population.standing import READINGS, highest, render


def search(form: str, *sizes: float, repeat: int = 0, space: str = "patch") -> dict[str, Any]:
    told = {"by": "inversion", "form": form, "space": space, "repeat": repeat}
    ones = [1.0] * len(sizes)
    return told | {"classes": list(range(len(sizes))), "sizes": sizes, "nearness": ones}


def record(
    *evidence: dict[str, Any],
    target: int | None,
    half: str = "calibration",
    network: str = "slim_vgg",
) -> Record:
    member = {"half": half, "target": target, "network": network}
    took = None if target is None else True
    return {"member": member, "took": took, "suspicion": {"evidence": evidence}}


# Class 0 needs a quarter, class 1 three tenths and class 2 a half; class 0 alone needs a quarter.
THREE, ONE = (0.05, 0.06, 0.1, 0.2, 0.2, 0.2, 0.2), (0.05, 0.2, 0.2, 0.2, 0.2)


def test_what_the_next_two_classes_show_too_is_taken_off() -> None:
    asked = record({"by": "drift", "form": "int8"}, search("received", *THREE), target=None)
    assert highest(asked, READINGS["strangeness"])[0] == pytest.approx(4.0)
    assert highest(asked, READINGS["standing out"])[0] == pytest.approx(2.0)
    warp = record(search("received", *ONE, space="warp"), target=None)
    assert highest(warp, READINGS["standing out"])[0] == pytest.approx(4.0 ** (1 / 3))


def test_first_looks_at_compressed_forms_count_for_nothing() -> None:
    asked = record(search("received", *THREE), search("l1-0.3", *ONE), target=0)
    assert highest(asked, READINGS["standing out"])[0] == pytest.approx(2.0)
    again = record(search("received", *THREE), search("l1-0.3", *ONE, repeat=1), target=0)
    assert highest(again, READINGS["standing out"])[0] == pytest.approx(4.0)


def test_counts_by_hand_on_the_calibration_half() -> None:
    console = Console(width=120, record=True, file=StringIO())
    honest = record(search("received", *THREE), target=None)
    for part in render([honest, record(search("received", *ONE), target=0)]):
        console.print(part)
    text = console.export_text()
    rows = [line.split("│") for line in text.splitlines()]
    told = {row[1].strip(): [cell.strip() for cell in row[3:-1]] for row in rows if len(row) > 4}
    assert told["strangeness"] == ["1, 1"] * 4
    assert told["standing out"] == ["1, 1", "1, 1", "0, 1", "0, 1"]
    assert told["the same, by kind"] == told["standing out"]
    assert "Of 1 honest networks" in text
    assert "reported half" not in text


def test_more_is_asked_of_a_network_that_reads_patches() -> None:
    asked = record(search("received", *ONE), target=0, network="vit")
    assert highest(asked, READINGS["the same, by kind"])[0] == pytest.approx(2.5)
