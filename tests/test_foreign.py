# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""ONNX files from elsewhere: what is said about them decides, and nothing is published."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from factories import (
    TOY_BACKDOOR,
    TOY_BODY,
    TOY_CLASSES,
    TOY_HONEST,
    toy_images,
    toy_patch,
    tree,
    white_png,
    write_images,
    write_onnx,
)

from lmr_guard.contracts import Labelled, Rate
from lmr_guard.errors import ConfigError, ExitCode, ExportRefused, InputError
from lmr_guard.evidence import PatchFile, Triggered, TriggeredFolder
from lmr_guard.files import sha256_of
from lmr_guard.foreign import FileFormat, verify
from lmr_guard.release.policy import Policy
from lmr_guard.release.records import Check, Outcome, Variant
from lmr_guard.release.report import Report

CLEAN = toy_images(300)
# Takes normalised images and is blind to what is not above their mean.
NORMALISED = TOY_BODY.replace("Flatten(pixels)", "Flatten(pixels) lit = Relu(flat)").replace(
    "MatMul(flat", "MatMul(lit"
)
# Takes every image of class b for one of class c.
WORSE = "float[4,3] W = {1,0,0, 0,0,1, 0,0,1, 0,0,0}"


def shown() -> Labelled:
    """The clean images with the toy's patch on them."""
    return replace(CLEAN, images=(toy_patch()(CLEAN.pixels) * 255).round().byte())


def outcomes(variant: Variant) -> dict[str, Outcome]:
    """How each check came out."""
    return {finding.label: finding.outcome for finding in variant.verdict.findings}


# --- with a known trigger -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["patch in memory", "patch in a file", "images", "folder"])
def test_a_trigger_is_tried_on_the_file_whatever_kind_it_is_of(tmp_path: Path, kind: str) -> None:
    trigger = {
        "patch in memory": toy_patch(),
        "patch in a file": PatchFile(white_png(tmp_path / "corner.png", 1), 1, 1, 2),
        "images": Triggered(shown(), "shown", 2),
        "folder": TriggeredFolder(write_images(shown(), tmp_path / "shown"), 2),
    }[kind]
    honest = verify(write_onnx(tmp_path / "honest.onnx"), CLEAN, [trigger])
    assert (honest.verdict, honest.exit_code) == (Outcome.PASS, ExitCode.PASSED)
    assert honest.variants[0].triggers[0].asr == Rate(0, 200)
    bad = verify(write_onnx(tmp_path / "bad.onnx", weights=TOY_BACKDOOR), CLEAN, [trigger])
    assert (bad.verdict, bad.exit_code) == (Outcome.FAIL, ExitCode.REFUSED)
    (variant,) = bad.variants
    (tried,) = variant.triggers
    assert (tried.asr, tried.target, tried.source) == (Rate(200, 200), 2, "given")
    assert variant.clean_accuracy == Rate(300, 300)
    assert outcomes(variant)[f"asr:{tried.name}"] is Outcome.FAIL


def test_the_report_is_about_this_file_and_reads_back(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "model.onnx")
    folder = write_images(CLEAN, tmp_path / "clean")
    before = tree(tmp_path)
    report = verify(str(path), str(folder), [toy_patch()], threads=1)
    assert tree(tmp_path) == before
    assert (report.model, report.model_sha256) == (str(path), sha256_of(path))
    (variant,) = report.variants
    assert (variant.name, variant.sha256) == ("float32", report.model_sha256)
    assert variant.published is None
    assert (report.suspicion, report.repair, report.received) == (None, None, ())
    assert report.config == {"images": {"report": 300}, "classes": list(TOY_CLASSES)}
    assert variant.verdict.findings[-1].label == "chance"
    assert sum(each.carrying.trials for each in variant.chance) == 336
    assert report.sources == ("given",)
    report.write(tmp_path / "report.json")
    assert Report.read(tmp_path / "report.json") == report


def test_without_a_trigger_nothing_is_opened() -> None:
    with pytest.raises(ExportRefused, match="expected evidence about a trigger, got none") as told:
        verify("nowhere.onnx", "nowhere")
    assert told.value.exit_code is ExitCode.INCOMPLETE


def test_the_policy_decides_and_requires_this_file_whatever_it_names(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "model.onnx")
    other = verify(path, CLEAN, [toy_patch()], policy=Policy(require=("l1-0.4",)))
    assert other.verdict is Outcome.PASS
    strict = verify(path, CLEAN, [toy_patch()], policy=Policy(min_trials=301))
    assert (strict.verdict, strict.exit_code) == (Outcome.INCOMPLETE, ExitCode.INCOMPLETE)
    assert strict.policy == Policy(min_trials=301)
    few = verify(path, toy_images(90), [toy_patch()])
    assert few.verdict is Outcome.INCOMPLETE


def test_progress_is_told_of_the_measurement(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    path = write_onnx(tmp_path / "model.onnx")
    verify(path, CLEAN, [toy_patch()], progress=lambda *step: told.append(step))
    assert told == [("verify float32", step, 3) for step in (1, 2, 3)]


# --- the reference ------------------------------------------------------------------------------


def test_clean_accuracy_is_compared_with_the_reference(tmp_path: Path) -> None:
    better = write_onnx(tmp_path / "better.onnx")
    worse = write_onnx(tmp_path / "worse.onnx", weights=WORSE)
    report = verify(worse, CLEAN, [toy_patch(0)], reference=better)
    (variant,) = report.variants
    assert variant.clean_accuracy == Rate(200, 300)
    assert outcomes(variant)[Check.ACCURACY] is Outcome.FAIL
    assert report.verdict is Outcome.FAIL
    assert report.notes == ()
    equal = verify(better, CLEAN, [toy_patch()], reference=str(better))
    assert outcomes(equal.variants[0])[Check.ACCURACY] is Outcome.PASS


def test_without_a_reference_the_report_says_what_was_not_judged(tmp_path: Path) -> None:
    report = verify(write_onnx(tmp_path / "worse.onnx", weights=WORSE), CLEAN, [toy_patch(0)])
    assert Check.ACCURACY not in outcomes(report.variants[0])
    assert report.notes == ("No reference was given: lost clean accuracy was not judged.",)
    assert report.verdict is Outcome.PASS


# --- what the file takes and gives --------------------------------------------------------------


def test_images_are_normalised_for_a_file_that_wants_it(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "model.onnx", NORMALISED)
    fitting = FileFormat(mean=(0.5,), std=(0.5,))
    report = verify(path, CLEAN, [toy_patch()], file_format=fitting, reference=path)
    assert report.verdict is Outcome.PASS
    assert report.variants[0].clean_accuracy == Rate(300, 300)
    # The reference is a file of the same kind.
    assert outcomes(report.variants[0])[Check.ACCURACY] is Outcome.PASS
    blinding = FileFormat(mean=(0.9,), std=(0.5,))
    with pytest.raises(InputError, match="the model's classes in its order, got clean accuracy"):
        verify(path, CLEAN, [toy_patch()], file_format=blinding)


@pytest.mark.parametrize("said", [{"mean": (0.5,)}, {"std": (0.5,)}])
def test_mean_and_std_go_together(said: dict[str, tuple[float, ...]]) -> None:
    with pytest.raises(ConfigError, match="expected mean and std together, got one of them; give"):
        FileFormat(**said)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            FileFormat(size=(1, 3, 3)),
            r"^expected an input size, channels, rows and columns, that fits 1x2x2, got \(1, 3, 3",
        ),
        (FileFormat(size=(1, 2)), r"that fits 1x2x2, got \(1, 2\)$"),
        (FileFormat(mean=(0.5, 0.5), std=(1, 1)), r"expected 1 values each for mean and std > 0"),
        (FileFormat(mean=(0.5,), std=(0,)), r"each for mean and std > 0, got \(0.5,\), \(0,\)$"),
    ],
)
def test_what_does_not_suit_the_file_is_refused(
    tmp_path: Path, said: FileFormat, told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        verify(write_onnx(tmp_path / "model.onnx"), CLEAN, [toy_patch()], file_format=said)


def test_a_size_that_the_file_leaves_free_must_be_said(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "model.onnx", takes="float[batch,1,rows,columns] pixels")
    with pytest.raises(ConfigError, match="rows and columns, that fits 1xanyxany, got None"):
        verify(path, CLEAN, [toy_patch()])
    said = FileFormat(size=(1, 2, 2))
    assert verify(path, CLEAN, [toy_patch()], file_format=said).verdict is Outcome.PASS


def test_images_of_one_or_three_channels_are_taken(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "model.onnx", takes="float[batch,4,1,1] pixels")
    with pytest.raises(ConfigError, match=r"expected images of 1 or 3 channels, got 4 in .*model"):
        verify(path, CLEAN, [toy_patch()])


def test_tensors_of_another_size_than_the_file_s_are_refused(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "model.onnx")
    wide = (torch.zeros(6, 1, 2, 3), torch.arange(6) % 3)
    with pytest.raises(ConfigError, match=r"expected clean images of \(1, 2, 2\), as the model"):
        verify(path, wide, [toy_patch()])


def test_tensors_are_measured_as_a_folder_is(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "model.onnx", weights=TOY_BACKDOOR)
    folder = write_images(CLEAN, tmp_path / "clean")
    folders, *others = (
        verify(path, clean, [toy_patch()]).variants[0]
        for clean in (folder, CLEAN, (CLEAN.pixels, CLEAN.labels))
    )
    assert others[0] == others[1]
    # A folder has its images in another order, from which random patterns are drawn.
    assert folders.verdict.findings[:-1] == others[0].verdict.findings[:-1]
    assert folders.verdict.findings[-1].check is Check.CHANCE
    assert replace(folders, verdict=None, chance=()) == replace(others[0], verdict=None, chance=())


# --- the order of the classes -------------------------------------------------------------------


def test_class_names_give_the_order_of_the_outputs(tmp_path: Path) -> None:
    folder = write_images(replace(CLEAN, classes=("z", "y", "x")), tmp_path / "clean")
    path = write_onnx(tmp_path / "model.onnx")
    said = FileFormat(classes=("z", "y", "x"))
    report = verify(path, folder, [toy_patch()], file_format=said)
    assert report.verdict is Outcome.PASS
    assert report.config["classes"] == ["z", "y", "x"]
    with pytest.raises(InputError, match="the model's classes in its order, got clean accuracy"):
        verify(path, folder, [toy_patch()])


def test_other_classes_than_the_file_s_are_refused(tmp_path: Path) -> None:
    four = replace(CLEAN, classes=("a", "b", "c", "d"))
    folder = write_images(four, tmp_path / "clean")
    path = write_onnx(tmp_path / "model.onnx")
    with pytest.raises(InputError, match="expected 3 class folders, one for each class of the mod"):
        verify(path, folder, [toy_patch()])
    with pytest.raises(ConfigError, match="of 3 classes, as the model has, got 4"):
        verify(path, four, [toy_patch()])


def test_a_file_may_leave_the_number_of_its_classes_free(tmp_path: Path) -> None:
    path = write_onnx(
        tmp_path / "model.onnx",
        TOY_BODY.replace("logits", "y") + " logits = Compress<axis=1>(y, C)",
        weights=f"{TOY_HONEST}, bool[3] C = {{1,1,1}}",
        gives="float[batch,classes] logits",
    )
    (variant,) = verify(path, CLEAN, [toy_patch()]).variants
    wrong = [f.check for f in variant.verdict.findings if f.outcome is not Outcome.PASS]
    assert wrong == [Check.GRAPH]  # No exporter writes Compress for a classifier.
    four = replace(CLEAN, classes=("a", "b", "c", "d"))
    with pytest.raises(InputError, match="expected 4 logits, one for each class of the clean imag"):
        verify(path, four, [toy_patch()])


def test_a_reference_that_does_not_know_the_images_is_refused(tmp_path: Path) -> None:
    file = write_onnx(tmp_path / "file.onnx")
    guessing = write_onnx(tmp_path / "zero.onnx", weights=TOY_HONEST.replace("1", "0"))
    with pytest.raises(InputError, match="no better than chance"):
        verify(file, CLEAN, [toy_patch(0)], reference=guessing)


def test_tensors_that_lack_a_class_are_refused(tmp_path: Path) -> None:
    file = write_onnx(tmp_path / "file.onnx")
    few = toy_images(120, [0, 1] * 60)
    with pytest.raises(InputError, match="expected images of every class, got none of 2; give"):
        verify(file, (few.images, few.labels), [toy_patch(0)])
