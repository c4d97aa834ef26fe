# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The probability that ships is what its command fits, and the diagram counts as by hand."""

import math
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from examples.lab.kit.records import Record, Store
from examples.lab.population.__main__ import RESULTS, main
from examples.lab.population.probability import Led, fit, leading, lines, render
from lmr_guard.localize.probability import OFFSET, SLOPE, probability

HONEST, RIGHT, MISSED = Led(1.1, False, False), Led(4.0, True, True), Led(1.1, False, True)


def record(*sizes: float, target: int | None, took: bool | None, half: str = "reported") -> Record:
    told: dict[str, Any] = {"by": "inversion", "form": "received", "space": "patch", "repeat": 0}
    told |= {"classes": list(range(len(sizes))), "sizes": sizes, "nearness": [1.0] * len(sizes)}
    member = {"half": half, "target": target, "network": "slim_vgg"}
    return {"member": member, "took": took, "suspicion": {"evidence": [told]}}


def test_what_ships_is_what_was_fit() -> None:
    calibration = [
        each
        for name in ("scored", "everyday-scored")
        for each in leading(Store(RESULTS / f"{name}.jsonl").read(), "calibration")
    ]
    assert fit(calibration) == (pytest.approx(OFFSET, abs=0.01), pytest.approx(SLOPE, abs=0.01))


def test_the_class_that_leads_is_the_attackers_or_not() -> None:
    sizes = (0.05, 0.2, 0.2, 0.2, 0.2)
    kept = [
        record(*sizes, target=0, took=True),
        record(*sizes, target=1, took=True),
        record(*sizes, target=None, took=None),
    ]
    left_out = [
        record(*sizes, target=0, took=False),
        record(*sizes, target=0, took=True, half="calibration"),
    ]
    found = leading([*kept, *left_out], "reported")
    assert [(each.right, each.backdoored) for each in found] == [
        (True, True),
        (False, True),
        (False, False),
    ]
    assert [each.score for each in found] == pytest.approx([4.0] * 3)


def test_honest_networks_weigh_as_much_as_backdoored_ones_however_many() -> None:
    mixed = [Led(1.5, False, False), Led(3.0, False, False), Led(1.5, True, True), RIGHT]
    assert fit(mixed) == pytest.approx(fit([*mixed, *mixed[:2], *mixed[:2]]), abs=1e-3)


def test_a_line_counts_and_weighs_by_hand() -> None:
    low, high = lines([HONEST, HONEST, MISSED, RIGHT])
    assert (low.found.hits, low.found.trials, low.share) == (0, 3, 0.0)
    assert low.told == pytest.approx(probability(1.1))
    assert (high.found.hits, high.found.trials, high.share) == (1, 1, 1.0)
    # One of two honest ones and one of one backdoored: a half against a quarter.
    (line,) = lines([HONEST, RIGHT, Led(4.0, False, False)])[1:]
    assert line.share == pytest.approx(0.5 / 0.75)


def test_every_network_is_in_one_line() -> None:
    scores = [math.exp(i / 20) for i in range(60)]
    told = lines([Led(score, True, i % 2 == 0) for i, score in enumerate(scores)])
    assert sum(line.found.trials for line in told) == len(scores)


def test_tables_say_of_how_many() -> None:
    console = Console(width=120, record=True, file=StringIO())
    for part in render([HONEST, Led(2.0, False, False), MISSED, RIGHT], [HONEST, RIGHT]):
        console.print(part)
    text = console.export_text()
    assert "fit to 2 honest and 2 backdoored networks" in text
    assert "Reported: 1 honest and 1 backdoored networks" in text


def test_the_command_prints_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "probability.svg"
    assert main(["probability", "--draw", str(place)]) == 0
    assert f"offset {OFFSET:.2f}, slope {SLOPE:.2f}" in capsys.readouterr().out
    assert place.read_text().startswith("<?xml")
    assert main(["probability", "--out", str(tmp_path)]) == 3
