# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The document against its schema, and what a person sees of it."""

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from rich.console import Console

from lmr_guard.contracts import (
    Achieved,
    Finding,
    Outcome,
    Rate,
    Repair,
    Suspicion,
    TriggerResult,
    Variant,
    Verdict,
)
from lmr_guard.errors import StageError
from lmr_guard.release.policy import Policy
from lmr_guard.release.report import document, environment, validate, write
from lmr_guard.release.tables import summary_line, suspect_line, tables

SHA = "0123456789abcdef" * 4
PATCH = TriggerResult("patch.png@9,9", "given", 3, Rate(2, 324), Rate(330, 360))
DRILL = TriggerResult("pcb", "drilled", 0, Rate(0, 320), Rate(340, 360))


def variant(name: str, outcome: Outcome = Outcome.PASS, published: str | None = None) -> Variant:
    reason = "patch.png@9,9: ASR 40/324 (12.3%) into class 3, at most 16.4% at 95% confidence"
    return Variant(
        name=name,
        sha256=SHA,
        bytes=313155,
        clean_accuracy=Rate(350, 360),
        triggers=(PATCH, DRILL),
        achieved=Achieved(0.41, 0.64, 8),
        provider="CPUExecutionProvider",
        verdict=Verdict(SHA, (Finding("asr:patch.png@9,9", outcome, reason),)),
        weights_sha256=SHA,
        published=published,
        plan={"layers": ((1, 2), Path("x")), "level": Outcome.FAIL},
    )


def full(**changes: object) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "model": "model.safetensors",
        "model_sha256": SHA,
        "suspicion": Suspicion(3, (0.1, float("nan")), "unlearning", 0.8, ({"seed": 1},)),
        "repair": Repair(3, Rate(97, 100), Rate(96, 100), (1, 5), 300, 200, ({"step": 10},)),
        "variants": [
            variant("float32", published="float32.onnx"),
            variant("l1-0.6+int8", Outcome.FAIL),
        ],
        "received": [variant("float32")],
        "policy": asdict(Policy()),
        "outcome": Outcome.PASS,
        "exit_code": 0,
        "environment": environment(),
        "config": {"seed": 0},
        "notes": ["one note"],
    }
    return document(**(arguments | changes))


def text(content: Mapping[str, Any], width: int = 100) -> str:
    """What a pipe sees: no colours."""
    console = Console(file=StringIO(), width=width)
    for table in tables(content):
        console.print(table)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_one_line_says_who_was_suspected_and_what_the_repair_cost() -> None:
    named = {"seed": 0, "classes": ["cat", "dog", "deer", "frog"]}
    assert suspect_line(full(config=named)) == (
        "suspect: class 3 (frog), unlearning; repaired, CA on the select part 97/100 97.0% -> "
        "96/100 96.0%"
    )
    assert str(suspect_line(full(repair=None))).endswith(
        "class 3, unlearning; nothing was repaired"
    )
    abstained = Suspicion(None, (1.0, 1.2), "inversion")
    assert suspect_line(full(suspicion=abstained, repair=None)) == (
        "suspect: nobody, localize abstained; nothing was repaired"
    )


@pytest.mark.parametrize("suspicion", [None, Suspicion(None, (), "not looked for")])
def test_where_nobody_was_looked_for_nothing_is_said(suspicion: Suspicion | None) -> None:
    assert suspect_line(full(suspicion=suspicion, repair=None)) is None


def test_the_document_has_the_agreed_names() -> None:
    content = full()
    validate(content)
    assert {"schema_version", "verdict", "exit_code", "model", "suspicion", "repair"} <= set(
        content
    )
    assert (content["schema_version"], content["verdict"], content["exit_code"]) == (
        "1.0",
        "pass",
        0,
    )
    assert content["model"] == {"path": "model.safetensors", "sha256": SHA}
    assert content["suspicion"]["target"] == 3
    assert content["suspicion"]["scores"] == [0.1, None]
    assert content["repair"]["clean_accuracy"] == {
        "before": {"hits": 97, "trials": 100},
        "after": {"hits": 96, "trials": 100},
    }
    assert content["evidence"] == ["drilled", "given"]
    assert content["config"] == {
        "seed": 0,
        "policy": asdict(Policy()) | {"require": ["float32", "int8"]},
    }
    first, second = content["variants"]
    assert first["clean_accuracy"] == {
        "hits": 350,
        "trials": 360,
        "lower": Rate(350, 360).lower(),
        "upper": Rate(350, 360).upper(),
    }
    assert first["triggers"][0] == {
        "name": "patch.png@9,9",
        "source": "given",
        "target": 3,
        "hits": 2,
        "trials": 324,
        "lower": Rate(2, 324).lower(),
        "upper": Rate(2, 324).upper(),
        "ta": {"hits": 330, "trials": 360},
    }
    assert first["achieved"] == {"sparsity": 0.41, "parameter_sparsity": 0.64, "bits": 8}
    assert first["plan"] == {"layers": [[1, 2], "x"], "level": 2}
    assert (first["published"], second["published"], second["verdict"]) == (
        "float32.onnx",
        None,
        "fail",
    )


def test_bounds_use_the_confidence_of_the_policy() -> None:
    content = full(policy=asdict(Policy(confidence=0.5)))
    assert content["variants"][0]["triggers"][0]["upper"] == Rate(2, 324).upper(0.5)


def test_nothing_localised_and_nothing_built_is_still_a_document() -> None:
    content = full(
        suspicion=None,
        repair=None,
        variants=[],
        received=[],
        outcome=Outcome.INCOMPLETE,
        exit_code=3,
    )
    validate(content)
    assert content["evidence"] == []
    assert "no trigger was tried" in summary_line(content)
    abstained = full(suspicion=Suspicion(None, (), "unlearning"))
    validate(abstained)
    assert abstained["suspicion"]["target"] is None


def broken(path: str, value: object) -> dict[str, Any]:
    content: Any = copy.deepcopy(full())
    *keys, last = (int(key) if key.isdigit() else key for key in path.split("/"))
    place = content
    for key in keys:
        place = place[key]
    place[last] = value
    return dict(content)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("surprise", 1, "'surprise' was unexpected"),
        ("schema_version", "2.0", r"'1.0' was expected at \$.schema_version"),
        ("verdict", "clean", "'clean' is not one of"),
        ("exit_code", 1, r"0 was expected at \$.exit_code"),
        ("verdict", "fail", r"0 is less than the minimum of 1 at \$.exit_code"),
        ("model/sha256", "abc", "'abc' does not match"),
        ("variants/0/clean_accuracy/hits", -1, "-1 is less than the minimum"),
        ("variants/0/triggers/0/source", "guessed", "'guessed' is not one of"),
        ("variants/0/triggers/0/extra", 1, "'extra' was unexpected"),
        ("variants/1/published", "x.onnx", "is not of type 'null'"),
        ("config/policy/max_asr", 1, "1 is greater than or equal to the maximum"),
        ("suspicion/target", "three", "is not of type"),
    ],
)
def test_the_schema_refuses_what_it_does_not_know(path: str, value: object, message: str) -> None:
    with pytest.raises(StageError, match=message):
        validate(broken(path, value))


def test_every_field_is_required() -> None:
    for key in full():
        content = full()
        del content[key]
        with pytest.raises(StageError, match=f"'{key}' is a required property"):
            validate(content)


def test_the_schema_is_a_schema_and_closed() -> None:
    import lmr_guard

    schema = json.loads(
        (Path(lmr_guard.__file__).parent / "release" / "report.schema.json").read_text()
    )
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["additionalProperties"] is False
    assert all(d.get("additionalProperties", False) is False for d in schema["$defs"].values())


def test_writing_is_atomic_and_readable(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write(full(), path)
    assert json.loads(path.read_text(encoding="utf-8")) == full()
    with pytest.raises(StageError, match="is not one of"):
        write(broken("verdict", "clean"), path)
    assert json.loads(path.read_text(encoding="utf-8"))["verdict"] == "pass"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("width", [80, 100, 140])
def test_the_tables_show_counts_with_bounds_at_any_usual_width(width: int) -> None:
    shown = text(full(), width)
    assert max(len(line) for line in shown.splitlines()) <= width
    assert "\x1b" not in shown
    assert "…" not in shown
    for part in (
        "float32",
        "l1-0.6+int8",
        "350/360",
        "2/324",
        "2.2%",
        "330/360",
        "published",
        "fail",
    ):
        assert part in shown
    assert shown.index("The model as received") < shown.index("Variants") < shown.index("Why not")
    assert "40/324" in shown[shown.index("Why not") :]


def test_the_tables_survive_names_that_look_like_markup() -> None:
    odd = replace(variant("[red]x[/red]"), triggers=(replace(PATCH, name="[/]"),))
    shown = text(full(variants=[odd], received=[]))
    assert "[red]x[/red]" in shown
    assert "[/]" in shown
    assert "The model as received" not in shown
    assert "Why not" not in shown


def test_a_variant_without_triggers_says_none() -> None:
    assert "none" in text(full(variants=[replace(variant("float32"), triggers=())], received=[]))


def test_the_summary_says_what_it_rests_on() -> None:
    line = summary_line(full())
    assert line == (
        "PASS: 1 of 2 variants published; worst ASR 2/324 0.6%, at most 2.2% (patch.png@9,9); "
        "rests on 2 triggers (drilled, given), says nothing about others"
    )
    assert "\n" not in line


def test_a_variant_that_could_not_be_built_counts_as_asked_for() -> None:
    asked = {"seed": 0, "recipes": [{"label": "float32"}, {"label": "int8"}, {"label": "l1-0.9"}]}
    assert summary_line(full(config=asked)).startswith("PASS: 1 of 3 variants published; ")


def test_the_environment_names_what_numbers_depend_on() -> None:
    found = environment()
    assert found["packages"]["torch"] == torch.__version__
    assert found["packages"]["torch-pruning"] == "1.6.1"
    assert found["threads"] == torch.get_num_threads()
    assert (found["device"], found["gpu"]) == ("cpu", None)


def test_the_processor_is_read_where_the_system_tells(tmp_path: Path) -> None:
    from lmr_guard.release.report import _processor

    source = tmp_path / "cpuinfo"
    source.write_text("model name\t: Some CPU\nflags\t\t: fpu avx2 avx512_vnni sse\n")
    assert _processor(source) == ("Some CPU", ["avx2", "avx512_vnni"])
    source.write_text("Features\t: fp asimd i8mm\n")
    assert _processor(source)[1] == ["asimd", "i8mm"]
    name, flags = _processor(tmp_path / "absent")
    assert flags == []
    assert isinstance(name, str)
