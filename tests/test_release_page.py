# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The page that people look at: what it says, and that no text becomes more than text."""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from factories import DRILL, PATCH, REPLAYED, REPORT, SEARCHED, room_for, variant
from hypothesis import given, settings
from hypothesis import strategies as st
from modules import ROOT
from PIL import Image

from lmr_guard.contracts import Rate
from lmr_guard.errors import ConfigError, StageError
from lmr_guard.release import page
from lmr_guard.release.drills import DrillReport
from lmr_guard.release.policy import Policy
from lmr_guard.release.records import Check, Finding, Outcome
from lmr_guard.release.report import Report
from lmr_guard.results import Drawing, Method, Repair, Suspicion

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)></style></title>{{ 7 * 7 }}-->"
FILE = BytesIO()
Image.new("L", (4, 4), 128).save(FILE, "PNG")
DRAWING = Drawing("patch@received", 3, 0.0123456, FILE.getvalue())
EACH = tuple(Rate(hits, 90) for hits in (90, 88, 86, 80))
DRILLED = DrillReport.read(ROOT / "examples" / "drill" / "drill.json")
SCORES = (1.0, 1.1, 0.9, 2.6)
FULL = replace(
    REPORT,
    suspicion=Suspicion(
        3,
        SCORES,
        Method.INVERSION,
        0.8,
        ({"by": "inversion", "form": "received", "space": "patch", "class": 3, "classes": [0, 3]},),
        drawings=(DRAWING,),
        probability=0.87,
    ),
    received=(replace(variant("float32"), per_class=(Rate(90, 90),) * 4),),
    variants=(
        replace(
            variant("float32", published="float32.onnx"),
            triggers=(PATCH, DRILL, REPLAYED, SEARCHED),
            per_class=EACH,
        ).with_finding(Finding(Check.LISTENS, Outcome.PASS, "class 1 needs 1.5 times less")),
        variant("l1-0.6+int8", Outcome.FAIL),
    ),
    config={
        "seed": 0,
        "classes": ["cat", "dog", "deer", "frog"],
        "localize": {"sure": 2.2, "doubt": 1.8},
        "images": {"repair": 100, "select": 50, "report": 360},
        "recipes": [{}, {}, {}],
    },
    drills=(DRILLED,),
)
REFUSED = replace(
    FULL,
    verdict=Outcome.FAIL,
    variants=(variant("float32", Outcome.FAIL), variant("l1-0.6+int8", Outcome.INCOMPLETE)),
)
NOTHING = replace(
    REPORT, verdict=Outcome.INCOMPLETE, suspicion=None, repair=None, variants=(), received=()
)


class Outline(HTMLParser):
    """All tags with their attributes, and the text between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def seen(report: Report) -> str:
    return Outline(page.html(report)).text


def with_text(document: Any, text: str) -> Any:  # noqa: ANN401 - any JSON
    """The same JSON with every string, keys left alone, replaced by ``text``."""
    if isinstance(document, dict):
        return {key: with_text(value, text) for key, value in document.items()}
    if isinstance(document, list):
        return [with_text(value, text) for value in document]
    return text if isinstance(document, str) else document


def written_by(text: str) -> Report:
    """A report whose every free text is ``text``: names, reasons, classes, notes, environment."""

    def told(form: Any) -> Any:  # noqa: ANN401 - a variant
        return replace(
            form,
            name=text,
            provider=text,
            published=text if form.published else None,
            triggers=tuple(replace(t, name=text) for t in form.triggers),
            verdict=replace(
                form.verdict,
                findings=tuple(
                    replace(f, reason=text, about=f.about and text) for f in form.verdict.findings
                ),
            ),
        )

    drill = replace(DRILLED.attacks[0], attack=text)
    forms = tuple(replace(form, name=text) for form in drill.forms)
    assert FULL.suspicion is not None
    evidence = with_text(FULL.suspicion.evidence, text)
    return replace(
        FULL,
        model=text,
        variants=tuple(map(told, FULL.variants)),
        received=tuple(map(told, FULL.received)),
        suspicion=replace(
            FULL.suspicion, evidence=tuple({**e, "by": "inversion"} for e in evidence)
        ),
        notes=(text,),
        drills=(replace(DRILLED, attacks=(replace(drill, forms=forms),)),),
        config={**FULL.config, "seed": text, "classes": [text] * 4, "images": {text: text}},
        environment={
            **FULL.environment,
            "python": text,
            "platform": text,
            "device": text,
            "gpu": text,
            "cpu": {"model": text, "flags": [text, text]},
            "packages": {text: text},
        },
        policy=replace(FULL.policy, require=(text,)),
    )


# --- what others wrote ----------------------------------------------------------------------------


def test_no_text_of_a_report_becomes_more_than_text() -> None:
    tame, wild = Outline(page.html(written_by("x"))), Outline(page.html(written_by(HOSTILE)))
    assert wild.tags == tame.tags
    assert wild.text.count("<script>alert(1)</script>") > 40
    assert "{{ 7 * 7 }}" in wild.text
    assert HOSTILE not in page.html(written_by(HOSTILE))


@settings(max_examples=30, deadline=None)
@given(st.text(st.characters(codec=None), min_size=1, max_size=40))
def test_whatever_the_text_the_page_keeps_its_structure_and_is_utf_8(text: str) -> None:
    drawn = page.html(written_by(text))
    drawn.encode()
    # Where names are alike columns fall together, hence one text for all of both.
    assert Outline(drawn).tags == Outline(page.html(written_by("x"))).tags


def test_letters_that_turn_a_line_around_are_spelled_out() -> None:
    assert "\u202e" not in page.html(written_by("a\u202eb"))
    assert r"a\u202eb" in seen(written_by("a\u202eb"))


def test_a_page_loads_nothing_and_forbids_it() -> None:
    outline = Outline(page.html(written_by(HOSTILE)))
    assert {"script", "link", "iframe", "object", "embed", "form"}.isdisjoint(
        tag for tag, _ in outline.tags
    )
    assert all(not name.startswith("on") for _, name, _ in outline.attributes)
    for tag, name, value in outline.attributes:
        if name == "href":
            assert re.fullmatch("#[a-z]+", value), value
        if name == "src":
            assert (tag, value[:22]) == ("img", "data:image/png;base64,")
    policy = next(v for _, n, v in outline.attributes if n == "content" and "default-src" in v)
    style = re.search("<style>(.*?)</style>", page.html(FULL), re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:")
    assert "url(" not in style[1]
    assert "@import" not in style[1]


@pytest.mark.parametrize(
    "config",
    [
        {"localize": "x", "classes": 3, "images": [], "recipes": 0},
        {"localize": {"sure": True, "doubt": "1"}, "classes": [1, None], "images": {"a": {}}},
        {"localize": {"sure": -1, "doubt": 0}, "classes": ["a"], "recipes": {"a": 1}},
        {},
    ],
)
def test_what_the_schema_leaves_free_may_hold_anything(config: dict[str, Any]) -> None:
    assert "Which class was suspected" in seen(replace(FULL, config=config))


def test_a_record_of_odd_evidence_is_shown_as_it_is() -> None:
    odd = {"by": ["a"], "class": {"items": 1}, "items": 2, "classes": "x", "strangeness": None}
    assert FULL.suspicion is not None
    report = replace(FULL, suspicion=replace(FULL.suspicion, evidence=(odd, {})))
    assert "{'items': 1}" in seen(report)


# --- what it says ---------------------------------------------------------------------------------


def test_the_verdict_comes_first_in_a_sentence() -> None:
    passed, refused, nothing = seen(FULL), seen(REFUSED), seen(NOTHING)
    assert "✓ Passed Passed: 1 of 3 variants was published (float32). Of what was" in passed
    assert (
        "sends 2/324 0.6% of the images of other classes into class 3 frog, at most 2.2% at 95% "
        "confidence; the limit is 5.0%. This holds for the triggers, files and limits below."
    ) in passed
    assert (
        "✗ Refused Refused: float32: patch.png@9,9: ASR 40/324 (12.3%) into class 3, at most "
        "16.4% at 95% confidence. Nothing was published."
    ) in refused
    assert "evaluated: float32 must pass and could not be measured. No trigger" in nothing
    assert "No trigger was tried at all." in nothing


def test_an_audit_of_one_file_speaks_of_the_file() -> None:
    audit = replace(FULL, received=(), suspicion=None, repair=None, drills=())
    assert "Passed: this file keeps every limit of the policy." in seen(audit)
    assert "The model as received was not measured" in seen(audit)
    assert "as received" not in seen(audit).replace("as received was not measured", "").replace(
        "against the model as received", ""
    )


def test_the_matrix_tells_counts_bounds_and_outcomes_before_and_after() -> None:
    text = seen(FULL)
    cells = re.findall(r'<td class="h(\d)">(.*?)</td>', page.html(FULL))
    assert len(cells) > 6
    for _, cell in cells[:6]:
        assert re.search(r'<span class="rate">\d+/\d+</span> [\d.]+%<br><small>at most', cell), cell
    assert "9/324 2.8% at most 5.2%" in text
    assert "replayed:warp@received inverted, into 3 frog" in text
    assert "class 1 dog needs 1.5 times less than others; limit 2.0" in text
    assert "not measured" in text
    assert "not searched" in text


def test_a_column_whose_target_differs_names_it_in_each_cell() -> None:
    other = replace(PATCH, target=1)
    first, second = FULL.variants
    report = replace(
        FULL,
        variants=(
            replace(first, triggers=(PATCH,)),
            replace(second, triggers=(other,)),
        ),
    )
    assert "into 3 frog" in seen(report)
    assert "into 1 dog" in seen(report)


def test_no_rate_stands_without_its_counts() -> None:
    """Every share in what was measured follows counts, a bound or a limit."""
    assert seen(REFUSED).count("0/0 0.0%") == 0
    empty = replace(
        FULL, variants=(replace(variant("float32"), clean_accuracy=Rate(0, 0), triggers=()),)
    )
    assert "0/0" in seen(empty)
    assert page.charts.accuracy_by_size(empty) is None


@pytest.mark.parametrize(
    ("suspicion", "told"),
    [
        (Suspicion(None, SCORES, Method.INVERSION), "No class stood out far enough"),
        (
            Suspicion(None, (), Method.HINDERED, evidence=({"by": "hindrance", "why": "too few"},)),
            "t",
        ),
        (Suspicion(None, (), Method.NOT_LOOKED_FOR), "No class was looked for"),
        (Suspicion(2, (), Method.NAMED, 1.0), "the user named one, and none was searched"),
        (FULL.suspicion, "2 of 4 classes were not searched for patterns."),
    ],
)
def test_who_was_suspected_and_what_was_not_looked_at(suspicion: Suspicion, told: str) -> None:
    assert told in seen(replace(FULL, suspicion=suspicion))


def test_all_that_were_suspected_and_repelled_are_named() -> None:
    assert FULL.suspicion is not None
    assert FULL.repair is not None
    further = replace(FULL.repair, suspect=0)
    both = replace(
        FULL,
        suspicion=replace(FULL.suspicion, others=(0,)),
        repair=replace(FULL.repair, further=(further,)),
    )
    told = seen(both)
    assert "3 frog and 0 cat" in told
    assert told.count("Logit-margin repulsion of") == 2
    assert seen(FULL).count("Logit-margin repulsion of") == 1


def test_a_class_that_random_patterns_name_is_told_as_such() -> None:
    met = {"by": "chance", "form": "received", "class": 3, "kind": "cast 0.1", "share": 0.95}
    found = Suspicion(3, SCORES, Method.CHANCE, 0.5, (met,))
    told = seen(replace(FULL, suspicion=found))
    assert "by: random patterns. 50.0% of the forms that were asked name it" in told
    assert "chance received cast 0.1 3" in told


def test_the_probability_is_told_with_what_it_assumes() -> None:
    assert "is an attacker's: 87.0% , where every second model has a backdoor" in seen(FULL)
    assert "is an attacker's" not in seen(REPORT)


@pytest.mark.parametrize(
    ("report", "told"),
    [
        (NOTHING, "No trigger that somebody knew was tried on any file."),
        (NOTHING, "The policy requires what was not measured: float32."),
        (FULL, "1 of 3 variants could not be built; see the notes."),
        (FULL, "No search for unknown triggers was made on: l1-0.6+int8."),
        (FULL, "What the unrepaired model does in these forms: l1-0.6+int8"),
        (FULL, "How int8 files behave on another processor than"),
        (REPORT, "No fire drill on these weights is attached"),
        (FULL, "More than three target classes"),
    ],
)
def test_what_was_not_tested_is_said(report: Report, told: str) -> None:
    assert told in seen(report)


def test_what_was_tested_is_not_said_to_be_missing() -> None:
    for told in (
        "No trigger that somebody knew",
        "No fire drill on these",
        "requires what was not",
    ):
        assert told not in seen(FULL)


def test_the_policy_and_the_digests_are_all_there() -> None:
    text = seen(FULL)
    assert all(name in text for name in Policy.__dataclass_fields__)
    assert text.count(FULL.model_sha256) >= 4
    assert FULL.environment["packages"]["torch"] in text


def test_what_a_report_does_not_hold_is_left_out() -> None:
    outline = Outline(page.html(NOTHING))
    identifiers = {value for _, name, value in outline.attributes if name == "id"}
    assert identifiers == {"notes", "matrix", "accuracy", "untested", "checks", "inputs"}
    links = {value[1:] for _, name, value in outline.attributes if name == "href"}
    assert links <= identifiers
    full = Outline(page.html(FULL))
    assert {value[1:] for _, n, value in full.attributes if n == "href"} <= {
        value for _, n, value in full.attributes if n == "id"
    }


def test_the_same_report_gives_the_same_bytes() -> None:
    again = Report.from_json(json.loads(json.dumps(REPORT.to_json())))
    assert page.html(again) == page.html(Report.from_json(REPORT.to_json()))


@pytest.mark.parametrize("name", ["digits", "rows"])
def test_real_reports_are_drawn(name: str) -> None:
    document = json.loads((ROOT / "tests" / "pinned" / f"{name}.json").read_text())
    document["model"]["path"] = "model.safetensors"
    document["environment"] |= {"platform": "here", "device": "cpu", "gpu": None}
    drawn = page.html(Report.from_json(document))
    assert len(drawn) < 200_000
    tried = {each["name"] for form in document["variants"] for each in form["triggers"]}
    strips = sum(not label.startswith("searched:") for label in tried)
    # Of rows the class was named; of digits patterns were found, how many depends on the processor.
    assert strips >= {"digits": 2, "rows": 1}[name]
    assert drawn.count("<svg") == {"digits": 2, "rows": 1}[name] + strips
    assert len(page.markdown(Report.from_json(document))) < 20_000


def test_the_patterns_are_shown_and_described() -> None:
    outline = Outline(page.html(FULL))
    (source,) = [v for tag, name, v in outline.attributes if (tag, name) == ("img", "src")]
    assert base64.b64decode(source.partition(",")[2]) == DRAWING.png
    (alt,) = [v for tag, name, v in outline.attributes if (tag, name) == ("img", "alt")]
    assert alt == "Picture of the pattern patch@received, which sends images into class 3 frog"
    assert "patch@received into 3 frog, size 0.0123" in outline.text


def test_each_class_is_told_before_and_after_the_repaired_one_first() -> None:
    text = seen(FULL)
    rows = re.findall(r"(\d \w+)(?: repaired)? 90/90 100.0% (\d+)/90 [\d.]+%", text)
    assert rows == [("3 frog", "80"), ("2 deer", "86"), ("1 dog", "88"), ("0 cat", "90")]
    assert "3 frog repaired" in text
    many = replace(variant("float32"), per_class=tuple(Rate(9, 10) for _ in range(50)))
    other = replace(FULL, variants=(many,))
    assert "30 more classes are not shown" in seen(other)
    assert "not counted" not in seen(other)
    assert "Accuracy of each class" not in seen(REFUSED)


# --- Markdown -------------------------------------------------------------------------------------


def test_markdown_says_the_same_in_brief() -> None:
    text = page.markdown(REFUSED)
    assert text.startswith("<!-- lmr-guard ")
    assert "## ✗ Refused: model.safetensors" in text
    assert (
        "| float32 | 306 | 350/360 97.2% | patch.png@9,9 > 3 | 2/324 0.6% | 2.2% | ✗ fail |" in text
    )
    assert "| float32 | asr:patch.png@9,9 | ✗ fail | patch.png@9,9: ASR 40/324 (12.3%) into" in text
    assert "Suspect: class 3 frog, inversion. The repair (repelled) took clean accuracy" in text


def test_markdown_lets_no_text_become_markup() -> None:
    wild = "`x` | <b> [a](javascript:b) ![c](d) # @me https://e.f\n## x"
    text = page.markdown(replace(written_by(wild), drills=()))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
    assert widths == {8, 5}
    assert not re.search(r"(?<!\\)[`\[]|<(?!!--)|(?<!\w)@(?!<)|:(?=//)", text)
    assert sum(line.startswith("##") for line in text.splitlines()) == 4


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [page.write, page.write_markdown])
def test_an_earlier_page_is_replaced_and_nothing_else(
    tmp_path: Path, write: Callable[[Report, Path], None]
) -> None:
    place = tmp_path / "page"
    write(REPORT, place)
    write(REFUSED, place)
    assert "Refused" in place.read_text("utf-8")
    place.write_text("mine")
    with pytest.raises(
        ConfigError, match=r"an earlier page of lmr-guard at .*page.?, got something"
    ):
        write(REPORT, place)
    assert place.read_text() == "mine"
    for wrong in (tmp_path, tmp_path / "no" / "page", tmp_path / ("x" * 300)):
        with pytest.raises(ConfigError):
            write(REPORT, wrong)
    assert [path.name for path in tmp_path.iterdir()] == ["page"]


def test_a_full_disk_leaves_no_half_page(tmp_path: Path) -> None:
    with room_for(1000), pytest.raises(StageError):
        page.write(REPORT, tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_the_repair_is_told_with_its_counts() -> None:
    assert isinstance(FULL.repair, Repair)
    assert "97/100 97.0% before, 96/100 96.0% after" in seen(FULL)


@pytest.mark.parametrize(
    ("config", "told"),
    [({"budget": "quick"}, "quick"), ({"budget": None}, "settings of one's own"), ({}, None)],
)
def test_the_budget_of_the_searches_is_told(config: dict[str, Any], told: str | None) -> None:
    text = seen(replace(FULL, config={**FULL.config, **config}))
    assert ("budget of searches" in text) == (told is not None)
    assert told is None or f"budget of searches {told}" in text
