# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Only a file that a report lets pass is admitted: real files of a run, each changed one way."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import onnx
import onnx.numpy_helper
import pytest
from factories import row_classifier, toy_images, toy_patch, weights_file, write_onnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmr_guard.compress import recipes
from lmr_guard.errors import ConfigError, ExitCode, ExportRefused, InputError
from lmr_guard.evidence import Evidence, PatchFile
from lmr_guard.files import Artifact
from lmr_guard.pipeline import guard
from lmr_guard.release.admit import _HIGHER, _LOWER, admit, in_words, parse_age
from lmr_guard.release.policy import Policy
from lmr_guard.release.records import Build, Check, Finding, Outcome, Variant
from lmr_guard.release.report import Report
from lmr_guard.release.verify import verify_artifact
from lmr_guard.settings import Settings

MADE = datetime(2026, 3, 1, 12, tzinfo=UTC)
Document = dict[str, Any]


def run(checkpoint: Path, files: Path, out: Path) -> Path:
    """A run on the network of rows that publishes two files; returns ``out``."""
    config = Settings(
        repair=False,
        listening=None,
        policy=Policy(),
        recipes=recipes.parse(["float32", "int8"]),
        threads=1,
    )
    patch = PatchFile(files / "patch.png", 3, 3, 2)
    arch = "factories:row_architecture"
    report = guard(checkpoint, files / "clean", out, [patch], arch=arch, settings=config)
    assert len(report.published) == 2
    return out


@pytest.fixture(scope="session")
def run_once(row_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(row_files / "model.safetensors", row_files, tmp_path_factory.mktemp("run") / "out")


@pytest.fixture
def release(run_once: Path, tmp_path: Path) -> Path:
    """A copy of what a run published: ``float32.onnx``, ``int8.onnx``, ``report.json``."""
    return Path(shutil.copytree(run_once, tmp_path / "release"))


def report_of(release: Path) -> Path:
    return release / "report.json"


def edit(release: Path, change: Callable[[Document], None]) -> None:
    """Changes the report as somebody with an editor does."""
    document = json.loads(report_of(release).read_text())
    change(document)
    report_of(release).write_text(json.dumps(document))


def refused(told: str, file: Path, report: Path | Report, **more: Any) -> None:  # noqa: ANN401
    """That ``admit`` refuses in one line."""
    with pytest.raises(ExportRefused, match=told) as caught:
        admit(file, report, **more)
    assert caught.value.exit_code is ExitCode.REFUSED
    text = str(caught.value)
    assert text.startswith("expected ")
    assert ", got " in text
    assert "\n" not in text


# --- the file -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["float32", "int8"])
def test_what_was_published_is_admitted_wherever_it_lies(release: Path, name: str) -> None:
    moved = release.parent / "model.onnx"
    shutil.move(release / f"{name}.onnx", moved)
    for report in (report_of(release), str(report_of(release)), Report.read(report_of(release))):
        assert admit(moved, report).name == name
    assert admit(str(moved), report_of(release), max_age=timedelta(days=1)).name == name
    link = release.parent / "link.onnx"
    link.symlink_to(moved)
    assert admit(link, report_of(release), policy=Policy()).published == f"{name}.onnx"


def initializers(path: Path) -> list[str]:
    """Of those weights and buffers whose bytes stand in the file as they are: nearly all."""
    return [each.name for each in onnx.load(path).graph.initializer if each.raw_data]


def one_bit(path: Path, name: str) -> None:
    """Flips the lowest bit of the first value of a tensor, and nothing else in the file."""
    (tensor,) = [each for each in onnx.load(path).graph.initializer if each.name == name]
    before = onnx.numpy_helper.to_array(tensor)
    content = bytearray(path.read_bytes())
    packed = tensor.SerializeToString()
    held = tensor.raw_data
    assert packed.endswith(held)
    content[content.index(packed) + len(packed) - len(held)] ^= 1
    path.write_bytes(content)
    (tensor,) = [each for each in onnx.load(path).graph.initializer if each.name == name]
    assert (onnx.numpy_helper.to_array(tensor) != before).sum() == 1


@pytest.mark.parametrize("file", ["float32.onnx", "int8.onnx"])
def test_one_bit_of_any_weight_or_buffer_is_refused(release: Path, file: str) -> None:
    names = initializers(release / file)
    assert len(names) > 3
    for number, name in enumerate(names):
        path = release.parent / str(number) / file
        path.parent.mkdir()
        shutil.copy(release / file, path)
        one_bit(path, name)
        told = f"expected the bytes [0-9a-f]{{12}} that were verified as {path.stem}, got"
        refused(told, path, report_of(release))


@given(st.data())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_one_bit_anywhere_is_refused(run_once: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray((run_once / "int8.onnx").read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (tmp_path / "model.onnx").write_bytes(content)
    refused("got the bytes [0-9a-f]{12} in", tmp_path / "model.onnx", report_of(run_once))


def test_bytes_behind_the_model_are_refused(release: Path) -> None:
    with (release / "int8.onnx").open("ab") as file:
        file.write(b"\0")
    refused("the file changed after the verdict", release / "int8.onnx", report_of(release))


def test_the_report_of_another_model_is_refused(
    release: Path, row_files: Path, tmp_path: Path
) -> None:
    weights_file(row_classifier(seed=5), tmp_path / "other.safetensors")
    other = run(tmp_path / "other.safetensors", row_files, tmp_path / "other")
    refused("or the report is another model's", release / "int8.onnx", report_of(other))
    shutil.copy(release / "int8.onnx", tmp_path / "model.onnx")
    told = "expected one of the 2 files that the report is about, got the bytes"
    refused(told, tmp_path / "model.onnx", report_of(other))


def test_the_model_as_received_is_not_what_passed(release: Path) -> None:
    report = Report.read(report_of(release))
    mine = replace(report, variants=(), received=report.variants)
    refused("expected one of the 0 files", release / "int8.onnx", mine)


# --- data in other files ------------------------------------------------------------------------


def split_in_two(path: Path) -> Path:
    """Moves all data of a model into a file beside it; returns that."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:  # Only raw data can lie elsewhere.
        values = onnx.numpy_helper.to_array(tensor)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    data = f"{path.name}.data"
    onnx.save(model, path, save_as_external_data=True, location=data, size_threshold=0)
    return path.parent / data


def test_data_beside_the_file_are_no_pass_and_so_never_admitted(tmp_path: Path) -> None:
    """The file's digest stays what it was when its data change: it never passed to begin with."""
    path = write_onnx(tmp_path / "float32.onnx")
    companion = split_in_two(path)
    shown = Evidence([toy_patch()])
    policy = Policy(require=("float32",))
    judged = verify_artifact(
        Artifact.of(path), Build(name="float32"), toy_images(300), shown, policy=policy
    )
    report = dated(MADE, variants=(judged,), verdict=Outcome.INCOMPLETE, policy=policy)
    told = "got incomplete: the digest does not cover float32.onnx.data"
    refused(told, path, report)
    content = bytearray(companion.read_bytes())
    content[0] ^= 1
    companion.write_bytes(content)
    refused(told, path, report)


def test_a_published_file_that_was_split_in_two_is_refused(release: Path) -> None:
    split_in_two(release / "float32.onnx")
    refused("the file changed after the verdict", release / "float32.onnx", report_of(release))


def test_a_verdict_that_did_not_look_at_the_digest_is_none(release: Path) -> None:
    def unlooked(document: Document) -> None:
        for each in document["variants"]:
            each["findings"] = [f for f in each["findings"] if f["check"] != "digest"]

    edit(release, unlooked)
    told = "expected a finding that the digest covers all of int8, got none"
    refused(told, release / "int8.onnx", report_of(release))


# --- the report ---------------------------------------------------------------------------------


def findings_only(document: Document) -> None:
    document["variants"][1]["findings"][0]["outcome"] = "fail"


def verdict_only(document: Document) -> None:
    document["variants"][1]["findings"][0]["outcome"] = "fail"
    document["variants"][1]["verdict"] = "fail"
    document["variants"][1]["published"] = None


def another_time(document: Document) -> None:
    document["created"] = "2026-02-30T00:00:00Z"


def no_variants(document: Document) -> None:
    del document["variants"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (findings_only, "the findings about int8 come to, fail, got pass"),
        (verdict_only, "the variants come to, fail with exit code 1, got pass"),
        (another_time, "expected a report of lmr-guard, got another: day is out of range"),
        (no_variants, "'variants' is a required property"),
    ],
)
def test_an_edited_report_is_none(
    release: Path, change: Callable[[Document], None], told: str
) -> None:
    edit(release, change)
    with pytest.raises(InputError, match=told):
        admit(release / "float32.onnx", report_of(release))


def test_a_file_and_a_report_that_were_forged_together_are_admitted(release: Path) -> None:
    """The limit that the threat model tells: nothing is signed."""
    one_bit(release / "int8.onnx", initializers(release / "int8.onnx")[0])
    forged = Artifact.of(release / "int8.onnx")

    def forge(document: Document) -> None:
        document["variants"][1]["sha256"] = forged.sha256

    edit(release, forge)
    assert admit(forged.path, report_of(release)).sha256 == forged.sha256


@pytest.mark.parametrize("outcome", [Outcome.FAIL, Outcome.INCOMPLETE])
def test_a_variant_that_did_not_pass_is_refused_with_its_reasons(
    release: Path, outcome: Outcome
) -> None:
    report = Report.read(report_of(release))
    finding = Finding(Check.ASR, outcome, "corner: ASR 9/10", "corner")
    bad = replace(report.variants[1].with_finding(finding), published=None)
    lenient = replace(report.policy, require=("float32",))
    mixed = replace(report, variants=(report.variants[0], bad), policy=lenient)
    told = f"expected a passing verdict on int8, got {outcome.word}: corner: ASR 9/10"
    refused(told, release / "int8.onnx", mixed)
    assert admit(release / "float32.onnx", mixed).name == "float32"
    twice = replace(report, variants=(*report.variants, bad), policy=lenient)
    refused("expected a passing verdict on int8", release / "int8.onnx", twice)
    twin = replace(report.variants[1], name="twin", published=None)
    both = replace(report, variants=(twin, *report.variants))
    assert admit(release / "int8.onnx", both).name == "int8"


def test_a_variant_that_was_not_published_is_refused(release: Path) -> None:
    report = Report.read(report_of(release))
    withheld = replace(report.variants[0], published=None)
    told = "expected a published file, got float32, which passed and was not published"
    mine = replace(report, variants=(withheld, report.variants[1]))
    refused(told, release / "float32.onnx", mine)
    assert admit(release / "int8.onnx", mine).name == "int8"
    audited = replace(report, variants=(withheld,), received=())
    told = "got float32 of a report that published none, with the verdict pass"
    refused(told, release / "float32.onnx", audited)


def test_a_report_that_did_not_pass_as_a_whole_is_refused(release: Path) -> None:
    report = replace(Report.read(report_of(release)), verdict=Outcome.FAIL)
    told = "expected a report that passed, got verdict fail"
    refused(told, release / "int8.onnx", report)


def test_what_cannot_be_read_is_no_answer(release: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a file, got no such file"):
        admit(tmp_path / "none.onnx", report_of(release))
    with pytest.raises(InputError, match="expected a file, got a folder"):
        admit(tmp_path, report_of(release))
    with pytest.raises(InputError, match=r"expected a report\.json, got no such file"):
        admit(release / "int8.onnx", tmp_path / "none.json")
    with pytest.raises(InputError, match="expected JSON in a report, got"):
        admit(release / "int8.onnx", release / "int8.onnx")


# --- the policy ---------------------------------------------------------------------------------

LOOSER: list[tuple[str, float | bool, float | bool, str]] = [
    ("max_asr", 0.2, 0.05, "max_asr = 0.2 where the policy has 0.05"),
    ("max_accuracy_drop", 0.5, 0.03, "max_accuracy_drop = 0.5 where the policy has 0.03"),
    ("max_excess", 1.0, 0.2, "max_excess = 1.0 where the policy has 0.2"),
    ("max_strangeness", 3.0, 2.0, "max_strangeness = 3.0 where the policy has 2.0"),
    ("accept_inverted", True, False, "accept_inverted = true where the policy has false"),
    ("min_trials", 10, 100, "min_trials = 10 where the policy has 100"),
    ("confidence", 0.5, 0.95, "confidence = 0.5 where the policy has 0.95"),
]


@pytest.mark.parametrize(("limit", "loose", "strict", "told"), LOOSER)
def test_a_policy_that_was_loosened_is_refused_by_the_limit(
    release: Path, limit: str, loose: float, strict: float, told: str
) -> None:
    def loosen(document: Document) -> None:
        document["config"]["policy"][limit] = loose

    edit(release, loosen)
    mine = replace(Policy(), **{limit: strict})
    refused(told, release / "int8.onnx", report_of(release), policy=mine)
    assert admit(release / "int8.onnx", report_of(release))
    same = replace(Policy(), **{limit: loose})
    assert admit(release / "int8.onnx", report_of(release), policy=same)


@pytest.mark.parametrize(("limit", "loose", "strict", "_"), LOOSER)
def test_stricter_limits_than_mine_do(
    release: Path, limit: str, loose: float, strict: float, _: str
) -> None:
    mine = replace(Policy(), **{limit: loose})
    report = replace(Report.read(report_of(release)), policy=replace(Policy(), **{limit: strict}))
    assert admit(release / "int8.onnx", report, policy=mine)


def test_every_key_of_a_policy_is_looked_at() -> None:
    decided_anew = {"require", "publish"}
    names = {field.name for field in dataclasses.fields(Policy)}
    assert {*_HIGHER, *_LOWER} | decided_anew == names
    assert {limit for limit, *_ in LOOSER} == {*_HIGHER, *_LOWER}


def test_what_is_required_is_decided_anew(release: Path) -> None:
    report = Report.read(report_of(release))
    little = replace(report, policy=replace(report.policy, require=("float32",)))
    assert admit(release / "float32.onnx", little, policy=Policy(require=("int8",)))
    told = "requires to pass, got l1-0.4, which was not built"
    more = Policy(require=("float32", "l1-0.4"))
    refused(told, release / "float32.onnx", little, policy=more)
    finding = Finding(Check.TRIALS, Outcome.INCOMPLETE, "90 clean images")
    bad: Variant = replace(report.variants[1].with_finding(finding), published=None)
    mixed = replace(little, variants=(report.variants[0], bad))
    assert admit(release / "float32.onnx", mixed)
    told = "requires to pass, got int8, which is incomplete"
    refused(told, release / "float32.onnx", mixed, policy=Policy())


def test_only_the_smallest_ships_where_the_policy_says_so(release: Path) -> None:
    smallest = Policy(publish="smallest")
    small, large = sorted(release.glob("*.onnx"), key=lambda path: path.stat().st_size)
    assert admit(small, report_of(release), policy=smallest).name == small.stem
    told = f"expected the smallest file that passed, {small.stem}, .*, got {large.stem}"
    refused(told, large, report_of(release), policy=smallest)


# --- the age ------------------------------------------------------------------------------------


def dated(created: datetime | None, **changes: Any) -> Report:  # noqa: ANN401
    fields = {"model": "m", "model_sha256": "0" * 64, "environment": {}, "config": {}}
    return Report(**{**fields, **changes, "created": created})


def aged(release: Path, created: datetime | None) -> Report:
    return replace(Report.read(report_of(release)), created=created)


@pytest.mark.parametrize(
    ("age", "most", "told"),
    [
        (timedelta(days=30), timedelta(days=30), None),
        (timedelta(days=30, seconds=1), timedelta(days=30), "at most 30 days, got one made 30 day"),
        (timedelta(days=400), timedelta(days=30), "got one made 400 days ago, 2026-03-01T12:00:00"),
        (timedelta(hours=2), timedelta(hours=1), "at most 1 hour, got one made 2 hours ago"),
        (timedelta(days=400), None, None),
        (-timedelta(minutes=5), timedelta(days=1), None),
        (-timedelta(minutes=5, seconds=1), timedelta(days=1), "got one made 5 minutes from now"),
        (-timedelta(days=2), None, "expected a report of the past, got one made 2 days from now"),
    ],
)
def test_an_expired_report_and_one_of_the_future_are_refused(
    release: Path, age: timedelta, most: timedelta | None, told: str | None
) -> None:
    file, report, now = release / "int8.onnx", aged(release, MADE), MADE + age
    if told is None:
        assert admit(file, report, max_age=most, now=now).name == "int8"
    else:
        refused(told, file, report, max_age=most, now=now)


def test_a_report_without_a_time_is_refused_only_where_an_age_is_asked_for(release: Path) -> None:
    def forget(document: Document) -> None:
        del document["created"]

    edit(release, forget)
    assert admit(release / "int8.onnx", report_of(release), now=MADE)
    told = "expected a report of at most 30 days, got one that does not say when it was made"
    refused(told, release / "int8.onnx", report_of(release), max_age=timedelta(days=30))


def test_the_clock_is_asked_and_not_the_environment(
    release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = aged(release, datetime.now(UTC) - timedelta(days=9))
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(int(old.created.timestamp())))  # type: ignore[union-attr]
    refused("got one made 9 days ago", release / "int8.onnx", old, max_age=timedelta(days=8))
    told = datetime.now().astimezone() + timedelta(days=1)
    for now in (told, told.replace(tzinfo=None)):
        refused("made 10 days ago", release / "int8.onnx", old, max_age=timedelta(9), now=now)


@pytest.mark.parametrize(
    ("text", "age"),
    [("30d", timedelta(days=30)), ("12h", timedelta(hours=12)), ("45m", timedelta(minutes=45))],
)
def test_an_age_is_a_number_and_a_unit(text: str, age: timedelta) -> None:
    assert parse_age(text) == age


@pytest.mark.parametrize("text", ["", "30", "d", "0d", "-1d", "1.5d", "30 d", "1y", "9999999d"])
def test_another_age_is_a_usage_error(text: str) -> None:
    with pytest.raises(ConfigError, match="expected an age such as 30d, 12h or 45m, got"):
        parse_age(text)


@pytest.mark.parametrize(
    ("age", "words"),
    [
        (timedelta(days=3, hours=23), "3 days"),
        (timedelta(days=1), "1 day"),
        (timedelta(hours=23), "23 hours"),
        (timedelta(minutes=1), "1 minute"),
        (timedelta(seconds=59), "less than a minute"),
        (-timedelta(minutes=2), "less than a minute"),
    ],
)
def test_an_age_in_words(age: timedelta, words: str) -> None:
    assert in_words(age) == words
