# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What a fire drill came to, as a record and out of a file."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lmr_guard.contracts import Rate
from lmr_guard.errors import ExitCode, InputError
from lmr_guard.release.drills import DRILL_VERSION, DrilledAttack, DrilledForm, DrillReport
from lmr_guard.release.records import Outcome

SHA = "0123456789abcdef" * 4
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
FOUND = DrilledAttack(
    attack="badnets",
    wakes="float32",
    target=3,
    suspect=3,
    forms=(
        DrilledForm(
            name="float32",
            asr_unrepaired=Rate(159, 161),
            asr_repaired=Rate(0, 161),
            awake=True,
            suppressed=True,
        ),
        DrilledForm(
            name="int8",
            asr_unrepaired=Rate(7, 161),
            asr_repaired=None,
            awake=False,
            suppressed=True,
        ),
    ),
    took=True,
    outcome=Outcome.PASS,
    seconds=12.5,
)
MISSED = replace(FOUND, attack="pcb", wakes="pruned", suspect=None, outcome=Outcome.FAIL)
DRILL = DrillReport(
    model="model.safetensors",
    model_sha256=SHA,
    weights_sha256=SHA[::-1],
    attacks=(FOUND, MISSED),
    config={"attacks": ["badnets", "pcb"], "seed": 0},
    environment={"device": "cpu"},
)


def test_a_drill_has_the_agreed_names() -> None:
    record = DRILL.to_json()
    assert {key: value for key, value in record.items() if key != "attacks"} == {
        "drill_version": "1.0",
        "source": "drilled",
        "model": {"path": "model.safetensors", "sha256": SHA, "weights_sha256": SHA[::-1]},
        "verdict": "fail",
        "exit_code": 1,
        "config": {"attacks": ["badnets", "pcb"], "seed": 0},
        "environment": {"device": "cpu"},
    }
    found, missed = record["attacks"]
    assert found == {
        "attack": "badnets",
        "wakes": "float32",
        "target": 3,
        "suspect": 3,
        "localized": True,
        "variants": [
            {
                "name": "float32",
                "asr_unrepaired": {"hits": 159, "trials": 161},
                "asr_repaired": {"hits": 0, "trials": 161},
                "awake": True,
                "suppressed": True,
            },
            {
                "name": "int8",
                "asr_unrepaired": {"hits": 7, "trials": 161},
                "asr_repaired": None,
                "awake": False,
                "suppressed": True,
            },
        ],
        "took": True,
        "outcome": "pass",
        "seconds": 12.5,
    }
    assert (missed["suspect"], missed["localized"], missed["outcome"]) == (None, False, "fail")


@pytest.mark.parametrize("attacks", [(FOUND, MISSED), (FOUND,)])
def test_a_drill_is_read_as_it_was_written(
    attacks: tuple[DrilledAttack, ...], tmp_path: Path
) -> None:
    drill = replace(DRILL, attacks=attacks)
    assert DrillReport.from_json(drill.to_json()) == drill
    path = tmp_path / "drill.json"
    path.write_text(json.dumps(drill.to_json()))
    assert DrillReport.read(path) == drill


@pytest.mark.parametrize("place", ["drill/drill.json", "cifar10/drill.json"])
def test_drills_of_the_examples_are_read_as_they_stand(place: str) -> None:
    path = EXAMPLES / place
    assert DrillReport.read(path).to_json() == json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("suspect", "localized"), [(3, True), (2, False), (None, False)])
def test_the_suspect_is_compared_with_the_target(suspect: int | None, localized: bool) -> None:
    assert replace(FOUND, suspect=suspect).localized is localized


@pytest.mark.parametrize(
    ("outcomes", "verdict", "code"),
    [
        ((Outcome.PASS, Outcome.PASS), Outcome.PASS, ExitCode.PASSED),
        ((Outcome.PASS, Outcome.INCOMPLETE), Outcome.INCOMPLETE, ExitCode.INCOMPLETE),
        ((Outcome.FAIL, Outcome.INCOMPLETE), Outcome.FAIL, ExitCode.REFUSED),
        ((), Outcome.INCOMPLETE, ExitCode.INCOMPLETE),
    ],
)
def test_the_worst_attack_decides_and_no_attack_is_no_pass(
    outcomes: tuple[Outcome, ...], verdict: Outcome, code: ExitCode
) -> None:
    drill = replace(DRILL, attacks=tuple(replace(FOUND, outcome=o) for o in outcomes))
    assert (drill.verdict, drill.exit_code) == (verdict, code)


@pytest.mark.parametrize(
    "document", [None, [], "1.0", {}, {"drill_version": "0.9"}, {"drill_version": 1.0}]
)
def test_another_version_is_an_input_error(document: object) -> None:
    with pytest.raises(InputError, match=rf"expected a drill.json of version {DRILL_VERSION}, got"):
        DrillReport.from_json(document)


def changed(path: str, value: object) -> Any:  # noqa: ANN401 - JSON
    """The record of a drill with another value at one place, or without it where that is ``...``.

    The names of the path are parted by slashes.
    """
    content = json.loads(json.dumps(DRILL.to_json()))
    *keys, last = (int(key) if key.isdigit() else key for key in path.split("/"))
    place = content
    for key in keys:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return content


@pytest.mark.parametrize(
    "path",
    [
        "model",
        "model/weights_sha256",
        "attacks",
        "config",
        "environment",
        "attacks/1/attack",
        "attacks/1/suspect",
        "attacks/1/outcome",
        "attacks/0/variants",
        "attacks/0/variants/1/asr_repaired",
        "attacks/0/variants/0/asr_unrepaired/trials",
    ],
)
def test_truncated_content_is_an_input_error_that_names_what_is_missing(path: str) -> None:
    name = path.rpartition("/")[2]
    with pytest.raises(InputError, match=f"expected a whole drill.json, got one without '{name}'"):
        DrillReport.from_json(changed(path, ...))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("attacks", 3),
        ("attacks/0", "badnets"),
        ("attacks/0/outcome", "clean"),
        ("attacks/0/outcome", 2),
        ("attacks/0/outcome", None),
        ("attacks/0/variants/0/asr_unrepaired/hits", 162),
        ("attacks/0/variants/0/asr_unrepaired/hits", "many"),
    ],
)
def test_values_that_no_drill_holds_are_an_input_error(path: str, value: object) -> None:
    with pytest.raises(InputError, match=r"expected a whole drill.json, got"):
        DrillReport.from_json(changed(path, value))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "expected the drill.json of a drill, got no such file: .*drill.json'"),
        (b"", "got no JSON: .*drill.json"),
        (b"{", "got no JSON: .*drill.json"),
        (b"\xff", "got no JSON: .*drill.json"),
        (b"[" * 100_000, "got no JSON: .*drill.json"),
        (b"[]", "of version 1.0, got another: .*drill.json"),
        (b"{}", "of version 1.0, got another: .*drill.json"),
        (b'{"drill_version": "1.0"}', "got one without 'model': .*drill.json"),
    ],
)
def test_a_file_that_holds_no_drill_is_an_input_error_that_names_it(
    content: bytes | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "drill.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=f"{message}$") as caught:
        DrillReport.read(path)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code is ExitCode.UNSAFE_INPUT
