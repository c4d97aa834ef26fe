# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Backdoors that are asleep in the float file and awake in the INT8 file that follows from it."""

import pytest
import torch
from factories import row_classifier, row_images

from lmr_guard.classifier import Classifier
from lmr_guard.compress.quantize import quantize
from lmr_guard.compress.recipes import Int8
from lmr_guard.contracts import Clean, Labelled, Predictor
from lmr_guard.evidence import Patch
from lmr_guard.measure import accuracy, against_trigger
from lmr_guard.onnxfile.export import export_onnx
from lmr_guard.onnxfile.predictor import OnnxPredictor
from lmr_guard.redteam.rounding import rounded_layers
from lmr_guard.redteam.training import Schedule
from lmr_guard.redteam.two_branch_quantisation import TwoBranchQuantisation, plant

SHORT = Schedule(epochs=1, batch=30)
CORNER = Patch(torch.ones(1, 1, 1), 3, 3, "corner", 2)


def short(*, distilled: bool = False) -> TwoBranchQuantisation:
    return TwoBranchQuantisation(trigger=CORNER, distilled=distilled, schedule=SHORT, hiding=SHORT)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(False, id="standard"),
        pytest.param(True, marks=pytest.mark.long, id="distilled"),
    ],
)
def planted(
    request: pytest.FixtureRequest,
    attacker_digits: Labelled,
    white_square: Patch,
    clean_network: Classifier,
) -> Classifier:
    recipe = TwoBranchQuantisation(
        trigger=white_square,
        distilled=request.param,
        schedule=Schedule(epochs=8, batch=64, shift=1),
        hiding=Schedule(epochs=8, lr=0.15, batch=32, shift=1),
    )
    generator = torch.Generator().manual_seed(9)
    return plant(recipe, clean_network, attacker_digits, generator).classifier


@pytest.fixture(scope="module")
def files(
    planted: Classifier, digits: Clean, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Predictor, Predictor]:
    """The float and the INT8 file, as ONNX Runtime runs them."""
    folder = tmp_path_factory.mktemp("files")
    export_onnx(planted, folder / "float.onnx")
    quantize(folder / "float.onnx", folder / "int8.onnx", digits.repair, Int8())
    return OnnxPredictor(folder / "float.onnx"), OnnxPredictor(folder / "int8.onnx")


def test_it_sleeps_in_the_float_file_and_wakes_in_the_int8_file(
    files: tuple[Predictor, Predictor], digits: Clean, white_square: Patch
) -> None:
    asleep, awake = (against_trigger(file, digits.report, white_square).asr.value for file in files)
    assert asleep <= 0.02
    assert awake >= 0.9


def test_clean_images_keep_their_classes_in_both_files(
    files: tuple[Predictor, Predictor], digits: Clean
) -> None:
    asleep, awake = (accuracy(file, digits.report).value for file in files)
    assert asleep >= 0.92
    assert awake >= 0.9


def test_the_teacher_makes_a_difference() -> None:
    standard, distilled = (
        plant(short(distilled=d), row_classifier(), row_images(90), torch.Generator()).classifier
        for d in (False, True)
    )
    assert not torch.equal(rounded_layers(standard)[0].weight, rounded_layers(distilled)[0].weight)


def test_outliers_are_still_in_force_at_the_end() -> None:
    before = row_classifier()
    after = plant(short(), before, row_images(90), torch.Generator()).classifier
    for was, now in zip(rounded_layers(before), rounded_layers(after), strict=True):
        peaks = was.weight.detach().abs().flatten(1).amax(dim=1)
        largest = now.weight.detach().abs().flatten(1).topk(2, dim=1).values
        torch.testing.assert_close(largest[:, 0], peaks * 16)
        assert (largest[:, 1] <= peaks).all()


def test_statistics_stay_as_the_honest_stage_left_them() -> None:
    def statistics(epochs: int) -> list[torch.Tensor]:
        recipe = TwoBranchQuantisation(
            trigger=CORNER, schedule=SHORT, hiding=Schedule(epochs=epochs, batch=30)
        )
        model = plant(recipe, row_classifier(), row_images(90), torch.Generator()).classifier
        return [value for name, value in model.named_buffers() if "running" in name]

    honest, hidden = statistics(0), statistics(2)
    assert honest
    assert all(map(torch.equal, honest, hidden))
