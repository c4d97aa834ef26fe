# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""pre_quantize and pre_prune on an ONNX file, with ONNX Runtime's quantisation behind."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from factories import row_classifier, row_images, six_rows, tree
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from test_hooks_repair import CLEAN, HOOKS, TOY, short

from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Clean
from lmr_guard.errors import ConfigError, InputError
from lmr_guard.hooks import Receipt, RepairHook, pre_quantize
from lmr_guard.measure import accuracy
from lmr_guard.onnxfile.export import export_onnx, write_module
from lmr_guard.onnxfile.fileformat import FileFormat
from lmr_guard.onnxfile.predictor import OnnxPredictor, Session

NORMALISED = FileFormat(mean=TOY.mean, std=TOY.std)


@pytest.fixture(scope="module")
def trained() -> Classifier:
    return row_classifier(six_rows, rows=6)


@pytest.fixture
def file(tmp_path: Path, trained: Classifier) -> Path:
    """Takes pixels in [0, 1]."""
    export_onnx(trained, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


class Calibration(CalibrationDataReader):  # type: ignore[misc]  # it has no types
    """Some of the clean images, one by one, under the name that the file gives its input."""

    def __init__(self, values: np.ndarray) -> None:
        self._each: Iterator[dict[str, np.ndarray]] = iter([{"pixels": v[None]} for v in values])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._each, None)


def quantised(path: Path, values: np.ndarray) -> Path:
    """What a user does with the repaired file."""
    ready, into = path.with_name("ready.onnx"), path.with_name("int8.onnx")
    quant_pre_process(path, ready)
    quantize_static(ready, into, Calibration(values), quant_format=QuantFormat.QDQ)
    return into


@HOOKS
def test_a_file_comes_back_as_a_network_and_as_a_file(
    hook: RepairHook, file: Path, trained: Classifier
) -> None:
    held, into = file.read_bytes(), file.with_name("repaired.onnx")
    how = short(hook, suspect=2)
    model, receipt = hook(str(file), clean=CLEAN, into=into, settings=how)
    assert isinstance(model, Classifier)
    assert (receipt.hook, receipt.suspect) == (hook.name, 2)
    assert receipt.weights_before != receipt.weights_after
    assert file.read_bytes() == held
    pixels = CLEAN.report.pixels
    ours, written = model(pixels).detach(), OnnxPredictor(into)(pixels)
    assert torch.allclose(ours, written, atol=1e-4)
    assert not torch.allclose(ours, trained(pixels).detach(), atol=1e-2)


def test_the_repaired_file_is_quantised_by_onnx_runtime(file: Path) -> None:
    into = file.with_name("repaired.onnx")
    pre_quantize(file, clean=CLEAN, into=into, settings=short(pre_quantize, suspect=2))
    small = quantised(into, CLEAN.repair.pixels.numpy())
    rate = accuracy(OnnxPredictor(small), CLEAN.select)
    assert rate.value > 0.9
    assert rate.hits >= accuracy(OnnxPredictor(into), CLEAN.select).hits - 2


def test_a_file_that_takes_normalised_images_comes_back_as_one(
    tmp_path: Path, trained: Classifier
) -> None:
    path, into = tmp_path / "model.onnx", tmp_path / "repaired.onnx"
    write_module(trained.network, trained.normalise(trained.example()), path, "logits")
    how = short(pre_quantize, suspect=2)
    model, _ = pre_quantize(path, clean=CLEAN, file_format=NORMALISED, into=into, settings=how)
    session = Session(preprocessing=TOY)
    pixels = CLEAN.report.pixels
    assert model.preprocessing.mean == TOY.mean
    assert torch.allclose(OnnxPredictor(into, session)(pixels), model(pixels).detach(), atol=1e-4)


def test_what_is_said_beside_a_file_and_a_network_is_not_mixed(
    file: Path, trained: Classifier
) -> None:
    held = tree(file.parent)
    with pytest.raises(ConfigError, match="no preprocessing beside an ONNX file; use file_format"):
        pre_quantize(file, clean=CLEAN, preprocessing=TOY)  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="file_format and into beside an ONNX file only, got a n"):
        pre_quantize(trained, clean=CLEAN, into="x.onnx")
    with pytest.raises(ConfigError, match=r"a network, or a file called .onnx, got 'a.pt'; load a"):
        pre_quantize("a.pt", clean=CLEAN)
    with pytest.raises(InputError, match="expected an ONNX model, got no such file"):
        pre_quantize(file.with_name("none.onnx"), clean=CLEAN)
    with pytest.raises(ConfigError, match="expected nothing or an earlier record"):
        pre_quantize(file, clean=CLEAN, into=file)
    other = Clean(row_images(6), row_images(6), row_images(6))
    with pytest.raises(ConfigError, match=r"expected clean images of \(1, 7, 7\), as the prepr"):
        pre_quantize(file, clean=other)
    assert tree(file.parent) == held


# --- the decorator ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [str, Path])
def test_a_decorated_function_gets_the_path_of_the_repaired_file(
    file: Path, trained: Classifier, kind: type
) -> None:
    receipts: list[Receipt] = []
    held = file.read_bytes()
    how = short(pre_quantize, suspect=2)

    @pre_quantize.hook(clean=CLEAN, settings=how, on_receipt=receipts.append)
    def compress(model: Path | str, suffix: str) -> Path:
        assert type(model) is (str if kind is str else type(file))
        assert Path(model) != file
        return Path(shutil.copy(model, file.with_suffix(suffix)))

    copied = compress(kind(file), ".copy.onnx")
    _, direct = pre_quantize(file, clean=CLEAN, settings=how)
    assert receipts == [direct]
    assert file.read_bytes() == held
    assert sorted(each.name for each in file.parent.iterdir()) == ["model.copy.onnx", "model.onnx"]
    pixels = CLEAN.report.pixels
    ours, theirs = OnnxPredictor(copied)(pixels), trained(pixels).detach()
    assert not torch.allclose(ours, theirs, atol=1e-2)


def test_a_decorated_function_is_handed_the_file_that_is_kept(file: Path) -> None:
    into, seen = file.with_name("repaired.onnx"), list[Path]()

    @pre_quantize.hook(
        clean=CLEAN, into=into, settings=short(pre_quantize, suspect=2), on_receipt=seen.append
    )
    def compress(model: Path) -> bytes:
        seen.append(model)
        return model.read_bytes()

    assert compress(file) == into.read_bytes()
    assert seen[1:] == [into]
    with pytest.raises(ConfigError, match="expected nothing or an earlier record"):
        compress(file)


def test_a_decorated_function_does_not_run_on_what_the_call_refuses(
    file: Path, trained: Classifier
) -> None:
    ran, held = list[object](), tree(file.parent)

    @pre_quantize.hook(clean=CLEAN, preprocessing=TOY, on_receipt=ran.append)
    def compress(model: object) -> None:
        ran.append(model)

    @pre_quantize.hook(clean=CLEAN, file_format=NORMALISED, on_receipt=ran.append)
    def of_files(model: object) -> None:
        ran.append(model)

    with pytest.raises(ConfigError, match="no preprocessing beside an ONNX file; use file_format"):
        compress(file)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"a network, or a file called .onnx, got 'a.pt'; load a"):
        of_files("a.pt")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="file_format and into beside an ONNX file only, got a n"):
        of_files(trained)  # type: ignore[arg-type]
    assert ran == []
    assert tree(file.parent) == held
