# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The report against its schema, out of its file, in a notebook; what its numbers depend on."""

import dataclasses
import json
import math
import xml.etree.ElementTree as ET
from dataclasses import FrozenInstanceError, asdict, replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from factories import MARGINS, PATCH, REPLAYED, REPORT, SEARCHED, SHA, variant

from lmr_guard.classifier import Preprocessing
from lmr_guard.contracts import Rate
from lmr_guard.errors import ConfigError, ExitCode, InputError, StageError
from lmr_guard.localize.drawing import drawing
from lmr_guard.localize.inversion import Pattern
from lmr_guard.release.drills import DrilledAttack, DrillReport
from lmr_guard.release.environment import _processor, environment
from lmr_guard.release.policy import Policy
from lmr_guard.release.records import Outcome
from lmr_guard.release.report import Report, suspicion_record, validate, write_json
from lmr_guard.release.tables import COLUMNS, rows, summary_line, suspect_line
from lmr_guard.results import Method, Repair, Suspicion

SHAPE = Preprocessing(channels=1, height=16, width=16, mean=(0.0,), std=(1.0,))
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
DRILLED = DrillReport(
    model="model.safetensors",
    model_sha256=SHA,
    weights_sha256=SHA,
    attacks=(
        DrilledAttack(
            attack="badnets",
            wakes="float32",
            target=3,
            suspect=None,
            forms=(),
            took=False,
            outcome=Outcome.INCOMPLETE,
            seconds=1.0,
        ),
    ),
    config={"seed": 0},
    environment={"device": "cpu"},
)


BARE = Report(
    model="foreign.onnx",
    model_sha256=SHA,
    verdict=Outcome.INCOMPLETE,
    policy=Policy(require=("float32",)),
    environment=environment(),
    config={},
)


# --- the document -------------------------------------------------------------------------------


def test_the_document_has_the_agreed_names() -> None:
    content = REPORT.to_json()
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
    assert content["suspicion"] == {
        "target": 3,
        "scores": [0.1, None],
        "method": "inversion and unlearning",
        "agreement": 0.8,
        "evidence": [{"seed": 1}],
    }
    assert content["repair"] == {
        "suspect": 3,
        "clean_accuracy": {
            "before": {"hits": 97, "trials": 100},
            "after": {"hits": 96, "trials": 100},
        },
        "pruned_columns": [1, 5],
        "phase1_steps": 300,
        "phase2_steps": 200,
        "history": [{"step": 10}],
    }
    assert content["evidence"] == ["drilled", "given"]
    assert content["notes"] == ["one note"]
    assert content["config"] == {
        "seed": 0,
        "policy": asdict(Policy()) | {"require": ["float32"]},
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
        "margins": {"clean": list(MARGINS.clean), "triggered": list(MARGINS.triggered)},
    }
    assert first["achieved"] == {"sparsity": 0.41, "parameter_sparsity": 0.64, "bits": 8}
    assert (first["published"], second["published"], second["verdict"]) == (
        "float32.onnx",
        None,
        "fail",
    )


def test_the_document_is_plain_data_whatever_the_records_hold() -> None:
    plan = {
        "layers": ((1, 2), Path("x")),
        "level": Outcome.FAIL,
        "far": math.inf,
        "rate": Rate(1, 2),
    }
    odd = replace(REPORT, received=(replace(variant("float32"), plan=plan),))
    content = odd.to_json()
    assert content["received"][0]["plan"] == {
        "layers": [[1, 2], "x"],
        "level": 2,
        "far": None,
        "rate": {"hits": 1, "trials": 2},
    }
    assert json.loads(json.dumps(content, allow_nan=False)) == content


def test_bounds_use_the_confidence_of_the_policy() -> None:
    content = replace(REPORT, policy=Policy(confidence=0.5, require=("float32",))).to_json()
    assert content["variants"][0]["triggers"][0]["upper"] == Rate(2, 324).upper(0.5)
    assert content["received"][0]["clean_accuracy"]["lower"] == Rate(350, 360).lower(0.5)


def test_nothing_localised_and_nothing_built_is_still_a_document() -> None:
    content = BARE.to_json()
    validate(content)
    assert (content["suspicion"], content["repair"], content["evidence"]) == (None, None, [])
    assert content["exit_code"] == 3
    abstained = replace(BARE, suspicion=Suspicion(None, (), Method.UNLEARNING)).to_json()
    validate(abstained)
    assert abstained["suspicion"]["target"] is None


def broken(path: str, value: object) -> dict[str, Any]:
    """A document with another value at one place; slashes part the names of its path."""
    content: Any = json.loads(json.dumps(REPORT.to_json()))
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
        ("created", "2026-03-01 12:00:00", "'2026-03-01 12:00:00' does not match"),
        ("created", None, "None is not of type 'string'"),
        ("verdict", "fail", r"0 is less than the minimum of 1 at \$.exit_code"),
        ("model/sha256", "abc", "'abc' does not match"),
        ("variants/0/clean_accuracy/hits", -1, "-1 is less than the minimum"),
        ("variants/0/triggers/0/source", "guessed", "'guessed' is not one of"),
        ("variants/0/triggers/0/extra", 1, "'extra' was unexpected"),
        ("variants/0/triggers/0/margins/clean", [0.0] * 10, "is too short"),
        ("variants/0/triggers/0/margins/clean/3", None, "None is not of type 'number'"),
        ("variants/0/triggers/0/margins/clean/3", 1e40, "1e[+]40 is greater than the maximum"),
        ("variants/1/published", "x.onnx", "is not of type 'null'"),
        ("config/policy/max_asr", 1, "1 is greater than or equal to the maximum"),
        ("suspicion/target", "three", "is not of type"),
    ],
)
def test_the_schema_refuses_what_it_does_not_know(path: str, value: object, message: str) -> None:
    with pytest.raises(StageError, match=message):
        validate(broken(path, value))


def test_every_field_but_the_time_is_required() -> None:
    for key in REPORT.to_json().keys() - {"created"}:
        content = REPORT.to_json()
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


def test_a_suspicion_is_recorded_without_its_patterns_and_class_names() -> None:
    suspicion = Suspicion(1, (1.0, 2.5), Method.DRIFT, 1.0, ({"by": "drift"},), (), ("a", "b"))
    assert suspicion_record(suspicion) == {
        "target": 1,
        "scores": (1.0, 2.5),
        "method": "drift",
        "agreement": 1.0,
        "evidence": ({"by": "drift"},),
    }


# --- the record ---------------------------------------------------------------------------------


def test_a_report_is_frozen_and_takes_keywords_only() -> None:
    with pytest.raises(FrozenInstanceError, match="verdict"):
        REPORT.verdict = Outcome.FAIL  # type: ignore[misc]
    with pytest.raises(TypeError, match="positional argument"):
        Report("model.safetensors", SHA)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("verdict", "code"),
    [
        (Outcome.PASS, ExitCode.PASSED),
        (Outcome.FAIL, ExitCode.REFUSED),
        (Outcome.INCOMPLETE, ExitCode.INCOMPLETE),
    ],
)
def test_the_verdict_is_the_exit_code(verdict: Outcome, code: ExitCode) -> None:
    report = replace(REPORT, verdict=verdict)
    assert report.exit_code is code
    assert report.to_json()["exit_code"] == code


def test_what_was_published_and_what_it_rests_on() -> None:
    assert REPORT.published == REPORT.variants[:1]
    assert REPORT.sources == ("drilled", "given")
    assert (BARE.published, BARE.sources) == ((), ())
    found = replace(variant("int8"), triggers=(SEARCHED, REPLAYED))
    assert replace(REPORT, variants=(found,)).sources == ("inverted",)
    assert replace(REPORT, variants=(), received=(found,)).sources == ()


SEARCHED_TOO = replace(
    variant("float32", Outcome.INCOMPLETE),
    triggers=(PATCH, REPLAYED, SEARCHED),
    weights_sha256=None,
    searches=({"by": "inversion"},),
    per_class=(Rate(9, 10), Rate(0, 0)),
)
DRAWN = Suspicion(
    3,
    (1.0, 2.5),
    Method.INVERSION,
    drawings=(drawing(Pattern("warp", 3, 0.1, (torch.zeros(1, 2, 4, 4),)), SHAPE),),
    others=(1,),
    probability=0.87,
)
ONE = Repair(3, Rate(9, 10), Rate(8, 10), (1, 4), 24, 48, ({"phase": 1},))


@pytest.mark.parametrize(
    "report",
    [
        REPORT,
        BARE,
        replace(
            REPORT,
            verdict=Outcome.FAIL,
            policy=Policy(require=("l1-0.6+int8",)),
            drills=(DRILLED,),
        ),
        replace(REPORT, suspicion=Suspicion(None, (1.0,), Method.INVERSION), repair=None),
        replace(REPORT, suspicion=Suspicion(None, (), Method.NOT_LOOKED_FOR), repair=None),
        replace(BARE, variants=(SEARCHED_TOO,), notes=()),
        replace(REPORT, suspicion=DRAWN),
        replace(REPORT, repair=replace(ONE, further=(replace(ONE, suspect=1),))),
        replace(REPORT, repair=replace(ONE, settled=True)),
        replace(BARE, policy=Policy(confidence=0.5, require=("int8",), accept_inverted=True)),
        replace(BARE, config={"classes": ("a", "b"), "shifts": ((1, 2),)}),
    ],
)
def test_a_report_is_read_as_it_was_written(report: Report, tmp_path: Path) -> None:
    assert Report.from_json(report.to_json()) == report
    path = tmp_path / "report.json"
    report.write(path)
    again = Report.read(path)
    assert again == report
    assert again.to_json() == report.to_json()


def test_a_suspicion_read_again_has_lost_nothing_but_its_patterns_and_class_names() -> None:
    suspicion = Suspicion(1, (1.0, 2.5), Method.DRIFT, 1.0, (), (), ("a", "b"))
    again = Report.from_json(replace(BARE, suspicion=suspicion).to_json()).suspicion
    assert again == suspicion
    assert again is not None
    assert (again.patterns, again.classes) == ((), ())


def test_a_drawing_that_is_no_small_picture_is_refused() -> None:
    document = replace(REPORT, suspicion=DRAWN).to_json()
    (kept,) = document["suspicion"]["drawings"]
    for png in ("", "PHN2Zz4=", "\u00e9", "x" * 50_000):
        document["suspicion"]["drawings"] = [{**kept, "png": png}]
        with pytest.raises(InputError, match="expected a report of lmr-guard, got another: "):
            Report.from_json(document)


# --- the time -----------------------------------------------------------------------------------


def test_a_report_says_when_it_was_made_and_is_the_same_at_another_time() -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    made = replace_default(REPORT)
    after = datetime.now(UTC)
    assert made.created is not None
    assert before <= made.created <= after
    written = made.to_json()["created"]
    assert datetime.fromisoformat(written) == made.created
    assert len(written) == len("2026-03-01T12:00:00Z")
    later = replace(made, created=made.created + timedelta(days=1))
    assert later == made
    assert Report.from_json(later.to_json()).created == later.created


def replace_default(report: Report) -> Report:
    """The same report, made now."""
    fields = {field.name: getattr(report, field.name) for field in dataclasses.fields(report)}
    del fields["created"]
    return Report(**fields)


def test_a_report_of_an_older_version_says_no_time(tmp_path: Path) -> None:
    old = replace(REPORT, created=None)
    assert "created" not in old.to_json()
    old.write(tmp_path / "report.json")
    assert Report.read(tmp_path / "report.json").created is None


def test_times_are_written_in_utc_and_whole_seconds() -> None:
    told = datetime(2026, 3, 1, 14, 0, 0, 999999, tzinfo=timezone(timedelta(hours=2)))
    assert replace(REPORT, created=told).to_json()["created"] == "2026-03-01T12:00:00Z"


def test_who_wants_the_same_bytes_says_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert replace_default(REPORT).to_json()["created"] == "1970-01-02T00:00:00Z"


@pytest.mark.parametrize("said", ["", "yesterday", "1.5", "9" * 30])
def test_another_time_than_seconds_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", said)
    with pytest.raises(ConfigError, match="expected whole seconds since 1970 in SOURCE_DATE_EPOCH"):
        replace_default(REPORT)


@pytest.mark.parametrize("name", ["report.json", "drill-badnets.json"])
def test_reports_of_the_examples_are_read_as_they_stand(name: str) -> None:
    path = EXAMPLES / "cifar10" / name
    assert Report.read(path).to_json() == json.loads(path.read_text(encoding="utf-8"))


# --- files --------------------------------------------------------------------------------------


def test_writing_is_atomic_and_readable(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    REPORT.write(path)
    assert json.loads(path.read_text(encoding="utf-8")) == REPORT.to_json()
    with pytest.raises(StageError, match="'abc' does not match"):
        replace(REPORT, model_sha256="abc").write(path)
    assert json.loads(path.read_text(encoding="utf-8"))["model"]["sha256"] == SHA
    assert list(tmp_path.iterdir()) == [path]


def test_a_record_of_what_json_cannot_hold_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_json({"far": math.inf, "place": Path("x"), "name": "ä"}, path)
    assert path.read_text(encoding="utf-8") == (
        '{\n  "far": null,\n  "place": "x",\n  "name": "ä"\n}\n'
    )
    with pytest.raises(StageError, match=r"a record that JSON can hold, got .*set is not JSON ser"):
        write_json({"set": {1}}, tmp_path / "other.json")
    assert list(tmp_path.iterdir()) == [path]


def refused(path: Path) -> str:
    """What is said about a file that holds no report: one line, which names it."""
    with pytest.raises(InputError, match=r"^expected ") as caught:
        Report.read(path)
    message = str(caught.value)
    assert message.isprintable()
    assert message.endswith((f": {path}", f": {str(path)!r}"))
    assert caught.value.exit_code is ExitCode.UNSAFE_INPUT
    return message


def test_a_report_that_is_missing_is_an_input_error(tmp_path: Path) -> None:
    assert "expected a report.json, got no such file" in refused(tmp_path / "none.json")
    assert "expected a report.json, got a folder" in refused(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"\x08\x0a\xff", b"verdict: pass\nexit_code: 0\n", b"[" * 100_000],
)
def test_a_report_that_is_no_json_is_an_input_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(content)
    assert refused(path).startswith("expected JSON in a report, got ")


def read_as(document: object, folder: Path) -> str:
    path = folder / "report.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return refused(path)


def test_a_report_that_is_nested_too_deep_is_an_input_error(tmp_path: Path) -> None:
    deep = "[" * 600 + "]" * 600  # less than a parser of JSON refuses
    text = json.dumps(broken("config/images", "here")).replace('"here"', deep)
    (tmp_path / "report.json").write_text(text)
    message = refused(tmp_path / "report.json")
    assert message.startswith("expected a report of lmr-guard, got one that is nested too deep")


@pytest.mark.parametrize("document", [[], {}, None, "pass", {"name": "mine"}])
def test_json_that_is_no_report_is_an_input_error(document: object, tmp_path: Path) -> None:
    message = read_as(document, tmp_path)
    assert message.startswith("expected a report of lmr-guard, got another: ")
    assert "meets its schema" in message


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("surprise", 1, "'surprise' was unexpected"),
        ("schema_version", "2.0", "'1.0' was expected at $.schema_version"),
        ("environment/packages/two\nlines", 1, "1 is not of type"),
        ("suspicion/method", "guessed", "'guessed' is not a valid Method"),
        ("variants/0/findings/0/check", "taste", "'taste' is not a valid Check"),
        ("variants/0/clean_accuracy/hits", 361, "hits <= trials, got 361 of 360"),
        ("variants/0/triggers/0/margins/clean/0", 0, "expected 11 ascending margins, got 0, -12.1"),
        ("variants/0/triggers/0/margins/clean/3", math.nan, "expected 11 ascending margins, got"),
        ("config/policy/max_strangeness", math.inf, "max_strangeness of 1 or more, got inf"),
    ],
)
def test_a_report_that_means_nothing_is_an_input_error(
    path: str, value: object, told: str, tmp_path: Path
) -> None:
    message = read_as(broken(path, value), tmp_path)
    assert message.startswith("expected a report of lmr-guard, got another: ")
    assert told in message


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"verdict": "fail", "exit_code": 1},
            "come to, pass with exit code 0, got fail with 1; the report was changed",
        ),
        (
            {"verdict": "incomplete", "exit_code": 1},
            "come to, pass with exit code 0, got incomplete with 1; the report was changed",
        ),
        ({"verdict": "pass", "exit_code": 3}, "0 was expected at $.exit_code"),
    ],
)
def test_a_verdict_that_contradicts_the_variants_is_an_input_error(
    changes: dict[str, object], told: str, tmp_path: Path
) -> None:
    assert told in read_as(REPORT.to_json() | changes, tmp_path)


@pytest.mark.parametrize("place", ["variants", "received"])
def test_a_verdict_that_contradicts_its_findings_is_an_input_error(
    place: str, tmp_path: Path
) -> None:
    document = broken(f"{place}/0/findings/0/outcome", "fail")
    assert read_as(document, tmp_path) == (
        "expected the verdict that the findings about float32 come to, fail, got pass; the report "
        f"was changed: {tmp_path / 'report.json'}"
    )


def test_the_name_of_a_variant_cannot_break_the_line_or_steer_a_terminal(tmp_path: Path) -> None:
    document = broken("variants/0/findings/0/outcome", "fail")
    document["variants"][0]["name"] = "float32\n\x1b[2J"
    assert "the report was changed" in read_as(document, tmp_path)


@pytest.mark.parametrize("outcome", ["clean", 3])
def test_a_drill_that_means_nothing_is_an_input_error(outcome: object, tmp_path: Path) -> None:
    document = replace(REPORT, drills=(DRILLED,)).to_json()
    document["drills"][0]["attacks"][0]["outcome"] = outcome
    assert "expected a whole drill.json" in read_as(document, tmp_path)


# --- notebooks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("report", [REPORT, BARE])
def test_a_report_prints_as_one_line(report: Report) -> None:
    assert repr(report) == f"<Report {summary_line(report)}>"
    assert "\n" not in repr(report)


def cells(row: ET.Element) -> list[str]:
    return [cell.text or "" for cell in row]


def test_a_notebook_shows_the_lines_the_notes_and_a_row_per_trigger_that_was_shown() -> None:
    page = ET.fromstring(f"<div>{REPORT._repr_html_()}</div>")  # noqa: S314 - our own
    assert [line.text for line in page.findall("p")] == [
        summary_line(REPORT),
        suspect_line(REPORT),
        "one note",
    ]
    head, *body = page.findall("table/tr")
    assert cells(head) == list(COLUMNS)
    assert {cell.tag for cell in head} == {"th"}
    assert [tuple(cells(row)) for row in body] == list(rows(REPORT, REPORT.variants))
    assert len(body) == 4


def test_a_notebook_says_nothing_of_a_suspect_where_nobody_was_looked_for() -> None:
    page = ET.fromstring(f"<div>{BARE._repr_html_()}</div>")  # noqa: S314 - our own
    assert [line.text for line in page.findall("p")] == [summary_line(BARE)]


def test_names_from_files_are_text_in_a_notebook_whatever_they_hold() -> None:
    script = "<script>alert('1')</script>"
    odd = replace(
        variant(f"v{script}"),
        triggers=(replace(PATCH, name=f"t{script}"),),
        published=f"p{script}",
    )
    report = replace(
        REPORT,
        suspicion=Suspicion(0, (1.0,), Method.NAMED),
        variants=(odd,),
        config={"classes": [f"c{script}"]},
        notes=(f"n{script} & more",),
    )
    shown = report._repr_html_()
    assert "<script" not in shown
    page = ET.fromstring(f"<div>{shown}</div>")  # noqa: S314 - our own
    assert {place.tag for place in page.iter()} == {"div", "p", "table", "tr", "th", "td"}
    told = [place.text or "" for place in page.iter()]
    for name in (f"v{script}", f"t{script} > 3", f"n{script} & more"):
        assert name in told
    assert any(f"({'c' + script})" in line for line in told)


# --- the environment ------------------------------------------------------------------------------


def test_the_environment_names_what_numbers_depend_on() -> None:
    found = environment()
    assert found["packages"]["torch"] == torch.__version__
    assert found["packages"]["torch-pruning"] == "1.6.1"
    assert found["threads"] == torch.get_num_threads()
    assert (found["device"], found["gpu"]) == ("cpu", None)


def test_the_processor_is_read_where_the_system_tells(tmp_path: Path) -> None:
    source = tmp_path / "cpuinfo"
    source.write_text("model name\t: Some CPU\nflags\t\t: fpu avx2 avx512_vnni sse\n")
    assert _processor(source) == ("Some CPU", ["avx2", "avx512_vnni"])
    source.write_text("Features\t: fp asimd i8mm\n")
    assert _processor(source)[1] == ["asimd", "i8mm"]
    name, flags = _processor(tmp_path / "absent")
    assert flags == []
    assert isinstance(name, str)
