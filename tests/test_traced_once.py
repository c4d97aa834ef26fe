# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What counts as the same structure, and that another one is traced by itself."""

import sys
from collections.abc import Callable
from dataclasses import replace
from types import FrameType

import pytest
import torch
from factories import Ended, row_classifier, row_network, softmax, standardised_architecture
from torch import Tensor, nn
from torch.onnx._internal.exporter._registration import ONNXRegistry
from traced_once import _key, identity, one_table, tracing_once, unfollowed

from lmr_guard.classifier import Classifier
from lmr_guard.onnxfile import export
from lmr_guard.onnxfile.trace import Graph


def _doubled(logits: Tensor) -> Tensor:
    return logits * 2


@pytest.fixture(scope="module")
def model() -> Classifier:
    return row_classifier()


def test_a_copy_is_the_same_and_so_is_one_with_other_weights(model: Classifier) -> None:
    other = model.clone().requires_grad_(True)
    with torch.no_grad():
        next(other.parameters()).add_(1)
    other.network[1].running_mean += 1
    assert identity(model) == identity(other) is not None


def _count(model: Classifier) -> None:
    model.network[1].num_batches_tracked += 1


def _hidden(model: Classifier) -> None:
    model.network.register_buffer("hidden", torch.ones(1), persistent=False)


def _attribute(model: Classifier) -> None:
    model.network[1].eps = 1e-3


def _size(model: Classifier) -> None:
    model.preprocessing = replace(model.preprocessing, height=5)


def _training(model: Classifier) -> None:
    model.train()


def _ending(model: Classifier) -> None:
    model.network = Ended(model.network, softmax)


@pytest.mark.parametrize("change", [_count, _hidden, _attribute, _size, _training, _ending])
def test_whatever_it_holds_tells_another_one(
    model: Classifier, change: Callable[[Classifier], None]
) -> None:
    other = model.clone()
    change(other)
    assert identity(other) not in {identity(model), None}


class Local(nn.Module):
    """Of a package that may be another one under this name."""

    def forward(self, images: Tensor) -> Tensor:
        return images


def _hook(model: Classifier) -> None:
    model.network.register_forward_hook(lambda *_: None)


def _method(model: Classifier) -> None:
    model.network.forward = lambda images: images


def _module(model: Classifier) -> None:
    model.network.append(Local())


def _function(model: Classifier) -> None:
    model.network = Ended(model.network, _doubled)


def _object(model: Classifier) -> None:
    model.network.anything = object()


def _elsewhere(model: Classifier) -> None:
    model.network.to("meta")


@pytest.mark.parametrize("change", [_hook, _method, _module, _function, _object, _elsewhere])
def test_what_cannot_be_told_is_no_one_s(
    model: Classifier, change: Callable[[Classifier], None]
) -> None:
    other = model.clone()
    change(other)
    assert identity(other) is None


def test_every_structure_is_traced_and_the_same_one_once(
    model: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced: list[nn.Module] = []

    class Counted(Graph):
        """Tells when it is made."""

        def __init__(self, model: nn.Module, example: Tensor, output: str) -> None:
            traced.append(model)
            super().__init__(model, example, output)

    monkeypatch.setattr(export, "Graph", Counted)
    without = row_classifier(lambda: row_network(norm=False))
    moved = model.clone()
    with torch.no_grad():
        next(moved.parameters()).add_(1)
    with tracing_once() as kept:
        monkeypatch.setenv("PYTEST_CURRENT_TEST", "tests/test_bypasses.py::test (call)")
        anew, _ = (export._trace(model, "logits") for _ in range(2))
        assert (len(traced), kept) == (2, {})
        monkeypatch.setenv("PYTEST_CURRENT_TEST", "elsewhere")
        first, again = (export._trace(model, "logits") for _ in range(2))
        assert first is again is export._trace(moved, "logits")
        assert len(traced) == len(kept) + 2 == 3
        assert first.filled(model) == anew.filled(model) != first.filled(moved)
        assert export._trace(without, "logits") is not first
        export._trace(model, "probabilities")
        assert len(traced) == 5


def test_under_another_exporter_it_is_traced_anew(
    model: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_CURRENT_TEST", "elsewhere")
    with tracing_once() as kept:
        monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: None)
        with pytest.raises(Exception, match="expected an ONNX program from the exporter, got none"):
            export._trace(model, "logits")
        assert kept == {}
    with torch.autocast("cpu", torch.bfloat16):
        assert _key(model, "logits") is None


def test_layers_of_the_tests_own_networks_are_told() -> None:
    assert identity(row_classifier(standardised_architecture)) is not None


class _Tracer:
    """Sees what is called, as coverage's does."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, frame: FrameType, event: str, _: object) -> "_Tracer":
        if event == "call":
            self.seen.append(frame.f_code.co_name)
        return self


@pytest.mark.parametrize("package", ["coverage.tracer", "bdb"])
def test_coverage_follows_all_but_what_is_excused(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def inside() -> None:
        raise ValueError("told")

    def after() -> None:
        pass

    monkeypatch.setattr(_Tracer, "__module__", package)
    before, mine = sys.gettrace(), _Tracer()
    sys.settrace(mine)
    try:
        with pytest.raises(ValueError, match="told"):
            unfollowed(inside)()
        assert sys.gettrace() is mine
        after()
    finally:
        sys.settrace(before)
    assert ("inside" in mine.seen) == (package == "bdb")
    assert "after" in mine.seen


def test_the_table_of_operators_is_torch_s_and_each_export_has_its_own() -> None:
    whole = ONNXRegistry.from_torchlib(18)
    with one_table():
        first, second = (ONNXRegistry().from_torchlib(opset_version=18) for _ in range(2))
    for table in (first, second):
        assert table.opset_version == whole.opset_version == 18
        assert {name: len(each) for name, each in table.functions.items()} == {
            name: len(each) for name, each in whole.functions.items()
        }
    assert first.functions == second.functions
    for each in first.functions.values():
        each.clear()
    assert all(second.functions.values())
