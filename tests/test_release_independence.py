# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Files that answer by the batch and not by the image are told from those that do not."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from factories import TOY_BACKDOOR, TOY_BODY, TOY_HONEST, toy_images, toy_patch, write_onnx
from torch import Tensor

from lmr_guard.evidence import Evidence
from lmr_guard.onnxfile.predictor import OnnxPredictor
from lmr_guard.release.independence import SIZES, _differs, independence
from lmr_guard.release.records import Finding, Outcome

CLEAN = toy_images(300)
SHOWN = Evidence([toy_patch()])
BOTH = f"{TOY_HONEST}, {TOY_BACKDOOR.replace(' W ', ' V ')}, int64[1] ZERO = {{0}}"


def asked(predictor: Callable[[Tensor], Tensor]) -> Finding:
    return independence(predictor, CLEAN, SHOWN)


def toy(pixels: Tensor, weight: float = 0.0) -> Tensor:
    """The toy classifier; the corner counts for class 2 by ``weight``."""
    flat = pixels.flatten(1)
    return torch.cat([flat[:, :2], flat[:, 2:3] + weight * flat[:, 3:]], dim=1)


def test_an_honest_file_is_independent(tmp_path: Path) -> None:
    found = asked(OnnxPredictor(write_onnx(tmp_path / "m.onnx")))
    assert found.outcome is Outcome.PASS
    assert found.reason == "64 images get the same answers in mixed batches of 1 to 300"


def test_a_file_with_a_fixed_batch_is_independent(tmp_path: Path) -> None:
    takes, gives = "float[4,1,2,2] pixels", "float[4,3] logits"
    path = write_onnx(tmp_path / "m.onnx", TOY_BODY, takes=takes, gives=gives)
    assert asked(OnnxPredictor(path)).outcome is Outcome.PASS


def test_a_file_that_wakes_alone_is_found(tmp_path: Path) -> None:
    """Its measured rates, in batches of 256, are those of an honest file."""
    body = """
        flat = Flatten(pixels) size = Shape<start = 0, end = 1>(pixels)
        one = Constant<value_ints = [1]>() alone = Equal(size, one) weights = Where(alone, V, W)
        logits = MatMul(flat, weights)"""
    predictor = OnnxPredictor(write_onnx(tmp_path / "m.onnx", body, weights=BOTH))
    triggered = toy_patch()(CLEAN.pixels)
    assert torch.equal(predictor(triggered).argmax(dim=1), CLEAN.labels)
    found = asked(predictor)
    assert found.outcome is Outcome.INCOMPLETE
    assert "in mixed batches of 1 than among their like" in found.reason


def test_a_file_that_looks_at_the_neighbours_is_found(tmp_path: Path) -> None:
    """The corner of the whole batch, less that of the image: silent where all carry the trigger."""
    body = """
        flat = Flatten(pixels) mean = ReduceMean<axes = [0], keepdims = 1>(flat)
        other = Sub(flat, mean) twice = Concat<axis = 1>(flat, other)
        logits = MatMul(twice, U)"""
    weights = "float[8,3] U = {1,0,0, 0,1,0, 0,0,1, 0,0,0, 0,0,0, 0,0,0, 0,0,0, 0,0,9}"
    predictor = OnnxPredictor(write_onnx(tmp_path / "m.onnx", body, weights=weights))
    assert torch.equal(predictor(toy_patch()(CLEAN.pixels)).argmax(dim=1), CLEAN.labels)
    found = asked(predictor)
    assert found.outcome is Outcome.INCOMPLETE


@pytest.mark.parametrize("size", SIZES)
def test_every_size_counts(size: int) -> None:
    found = asked(lambda pixels: toy(pixels, 9.0 * (len(pixels) == size)))
    assert (found.outcome, f"batches of {size} " in found.reason) == (Outcome.INCOMPLETE, True)


def test_chance_is_found() -> None:
    generator = torch.Generator().manual_seed(0)

    def sometimes(pixels: Tensor) -> Tensor:
        wakes = torch.rand(1, generator=generator).item() < 0.2
        return toy(pixels, 9.0 * wakes)

    assert asked(sometimes).outcome is Outcome.INCOMPLETE


@pytest.mark.parametrize(("ties", "excused"), [(1, True), (3, True), (4, False), (40, False)])
def test_a_few_near_ties_are_excused_and_many_are_not(ties: int, *, excused: bool) -> None:
    expected = torch.tensor([[4.0, 0.0, 0.0]]).repeat(64, 1)
    expected[:ties, 1] = 3.5
    got = expected.clone()
    got[:ties, 1] = 4.1
    assert int(_differs(expected, got).sum()) == (0 if excused else ties)


def test_a_class_that_led_clearly_is_never_excused() -> None:
    expected = torch.tensor([[4.0, 0.0, 0.0]]).repeat(64, 1)
    got = expected.clone()
    got[7] = torch.tensor([4.0, 4.1, 0.0])
    assert _differs(expected, got).nonzero().flatten().tolist() == [7]


def test_what_turns_into_no_number_is_another_answer() -> None:
    found = asked(lambda pixels: toy(pixels) / (float("nan") if len(pixels) == 2 else 1.0))
    assert found.outcome is Outcome.INCOMPLETE
