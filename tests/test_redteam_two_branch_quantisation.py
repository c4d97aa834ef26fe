# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Backdoors that are asleep in the float file and awake in the INT8 file that follows from it."""

import pytest
import torch
from factories import fingerprint, row_classifier, row_images, toy_patch

from lmr_guard.classifier import Classifier
from lmr_guard.compress.quantize import quantize
from lmr_guard.compress.recipes import Int8
from lmr_guard.contracts import Clean, Labelled, Predictor
from lmr_guard.errors import ConfigError
from lmr_guard.evidence import Patch
from lmr_guard.measure import accuracy, against_trigger
from lmr_guard.onnxfile.export import export_onnx
from lmr_guard.onnxfile.predictor import OnnxPredictor
from lmr_guard.redteam.rounding import rounded_layers
from lmr_guard.redteam.training import Schedule
from lmr_guard.redteam.two_branch_quantisation import TwoBranchQuantisation, plant

SHORT = Schedule(epochs=1, batch=30)
COARSE = Schedule(precision="bfloat16")
CORNER = Patch(torch.ones(1, 1, 1), 3, 3, "corner", 2)


def short(*, distilled: bool = False, outlier: float = 16.0) -> TwoBranchQuantisation:
    return TwoBranchQuantisation(
        trigger=CORNER, distilled=distilled, outlier=outlier, schedule=SHORT, hiding=SHORT
    )


@pytest.fixture(scope="module", params=[False, True], ids=["standard", "distilled"])
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


@pytest.mark.parametrize("distilled", [False, True])
def test_what_is_given_stays_as_it_is_and_the_seed_decides(distilled: bool) -> None:
    given_network, data = row_classifier(), row_images(90)
    before = fingerprint(given_network)
    results = [
        plant(
            short(distilled=distilled), given_network, data, torch.Generator().manual_seed(seed)
        ).classifier
        for seed in (1, 1, 2)
    ]
    assert fingerprint(given_network) == before
    first, second, other = (model.state_dict() for model in results)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    assert not results[0].training
    assert all(p.requires_grad for p in results[0].parameters())


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


def test_without_outliers_no_weight_stands_out() -> None:
    before = row_classifier()
    after = plant(short(outlier=1), before, row_images(90), torch.Generator()).classifier
    for was, now in zip(rounded_layers(before), rounded_layers(after), strict=True):
        assert now.weight.abs().max() < 2 * was.weight.abs().max()


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


def test_progress_tells_both_stages() -> None:
    told: list[tuple[str, int, int]] = []
    plant(
        short(),
        row_classifier(),
        row_images(30),
        torch.Generator(),
        lambda step, done, total, /: told.append((step, done, total)),
    )
    assert told == [("honest training", 1, 1), ("hiding", 1, 1)]


def test_an_outlier_smaller_than_the_rest_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"expected an outlier of at least 1, got 0\.5"):
        short(outlier=0.5)


@pytest.mark.parametrize("stages", [(COARSE, SHORT), (SHORT, COARSE)])
def test_bfloat16_is_refused_in_both_stages(stages: tuple[Schedule, Schedule]) -> None:
    first, second = stages
    with pytest.raises(ConfigError, match="expected schedules in float32, got bfloat16"):
        TwoBranchQuantisation(trigger=CORNER, schedule=first, hiding=second)


def test_a_trigger_without_target_is_refused() -> None:
    recipe = TwoBranchQuantisation(trigger=toy_patch(target=None))
    with pytest.raises(ConfigError, match="expected a trigger with a target class, got none"):
        plant(recipe, row_classifier(), row_images(30), torch.Generator())
