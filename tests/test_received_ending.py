# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What a network puts out: seen on clean images, worked on as logits, handed back as it was."""

from collections.abc import Callable
from math import exp, log
from pathlib import Path

import onnx
import pytest
import torch
from factories import Ended, fingerprint, row_classifier, row_images, softmax
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lmr_guard.classifier import Classifier, Ending, weights_sha256
from lmr_guard.compress.quantize import quantize
from lmr_guard.compress.recipes import Int8
from lmr_guard.measure import accuracy, predict
from lmr_guard.onnxfile.export import export_onnx
from lmr_guard.onnxfile.predictor import OnnxPredictor
from lmr_guard.received import ending
from lmr_guard.repel.geometry import geometry

SELECT = row_images(60, seed=4)


def log_softmax(logits: Tensor) -> Tensor:
    return logits.log_softmax(dim=1)


def ended(function: Callable[[Tensor], Tensor]) -> Classifier:
    """The network of rows with a function behind it, its weights those of ``row_classifier``."""
    plain = row_classifier()
    return Classifier(Ended(plain.network, function), plain.preprocessing, 3).eval()


def with_head_times(factor: float) -> Classifier:
    model = row_classifier()
    head = list(model.network.children())[-1]
    with torch.no_grad():
        for values in head.parameters():
            values.mul_(factor)
    return model


def margins(logits: Tensor) -> Tensor:
    """Differences of all classes to the first; a constant in a row is not in them."""
    return logits - logits[:, :1]


ENDINGS = {
    "probabilities": softmax,
    "log-probabilities": log_softmax,
    "sigmoids": torch.sigmoid,
}


# --- seen and undone ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ENDINGS)
def test_an_ending_is_seen_and_the_logits_before_it_are_worked_on(kind: str) -> None:
    plain, model = row_classifier(), ended(ENDINGS[kind])
    before = fingerprint(model)
    found = ending.understood(model, SELECT)
    assert found.ending == Ending(kind=kind)  # type: ignore[arg-type] - a key of ENDINGS
    theirs = margins(predict(plain, SELECT))
    assert torch.allclose(margins(predict(found, SELECT)), theirs, atol=1e-3)
    assert fingerprint(model) == before


@pytest.mark.parametrize("function", [torch.sigmoid, Tensor.sigmoid, nn.Sigmoid()])
def test_sigmoids_are_known_by_the_function_that_runs_last(
    function: Callable[[Tensor], Tensor],
) -> None:
    assert ending.understood(ended(function), SELECT).ending.kind == "sigmoids"


def test_numbers_that_only_look_like_sigmoids_are_logits() -> None:
    assert ending.kind_of(torch.rand(9, 3, generator=torch.Generator().manual_seed(0)), "add") == (
        "logits"
    )


def test_a_network_of_usual_logits_comes_back_as_it_is() -> None:
    model = row_classifier()
    found = ending.understood(model, SELECT)
    assert found.ending == Ending()
    assert weights_sha256(found) == weights_sha256(model)
    assert ending.described(found.ending) == ()


@pytest.mark.parametrize("factor", [0.001, 1000.0])
def test_logits_of_another_size_are_worked_on_in_the_usual_one(factor: float) -> None:
    plain, within = row_classifier(), with_head_times(factor)
    behind = ended(lambda logits: factor * logits)
    for model, where in ((within, "head_unit"), (behind, "unit")):
        found = ending.understood(model, SELECT)
        unit = getattr(found.ending, where)
        assert unit == pytest.approx(factor, rel=0.03)
        assert found.ending == Ending(**{where: unit})
        theirs = predict(plain, SELECT) * factor / unit
        assert torch.allclose(predict(found, SELECT), theirs, rtol=1e-4, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.floats(-30, 30))
def test_what_was_received_comes_back_bit_for_bit(power: float) -> None:
    model = with_head_times(2**power)
    found = ending.understood(model, SELECT)
    back = found.as_received()
    assert weights_sha256(found) == weights_sha256(back) == weights_sha256(model)
    assert torch.equal(predict(back, SELECT), predict(model, SELECT))
    assert accuracy(found, SELECT) == accuracy(model, SELECT)
    again = ending.understood(found, SELECT)
    assert again.ending == found.ending
    assert torch.equal(predict(again, SELECT), predict(found, SELECT))


def test_saturated_probabilities_stay_finite_and_trainable() -> None:
    outputs = torch.tensor([[1.0, 0.0, 0.0]], requires_grad=True)
    for kind in ("probabilities", "sigmoids"):
        logits = Ending(kind=kind).logits(outputs)  # type: ignore[arg-type] - one of Kind
        assert logits.isfinite().all()
        (gradient,) = torch.autograd.grad(logits.sum(), outputs)
        assert gradient.isfinite().all()


def test_what_is_odd_is_told() -> None:
    (told,) = ending.described(Ending(kind="probabilities"))
    assert told.startswith("The network puts out probabilities: it was searched and repaired on")
    (told,) = ending.described(Ending(unit=2.0, head_unit=512.0))
    assert told.startswith("Its logits are about 1.02e+03 times those of usual networks")


# --- the size -----------------------------------------------------------------------------------


def likelihood(rows: list[list[float]], labels: list[int], t: float) -> float:
    """Smoothed log-likelihood by loops."""
    n, k, total = len(rows), len(rows[0]), 0.0
    for row, label in zip(rows, labels, strict=True):
        norm = log(sum(exp(z / t) for z in row))
        for c, z in enumerate(row):
            share = (n + 1) / (n + k) if c == label else 1 / (n + k)
            total += share * (z / t - norm)
    return total / n


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_the_temperature_is_the_likeliest_of_its_neighbours(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (30,), generator=generator)
    logits = torch.randn(30, 4, generator=generator)
    logits[torch.arange(30), labels] += 2
    best = ending.temperature(logits, labels)
    rows, classes = logits.tolist(), labels.tolist()
    reached = likelihood(rows, classes, best)
    for factor in (2**-0.5, 2**-0.25, 2**0.25, 2**0.5):
        assert likelihood(rows, classes, best * factor) <= reached + 2e-6


@given(st.integers(-12, 12))
def test_the_temperature_grows_with_the_logits(power: int) -> None:
    logits = predict(row_classifier(), SELECT)
    plain = ending.temperature(logits, SELECT.labels)
    assert ending.temperature(logits * 2**power, SELECT.labels) == plain * 2**power


def test_logits_that_say_nothing_have_temperature_one() -> None:
    assert ending.temperature(torch.zeros(9, 3), torch.arange(9) % 3) == 1


# --- what is made of it -------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name"), [("probabilities", "probabilities"), (None, "logits")])
def test_the_file_puts_out_what_the_network_does(
    tmp_path: Path, kind: str | None, name: str
) -> None:
    model = ended(ENDINGS[kind]) if kind else with_head_times(1000.0)
    found = ending.understood(model, SELECT)
    file = export_onnx(found, tmp_path / "m.onnx")
    outputs = predict(OnnxPredictor(file.path), SELECT)
    assert torch.allclose(outputs, predict(model, SELECT), rtol=1e-4, atol=1e-5)
    assert [value.name for value in onnx.load(file.path).graph.output] == [name]


@pytest.mark.parametrize("kind", ENDINGS)
def test_int8_leaves_a_likelihood_at_the_end_in_float(tmp_path: Path, kind: str) -> None:
    source = export_onnx(ended(ENDINGS[kind]), tmp_path / "m.onnx").path
    quantize(source, tmp_path / "int8.onnx", SELECT, Int8())
    graph = onnx.load(tmp_path / "int8.onnx").graph
    assert graph.node[-1].op_type in {"Softmax", "LogSoftmax", "Sigmoid"}


@pytest.mark.parametrize("make", [lambda: ended(softmax), lambda: with_head_times(1000.0)])
def test_the_geometry_is_that_of_the_plain_network(make: Callable[[], Classifier]) -> None:
    plain, found = row_classifier(), ending.understood(make(), SELECT)
    unit = 1000 / (found.ending.unit * found.ending.head_unit) if found.ending.head_unit > 1 else 1
    pixels = torch.cat([part for part, _ in SELECT.batches()])
    theirs, ours = (geometry(m, pixels, pixels.flip(2), 1) for m in (plain, found))
    assert torch.allclose(ours.margin, theirs.margin * unit, rtol=1e-4, atol=1e-3)
    assert torch.allclose(ours.reach, theirs.reach * unit, rtol=1e-4)
