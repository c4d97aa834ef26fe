# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The verbs in their order, on real files: what is published is what was measured."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import (
    Ended,
    fingerprint,
    flat_architecture,
    guard_digits,
    row_classifier,
    row_images,
    same,
    softmax,
    standardised_architecture,
    tree,
    weights_file,
)
from pinned_reports import outline, pinned
from safetensors.torch import load_file
from torch import Tensor

from lmr_guard.classifier import Classifier, weights_sha256
from lmr_guard.compress import recipes
from lmr_guard.contracts import Clean, Progress, silent
from lmr_guard.errors import ConfigError, ExportRefused, StageError
from lmr_guard.evidence import Patch, PatchFile
from lmr_guard.files import Artifact, sha256_of
from lmr_guard.foreign import verify
from lmr_guard.localize.inversion import DEEP, LOOK
from lmr_guard.localize.listening import ListeningSettings
from lmr_guard.localize.rule import LocalizeSettings
from lmr_guard.onnxfile.export import Exporter
from lmr_guard.onnxfile.predictor import OnnxPredictor
from lmr_guard.pipeline import guard, repair, scan
from lmr_guard.received.architectures import Architecture
from lmr_guard.release import page
from lmr_guard.release.drills import DrillReport
from lmr_guard.release.page.told import untested
from lmr_guard.release.policy import Policy
from lmr_guard.release.report import Report, validate
from lmr_guard.repel import RepelSettings
from lmr_guard.settings import Settings

ROWS = Architecture("factories:row_architecture")
SIX = Architecture("factories:six_rows")
QUICK = Settings(
    localize=LocalizeSettings(deep=DEEP[1::2], confirm=1),  # of both lengths one
    repel=RepelSettings(learning_rates=(0.01,), shifts=(0,)),
    policy=Policy(max_asr=0.3, max_accuracy_drop=0.3, max_strangeness=4.0),
    after_pruning=None,
    recipes=recipes.parse(["float32", "int8", "l1-0.4"]),
    repair_images=500,
    select_images=150,
    threads=1,
)
SHORT = RepelSettings(phase1_epochs=2, phase2_epochs=2)
PLAIN = Settings(
    repair=False,
    listening=None,
    policy=Policy(require=("float32",)),
    recipes=recipes.parse(["float32"]),
    threads=1,
)
REPAIRED = replace(PLAIN, repair=True, suspect=1, repel=SHORT)


@dataclass(frozen=True)
class Ran:
    """A finished run: its report, its folder, and what it was given, before and after."""

    report: Report
    out: Path
    before: dict[str, bytes | None]
    after: dict[str, bytes | None]

    @property
    def document(self) -> dict[str, Any]:
        """What stands in report.json."""
        return self.report.to_json()


@pytest.fixture(scope="module")
def guarded(digit_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The whole guard on a network with a backdoor that is awake."""
    out = tmp_path_factory.mktemp("guarded") / "out"
    before = tree(digit_files)
    report = guard_digits(digit_files, out, QUICK)
    return Ran(report, out, before, tree(digit_files))


def rows(
    row_files: Path,
    out: Path,
    config: Settings,
    *,
    checkpoint: Path | None = None,
    source: Architecture = ROWS,
    progress: Progress = silent,
) -> dict[str, Any]:
    """A run on the honest network of rows, or on another one."""
    report = guard(
        checkpoint or row_files / "model.safetensors",
        row_files / "clean",
        out,
        [PatchFile(row_files / "patch.png", 3, 3, 2)],
        arch=source,
        settings=config,
        progress=progress,
    )
    return report.to_json()


# --- what networks put out ----------------------------------------------------------------------


def _times_1000(logits: Tensor) -> Tensor:
    return logits * 1000


LENIENT = replace(
    REPAIRED,
    recipes=recipes.parse(["float32", "int8", "l1-0.4"]),
    policy=Policy(require=("float32",), max_asr=0.99, max_accuracy_drop=0.99),
    # Where to stop on the way is a choice that may fall this way or that by a hair.
    repel=replace(REPAIRED.repel, strides=()),
)
MANY, CORNER = row_images(600, seed=2), Patch(torch.ones(1, 1, 1), 3, 3, "corner", 1)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    """What comes of the network that puts out logits, and where it is."""
    out = tmp_path_factory.mktemp("plain") / "out"
    return guard(row_classifier(), MANY, out, [CORNER], settings=LENIENT), out


@pytest.mark.parametrize("function", [softmax, _times_1000])
def test_a_network_of_other_outputs_fares_as_the_plain_one(
    plain: tuple[Report, Path], tmp_path: Path, function: Callable[[Tensor], Tensor]
) -> None:
    theirs, place = plain
    honest = row_classifier()
    other = Classifier(Ended(honest.network, function), honest.preprocessing, 3)
    ours = guard(other, MANY, tmp_path / "out", [CORNER], settings=LENIENT)
    assert [v.name for v in ours.variants] == [v.name for v in theirs.variants]
    for mine, his in zip(ours.variants, theirs.variants, strict=True):
        assert mine.clean_accuracy.value == pytest.approx(his.clean_accuracy.value, abs=0.01)
        assert mine.triggers[0].asr.value == pytest.approx(his.triggers[0].asr.value, abs=0.01)
        assert mine.verdict.outcome == his.verdict.outcome
    assert len(ours.notes) == len(theirs.notes) + 1
    pixels = torch.cat([part for part, _ in MANY.batches()])
    outputs = OnnxPredictor(tmp_path / "out" / "float32.onnx")(pixels)
    logits = OnnxPredictor(place / "float32.onnx")(pixels)
    wanted = function(logits)
    assert torch.allclose(outputs, wanted, atol=0.02 * float(wanted.abs().max()))
    repaired = repair(other, MANY, settings=LENIENT).classifier(pixels).detach()
    assert torch.allclose(repaired, outputs, rtol=1e-3, atol=1e-3)


# --- the main job -------------------------------------------------------------------------------


def test_the_report_on_disk_is_the_one_returned_and_meets_its_schema(guarded: Ran) -> None:
    written = json.loads((guarded.out / "report.json").read_text(encoding="utf-8"))
    validate(written)
    assert written == guarded.document
    assert Report.from_json(written) == guarded.report
    read = Report.read(guarded.out / "report.json")
    assert read.to_json() == written
    assert (guarded.out / "report.html").read_text("utf-8") == page.html(read)


def test_the_report_is_the_pinned_one(guarded: Ran) -> None:
    ours, theirs = pinned("digits", guarded.document)
    assert ours == theirs


def test_a_run_with_all_that_is_random_gives_the_pinned_report(
    row_files: Path, tmp_path: Path
) -> None:
    config = replace(
        REPAIRED,
        after_pruning=SHORT,
        compare=True,
        recipes=recipes.parse(["float32", "l1-0.4", "l1-0.4+int8", "l1-0.6"]),
        seed=3,
    )
    ours, theirs = pinned("rows", rows(row_files, tmp_path / "out", config))
    assert ours == theirs


def test_an_outline_still_tells_reports_apart(guarded: Ran) -> None:
    fewer = {**guarded.document, "variants": guarded.document["variants"][1:]}
    other = {**guarded.document, "suspicion": {"target": None}}
    assert outline(guarded.document) not in (outline(fewer), outline(other))


def test_the_backdoor_is_awake_as_received_and_gone_in_what_is_published(guarded: Ran) -> None:
    (received,) = guarded.document["received"]
    (asr,) = received["triggers"]
    assert received["name"] == "float32"
    assert asr["hits"] >= 0.9 * asr["trials"]
    assert guarded.document["suspicion"]["target"] == 3
    assert guarded.document["repair"]["suspect"] == 3
    for variant in guarded.document["variants"]:
        asr, *replayed = variant["triggers"]
        assert [each["source"] for each in replayed] == ["inverted"] * len(replayed)
        assert replayed
        assert asr["target"] == 3
        assert asr["trials"] >= 100
        assert asr["hits"] <= 0.3 * asr["trials"]
    why = [f for v in guarded.document["variants"] for f in v["findings"] if f["outcome"] != "pass"]
    assert (guarded.document["verdict"], guarded.document["exit_code"]) == ("pass", 0), why


def test_published_are_exactly_the_measured_bytes(guarded: Ran) -> None:
    variants = {v["name"]: v for v in guarded.document["variants"]}
    assert list(variants) == ["float32", "int8", "l1-0.4"]
    published = {v["published"]: v for v in variants.values() if v["published"]}
    assert {"float32.onnx", "int8.onnx"} <= set(published)
    assert set(tree(guarded.out)) == {"report.json", "report.html", *published}
    for name, variant in published.items():
        assert sha256_of(guarded.out / name) == variant["sha256"]
        assert (guarded.out / name).stat().st_size == variant["bytes"]
        assert variant["verdict"] == "pass"


def test_every_variant_was_searched_on_its_own(guarded: Ran) -> None:
    for variant in guarded.document["variants"]:
        *_, searched = variant["triggers"]
        assert searched["name"].startswith("searched:")
        assert searched["strangeness"] >= 1
        assert {r["space"] for r in variant["searches"]} == {"patch", "additive", "warp"}
        assert "listens" in {finding["check"] for finding in variant["findings"]}
    (received,) = guarded.document["received"]
    assert "searches" not in received


def test_without_an_audit_nothing_is_searched(row_files: Path, tmp_path: Path) -> None:
    document = rows(row_files, tmp_path / "out", PLAIN)
    assert document["config"]["audit"] is None
    assert "searches" not in document["variants"][0]


@pytest.mark.parametrize("refused", [False, True])
def test_a_file_that_is_refused_anyway_is_searched_only_where_that_is_asked_for(
    six_files: Path, tmp_path: Path, refused: bool
) -> None:
    config = replace(
        PLAIN,
        listening=ListeningSettings(refused=refused),
        policy=Policy(require=("float32",), max_accuracy_drop=0.0),
        recipes=recipes.parse(["float32", "l1-0.6"], refit="none"),
    )
    document = rows(six_files, tmp_path / "out", config, source=SIX)
    kept, cut = document["variants"]
    found = {f["check"]: f for f in cut["findings"]}
    assert (cut["verdict"], found["accuracy"]["outcome"]) == ("fail", "fail")
    assert ("searches" in kept, "searches" in cut) == (True, refused)
    assert ("chance" in found, "agrees" in found) == (refused, refused)
    assert found["listens"]["reason"].startswith("not searched for triggers: ") is not refused
    assert [t["name"] for t in cut["triggers"] if t["source"] == "given"] == ["patch.png@3,3"]
    told = untested(Report.from_json(document))
    assert any("search for unknown triggers was made on: l1-0.6" in t for t in told) is not refused
    validate(document)


def test_variants_did_what_they_are_called(guarded: Ran) -> None:
    variants = {v["name"]: v for v in guarded.document["variants"]}
    assert variants["float32"]["achieved"]["bits"] == 32
    assert variants["int8"]["achieved"]["bits"] == 8
    assert variants["l1-0.4"]["achieved"]["sparsity"] >= 0.38
    assert variants["l1-0.4"]["plan"]["type"] == "prune_plan"
    assert variants["int8"]["bytes"] < variants["float32"]["bytes"] / 2
    # Rounded layer by layer, not to the nearest: weights of its own.
    assert variants["l1-0.4"]["weights_sha256"] != variants["float32"]["weights_sha256"]
    assert (
        guarded.document["received"][0]["weights_sha256"] != variants["float32"]["weights_sha256"]
    )


def test_the_report_says_what_it_rests_on(guarded: Ran, digit_files: Path) -> None:
    document = guarded.document
    checkpoint = digit_files / "model.safetensors"
    assert document["model"] == {"path": str(checkpoint), "sha256": sha256_of(checkpoint)}
    assert document["evidence"] == ["given", "inverted"]
    assert document["notes"] == []
    assert document["config"]["images"] == {"repair": 500, "select": 150, "report": 247}
    assert document["config"]["classes"] == list("0123456789")
    assert document["config"]["repel"]["phase1_epochs"] == QUICK.repel.phase1_epochs
    assert document["config"]["policy"]["max_asr"] == 0.3
    assert {v["clean_accuracy"]["trials"] for v in document["variants"]} == {247}
    assert document["repair"]["clean_accuracy"]["before"]["trials"] == 150


def test_what_was_given_is_untouched(guarded: Ran) -> None:
    assert guarded.after == guarded.before


def test_what_was_published_passes_an_audit_of_its_own(guarded: Ran, digit_files: Path) -> None:
    document = verify(
        guarded.out / "int8.onnx",
        digit_files / "clean",
        [PatchFile(digit_files / "patch.png", 11, 11, 3)],
        policy=QUICK.policy,
        threads=1,
    ).to_json()
    validate(document)
    assert (document["verdict"], document["exit_code"]) == ("pass", 0)
    assert document["model"]["sha256"] == guarded.document["variants"][1]["sha256"]


# On rows the pinned report holds the same repair after the cut.
@pytest.mark.long
def test_pruned_forms_are_repaired_once_more_after_the_cut(
    digit_files: Path, tmp_path: Path
) -> None:
    shorter = replace(QUICK.repel, phase1_epochs=2, phase2_epochs=4)
    # A refit leaves little to bring back.
    bare = recipes.parse(["float32", "int8", "l1-0.4"], refit="none")
    cut, document = (
        guard_digits(
            digit_files,
            tmp_path / name,
            replace(QUICK, suspect=3, listening=None, recipes=bare, after_pruning=after_pruning),
        ).to_json()
        for name, after_pruning in (("cut", None), ("again", shorter))
    )
    validate(document)
    plain = {v["name"]: v for v in cut["variants"]}
    again = {v["name"]: v for v in document["variants"]}
    # The same repair before; only what was pruned differs.
    assert again["float32"]["weights_sha256"] == plain["float32"]["weights_sha256"]
    assert again["l1-0.4"]["plan"] == plain["l1-0.4"]["plan"]
    assert again["l1-0.4"]["weights_sha256"] != plain["l1-0.4"]["weights_sha256"]
    better = again["l1-0.4"]["clean_accuracy"]["hits"] - plain["l1-0.4"]["clean_accuracy"]["hits"]
    assert better > 0
    assert again["l1-0.4"]["triggers"][0]["hits"] < 0.1 * again["l1-0.4"]["triggers"][0]["trials"]
    assert document["config"]["after_pruning"]["phase1_epochs"] == 2
    assert again["l1-0.4"]["achieved"] == plain["l1-0.4"]["achieved"]


def test_a_pruned_form_that_cannot_be_repaired_stays_as_it_was_cut(
    row_files: Path, tmp_path: Path
) -> None:
    config = replace(
        REPAIRED,
        recipes=recipes.parse(["float32", "l1-0.4", "l1-0.4+int8"]),
    )
    cut = rows(row_files, tmp_path / "cut", replace(config, after_pruning=None))
    wild = replace(config, after_pruning=replace(SHORT, learning_rates=(1e30,)))
    tried = rows(row_files, tmp_path / "tried", wild)
    digests = [[v["sha256"] for v in document["variants"]] for document in (cut, tried)]
    assert digests[0] == digests[1]
    (note,) = set(tried["notes"]) - set(cut["notes"])
    assert note.startswith("l1-0.4 was left as it was cut: expected finite losses at one of the")


def test_without_repair_the_backdoor_is_refused(digit_files: Path, tmp_path: Path) -> None:
    document = guard_digits(digit_files, tmp_path / "out", PLAIN, target=None).to_json()
    assert (document["verdict"], document["exit_code"]) == ("fail", 1)
    assert document["repair"] is None
    assert document["variants"][0]["triggers"][0]["target"] == 3
    assert document["notes"] == [
        "No repair was asked for: the variants are those of the model as received."
    ]
    assert list(tree(tmp_path / "out")) == ["report.html", "report.json"]


def test_a_form_is_the_same_whichever_forms_are_built_beside_it(
    row_files: Path, tmp_path: Path
) -> None:
    alone, beside = (
        rows(row_files, tmp_path / str(len(built)), replace(PLAIN, recipes=recipes.parse(built)))
        for built in (["float32", "l1-0.4"], ["float32", "l1-0.6", "l1-0.3", "l1-0.4"])
    )
    (one,) = (v for v in alone["variants"] if v["name"] == "l1-0.4")
    (two,) = (v for v in beside["variants"] if v["name"] == "l1-0.4")
    assert one == two


# --- what decides a run -------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_report(row_files: Path, tmp_path: Path) -> None:
    config = replace(
        REPAIRED,
        after_pruning=SHORT,
        recipes=recipes.parse(["float32", "int8", "l1-0.4"]),
    )
    reports = [
        rows(row_files, tmp_path / str(number), replace(config, seed=1)) for number in range(2)
    ]
    for document in reports:
        del document["environment"], document["created"]
    assert reports[0] == reports[1]
    # The first form is the same whichever are built beside it.
    bare = replace(config, seed=2, recipes=recipes.parse(["float32"]))
    other = rows(row_files, tmp_path / "other", bare)
    assert reports[0]["variants"][0]["sha256"] != other["variants"][0]["sha256"]


def test_another_number_of_threads_changes_the_numbers_hardly(
    row_files: Path, tmp_path: Path
) -> None:
    """Sums in another order: within 2 points, and the same verdicts."""
    found = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            config = replace(
                REPAIRED, threads=threads, recipes=recipes.parse(["float32", "l1-0.4"])
            )
            found.append(rows(row_files, tmp_path / str(threads), config))
        finally:
            torch.set_num_threads(before)
    one, two = found
    assert (one["verdict"], one["suspicion"]["target"]) == (
        two["verdict"],
        two["suspicion"]["target"],
    )
    for ours, theirs in zip(one["variants"], two["variants"], strict=True):
        a, b = ours["clean_accuracy"], theirs["clean_accuracy"]
        assert abs(a["hits"] - b["hits"]) <= 0.02 * a["trials"]
        assert ours["verdict"] == theirs["verdict"]


def test_one_network_is_exported_once_and_each_repaired_one_for_itself(
    row_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = []

    write = Exporter.write

    def counted(self: Exporter, model: Classifier, path: Path, *, shown: Tensor) -> Artifact:
        exported.append(path.relative_to(path.parents[1]).as_posix())
        return write(self, model, path, shown=shown)

    monkeypatch.setattr(Exporter, "write", counted)
    report = rows(row_files, tmp_path / "plain", PLAIN)
    assert exported == ["compress received/float32.onnx"]
    (received,), (shipped,) = report["received"], report["variants"]
    on_disk = sha256_of(tmp_path / "plain" / "float32.onnx")
    assert shipped["sha256"] == received["sha256"] == on_disk
    exported.clear()
    rows(row_files, tmp_path / "repaired", REPAIRED)
    assert exported == ["compress received/float32.onnx", "compress/float32.onnx"]


def test_the_smallest_alone_is_published_where_the_policy_says_so(
    row_files: Path, tmp_path: Path
) -> None:
    config = replace(
        PLAIN,
        policy=Policy(require=("float32",), publish="smallest"),
        recipes=recipes.parse(["float32", "int8"]),
    )
    document = rows(row_files, tmp_path / "out", config)
    sizes = {v["name"]: v["bytes"] for v in document["variants"]}
    smallest = min(sizes, key=lambda name: sizes[name])
    assert [v["verdict"] for v in document["variants"]] == ["pass", "pass"]
    assert [v["name"] for v in document["variants"] if v["published"]] == [smallest]
    assert sorted(tree(tmp_path / "out")) == [f"{smallest}.onnx", "report.html", "report.json"]


def test_compare_measures_the_received_model_in_every_form(row_files: Path, tmp_path: Path) -> None:
    config = replace(PLAIN, compare=True, recipes=recipes.parse(["l1-0.4", "float32"]))
    document = rows(row_files, tmp_path / "out", config)
    assert [v["name"] for v in document["received"]] == ["float32", "l1-0.4"]
    assert [v["name"] for v in document["variants"]] == ["l1-0.4", "float32"]
    assert document["received"][0]["sha256"] == document["variants"][1]["sha256"]
    assert not any(v["published"] for v in document["received"])


def test_a_localizer_that_abstains_leaves_the_audit(six_files: Path, tmp_path: Path) -> None:
    sceptical = LocalizeSettings(sure=1e6, doubt=1e6)
    config = replace(PLAIN, repair=True, localize=sceptical)
    document = rows(six_files, tmp_path / "out", config, source=SIX)
    assert document["suspicion"]["target"] is None
    assert len(document["suspicion"]["scores"]) == 6
    assert document["repair"] is None
    assert document["variants"][0]["weights_sha256"] == document["received"][0]["weights_sha256"]
    assert document["notes"] == [
        "No class was suspected, so nothing was repelled; the variants were audited all the same."
    ]
    assert (document["verdict"], document["exit_code"]) == ("pass", 0)


def test_other_strange_classes_are_told(six_files: Path, tmp_path: Path) -> None:
    """With a limit of 1 whoever needs less than the median is strange."""
    credulous = LocalizeSettings(deep=LOOK, confirm=0, sure=1.0, doubt=1.0)
    config = replace(PLAIN, repair=True, localize=credulous, repel=SHORT)
    document = rows(six_files, tmp_path / "out", config, source=SIX)
    suspicion = document["suspicion"]
    strange = {k for k, score in enumerate(suspicion["scores"]) if score >= 1}
    assert {suspicion["target"], *suspicion.get("others", ())} <= strange
    repelled = [each["suspect"] for each in document.get("further_repairs", ())]
    assert repelled == suspicion.get("others", [])
    told = [note.rpartition(": ")[2].rstrip(".").split(", ") for note in document["notes"]]
    named = {int(each.split()[0]) for note in told for each in note}
    assert named == strange - {suspicion["target"]}


def test_a_localizer_that_abstains_may_be_reason_enough_to_refuse(
    row_files: Path, tmp_path: Path
) -> None:
    sceptical = LocalizeSettings(deep=LOOK, sure=1e6, doubt=1e6)
    config = replace(PLAIN, repair=True, localize=sceptical, if_abstained="refuse")
    document = rows(row_files, tmp_path / "out", config)
    assert document["suspicion"]["target"] is None
    (variant,) = document["variants"]
    assert variant["findings"][-1]["check"] == "suspect"
    assert (document["verdict"], document["exit_code"]) == ("incomplete", 3)
    assert list(tree(tmp_path / "out")) == ["report.html", "report.json"]
    validate(document)
    named = rows(row_files, tmp_path / "named", replace(config, suspect=1, repel=SHORT))
    assert "suspect" not in {f["check"] for f in named["variants"][0]["findings"]}


def test_too_few_classes_are_incomplete_where_a_search_was_asked_for(
    row_files: Path, tmp_path: Path
) -> None:
    config = replace(PLAIN, repair=True, listening=ListeningSettings())
    document = rows(row_files, tmp_path / "out", config)
    few = "3 classes are too few to compare, 5 or more are needed"
    assert document["suspicion"]["evidence"] == [{"by": "hindrance", "why": few}]
    assert document["suspicion"]["scores"] == [1.0, 1.0, 1.0]
    assert f"No class was suspected ({few})" in document["notes"][0]
    (finding,) = (f for f in document["variants"][0]["findings"] if f["check"] == "listens")
    assert (finding["outcome"], few in finding["reason"]) == ("incomplete", True)
    assert (document["verdict"], list(tree(tmp_path / "out"))) == (
        "incomplete",
        ["report.html", "report.json"],
    )
    validate(document)


@pytest.mark.parametrize("suspect", [None, 1])
def test_a_network_that_cannot_be_cut_is_noted_and_incomplete(
    row_files: Path, tmp_path: Path, suspect: int | None
) -> None:
    flat = row_classifier(flat_architecture)
    config = replace(
        PLAIN,
        repair=suspect is not None,
        suspect=suspect,
        repel=SHORT,
        policy=Policy(require=("float32", "l1-0.4")),
        recipes=recipes.parse(["float32", "l1-0.4", "l1-0.4+int8"]),
    )
    document = rows(
        row_files,
        tmp_path / "out",
        config,
        checkpoint=weights_file(flat, tmp_path / "flat.safetensors"),
        source=Architecture("factories:flat_architecture"),
    )
    assert [v["name"] for v in document["variants"]] == ["float32"]
    assert document["notes"][0].startswith(
        "compress: of l1-0.4, l1-0.4+int8 some were not built: expected layers whose channels can "
    )
    assert (document["verdict"], document["exit_code"]) == ("incomplete", 3)
    assert list(tree(tmp_path / "out")) == ["report.html", "report.json"]


def test_a_form_that_could_hardly_be_cut_is_incomplete_and_says_why(
    row_files: Path, tmp_path: Path
) -> None:
    hardly = row_classifier(standardised_architecture)
    document = rows(
        row_files,
        tmp_path / "out",
        replace(PLAIN, recipes=recipes.parse(["float32", "l1-0.5"])),
        checkpoint=weights_file(hardly, tmp_path / "hardly.safetensors"),
        source=Architecture("factories:standardised_architecture"),
    )
    validate(document)
    _, cut = document["variants"]
    assert cut["achieved"]["sparsity"] == pytest.approx(2 / 16)
    assert (cut["verdict"], cut["published"]) == ("incomplete", None)
    why = "network.0 (12 channels) not cut: cutting it changes what the other channels compute"
    (found,) = (f for f in cut["findings"] if f["check"] == "achieved")
    assert found["reason"] == f"channel sparsity 0.125, asked 0.500; {why}"
    told = {"layer": "network.0", "channels": 12, "why": why.partition(": ")[2]}
    assert cut["plan"]["whole"] == [told]


# --- the single steps ---------------------------------------------------------------------------


def test_a_scan_names_the_class_and_changes_nothing(
    badnets_network: Classifier, digits: Clean
) -> None:
    before = fingerprint(badnets_network)
    settings = replace(QUICK, repair_images=None, select_images=None)
    clean = (digits.repair.images, digits.repair.labels)
    suspicion = scan(badnets_network, clean, settings=settings)
    assert (suspicion.target, suspicion.classes[3]) == (3, "3")
    assert fingerprint(badnets_network) == before


def test_a_repair_in_memory_is_the_one_that_is_written(row_files: Path, tmp_path: Path) -> None:
    given = (row_files / "model.safetensors", row_files / "clean")
    kept = repair(*given, arch=ROWS, settings=REPAIRED)
    written = repair(*given, tmp_path / "out", arch=ROWS, settings=REPAIRED)
    assert kept.repair == written.repair
    weights = load_file(tmp_path / "out" / "repaired.safetensors")
    assert same(dict(kept.classifier.network.state_dict()), weights)
    record = json.loads((tmp_path / "out" / "repair.json").read_text(encoding="utf-8"))
    assert record["weights_sha256"] == weights_sha256(kept.classifier)
    assert set(tree(tmp_path / "out")) == {"repair.json", "repaired.safetensors"}


def test_a_repair_of_nobody_writes_nothing(row_files: Path, tmp_path: Path) -> None:
    sceptical = LocalizeSettings(deep=LOOK, sure=1e6, doubt=1e6)
    settings = replace(PLAIN, repair=True, localize=sceptical)
    given = (row_files / "model.safetensors", row_files / "clean")
    left = repair(*given, tmp_path / "out", arch=ROWS, settings=settings)
    assert (left.repair, left.suspicion.abstained) == (None, True)
    assert tree(tmp_path) == {}


def test_a_search_may_be_evidence_enough_where_the_policy_says_so(
    row_files: Path, tmp_path: Path
) -> None:
    trusting = replace(PLAIN, policy=Policy(require=("float32",), accept_inverted=True))
    report = guard(
        row_files / "model.safetensors",
        row_files / "clean",
        tmp_path / "out",
        arch=ROWS,
        settings=trusting,
    )
    # Nothing was searched either: three classes are too few.
    assert (report.verdict.word, report.sources) == ("incomplete", ())


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["reading images", "compress received", "verify float32"])
def test_an_interrupted_run_leaves_nothing(row_files: Path, tmp_path: Path, step: str) -> None:
    told = []

    def interrupt(name: str, done: int, total: int, /) -> None:
        told.append(name)
        if name == step:
            assert len(list(tmp_path.iterdir())) == 1  # the private folder
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        rows(row_files, tmp_path / "out", PLAIN, progress=interrupt)
    assert told[-1] == step
    assert tree(tmp_path) == {}


def test_a_model_that_cannot_be_exported_is_a_failure(
    row_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unequal(*_: object, **__: object) -> None:
        raise StageError("expected equal logits, got others")

    monkeypatch.setattr(Exporter, "write", unequal)
    with pytest.raises(StageError, match="expected to stage the model as received, got: compress "):
        rows(row_files, tmp_path / "out", PLAIN)
    assert tree(tmp_path) == {}


def test_nothing_is_read_without_evidence(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    with pytest.raises(ExportRefused, match="expected evidence about a trigger, got none"):
        guard(nowhere, nowhere, tmp_path / "out", arch=ROWS, settings=PLAIN)
    with pytest.raises(ExportRefused, match="expected evidence about a trigger, got none"):
        verify(nowhere, nowhere)
    assert tree(tmp_path) == {}


def test_a_drill_of_other_weights_is_told_before_the_work(row_files: Path, tmp_path: Path) -> None:
    told: list[str] = []
    other = DrillReport(
        model="other.safetensors",
        model_sha256="0" * 64,
        weights_sha256="1" * 64,
        attacks=(),
        config={},
        environment={},
    )
    with pytest.raises(ConfigError, match=r"expected a drill of these weights \(.*got one of 1111"):
        guard(
            row_files / "model.safetensors",
            row_files / "clean",
            tmp_path / "out",
            [PatchFile(row_files / "patch.png", 3, 3, 2)],
            arch=ROWS,
            settings=PLAIN,
            drills=[other],
            progress=lambda name, *_: told.append(name),
        )
    assert told == []
    assert tree(tmp_path) == {}


def test_a_suspect_that_is_no_class_is_told_before_the_work(
    row_files: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    config = replace(PLAIN, repair=True, suspect=3)
    with pytest.raises(ConfigError, match=r"expected a suspect class in \[0, 3\), got 3"):
        rows(row_files, tmp_path / "out", config, progress=lambda name, *_: told.append(name))
    assert told == []
    assert tree(tmp_path) == {}
