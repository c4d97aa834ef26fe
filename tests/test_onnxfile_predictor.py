# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""ONNX files from elsewhere, good and bad, as predictors."""

from pathlib import Path

import onnx
import pytest
import torch
from factories import TOY_BACKDOOR, TOY_BODY, toy_images, write_onnx

from lmr_guard.classifier import Preprocessing
from lmr_guard.errors import ConfigError, InputError
from lmr_guard.files import sha256_of
from lmr_guard.onnxfile.functions import MOST_NODES
from lmr_guard.onnxfile.predictor import OnnxPredictor, Session


def test_a_fixed_batch_is_filled_up_and_cut_again(tmp_path: Path) -> None:
    fixed = write_onnx(
        tmp_path / "fixed.onnx", takes="float[4,1,2,2] pixels", gives="float[4,3] logits"
    )
    free = write_onnx(tmp_path / "free.onnx")
    for count in (1, 4, 6):
        pixels = torch.rand(count, 1, 2, 2, generator=torch.Generator().manual_seed(count))
        assert torch.equal(OnnxPredictor(fixed)(pixels), OnnxPredictor(free)(pixels))


def test_a_foreign_file_may_want_normalised_images(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx")
    p = Preprocessing(channels=1, height=2, width=2, mean=(0.5,), std=(0.25,))
    session = Session(preprocessing=p)
    pixels = torch.rand(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    expected = OnnxPredictor(path)((pixels - 0.5) / 0.25)
    assert torch.equal(OnnxPredictor(path, session)(pixels), expected)


def test_cuda_that_was_not_got_is_visible_and_quiet(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has the device")
    predictor = OnnxPredictor(write_onnx(tmp_path / "m.onnx"), Session(device="cuda", threads=1))
    assert predictor.requested == "CUDAExecutionProvider"
    assert predictor.provider == "CPUExecutionProvider"
    assert tuple(capfd.readouterr()) == ("", "")


@pytest.mark.gpu
def test_cuda_runs_where_there_is_one(tmp_path: Path) -> None:
    predictor = OnnxPredictor(write_onnx(tmp_path / "m.onnx"), Session(device="cuda"))
    assert predictor.provider == predictor.requested == "CUDAExecutionProvider"
    images = toy_images(3)
    assert torch.equal(predictor(images.pixels.cuda()).argmax(dim=1), images.labels)


WRONG = [
    ({"takes": "float[batch,4] pixels", "body": "logits = MatMul(pixels, W)"}, "4]"),
    ({"takes": "int32[batch,1,2,2] pixels", "body": "flat = Flatten(pixels) c = Cast<to=1>(flat)"
      " logits = MatMul(c, W)"}, r"tensor\(int32\)"),
    ({"gives": "float[batch,1,3] logits", "body": TOY_BODY.replace("logits", "y")
      + " logits = Unsqueeze(y, A)", "weights": "float[4,3] W = {1,0,0,0,1,0,0,0,1,0,0,0},"
      " int64[1] A = {1}"}, "outputs logits .* 1, 3"),
    ({"takes": "float[batch,1,2,2] pixels, float[3] more", "body": TOY_BODY.replace("logits", "y")
      + " logits = Add(y, more)"}, "more tensor"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "got"), WRONG)
def test_another_signature_is_refused(changes: dict[str, str], got: str, tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx", **changes)
    with pytest.raises(InputError, match=rf"one float or uint8 input .*, got .*{got}") as caught:
        OnnxPredictor(path)
    assert "\n" not in str(caught.value)


TWO = {"gives": "float[batch,3] logits, float[batch,4] flat"}


def test_one_of_several_outputs_is_named(tmp_path: Path) -> None:
    path, images = write_onnx(tmp_path / "m.onnx", **TWO), toy_images(6)
    with pytest.raises(ConfigError, match="got 2: logits, flat; name the one with the logits"):
        OnnxPredictor(path)
    with pytest.raises(ConfigError, match="one of logits, flat, got 'nobody'"):
        OnnxPredictor(path, Session(output="nobody"))
    named = OnnxPredictor(path, Session(output="logits"))
    assert torch.equal(named(images.pixels).argmax(dim=1), images.labels)
    assert OnnxPredictor(path, Session(output="flat")).num_classes == 4


def test_the_only_output_of_rank_two_is_taken(tmp_path: Path) -> None:
    gives = "float[batch,1,2,2] shown, float[batch,3] logits"
    body = "shown = Relu(pixels) " + TOY_BODY
    path, images = write_onnx(tmp_path / "m.onnx", body=body, gives=gives), toy_images(6)
    predictor = OnnxPredictor(path)
    assert predictor.output == "logits"
    assert torch.equal(predictor(images.pixels).argmax(dim=1), images.labels)


LAST = "first = Transpose<perm=[0,3,1,2]>(pixels) flat = Flatten(first) logits = MatMul(flat, W)"


@pytest.mark.parametrize(
    ("takes", "body"),
    [
        ("float[batch,2,2,1] pixels", LAST),
        ("uint8[batch,2,2,1] pixels", LAST.replace("Flatten(first)", "Cast<to=1>(f)")
         .replace("flat =", "f = Flatten(first) flat =")),
        ("float16[1,1,2,2] pixels", "c = Cast<to=1>(pixels) flat = Flatten(c) "
         "logits = MatMul(flat, W)"),
        ("double[batch,1,2,2] pixels", "c = Cast<to=1>(pixels) flat = Flatten(c) "
         "logits = MatMul(flat, W)"),
    ],
)  # fmt: skip
def test_images_go_in_as_the_file_takes_them(tmp_path: Path, takes: str, body: str) -> None:
    predictor = OnnxPredictor(write_onnx(tmp_path / "m.onnx", takes=takes, body=body))
    images = toy_images(7)
    got = predictor(images.pixels)
    assert predictor.shape[1:] == (1, 2, 2)
    assert got.dtype == torch.float32
    expected = images.images if "uint8" in takes else images.pixels
    lit = expected.flatten(1).float()[:, :3]
    assert torch.allclose(got, lit, rtol=1e-3)


def test_half_precision_comes_out_as_float(tmp_path: Path) -> None:
    body = TOY_BODY.replace("logits", "y") + " logits = Cast<to=10>(y)"
    path = write_onnx(tmp_path / "m.onnx", body=body, gives="float16[batch,3] logits")
    assert OnnxPredictor(path)(toy_images(3).pixels).dtype == torch.float32


def test_a_layout_that_cannot_be_told_is_said(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx", takes="float[batch,a,b,c] pixels", body=LAST)
    assert not OnnxPredictor(path).channels_last
    predictor = OnnxPredictor(path, Session(layout="nhwc"))
    images = toy_images(6)
    assert torch.equal(predictor(images.pixels).argmax(dim=1), images.labels)


def test_bytes_are_not_normalised(tmp_path: Path) -> None:
    body = LAST.replace("Flatten(first)", "Cast<to=1>(f)").replace(
        "flat =", "f = Flatten(first) flat ="
    )
    path = write_onnx(tmp_path / "m.onnx", takes="uint8[batch,2,2,1] pixels", body=body)
    shape = Preprocessing(channels=1, height=2, width=2, mean=(0.5,), std=(0.5,))
    with pytest.raises(ConfigError, match="no mean and std beside an input of bytes"):
        OnnxPredictor(path, Session(preprocessing=shape))


def test_a_graph_that_onnx_runtime_refuses_is_one_line(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx", "flat = Flatten(pixels) logits = Nonsense(flat, W)")
    with pytest.raises(InputError, match="expected a valid ONNX model, got") as caught:
        OnnxPredictor(path)
    assert "\n" not in str(caught.value)


def test_images_of_another_shape_are_refused(tmp_path: Path) -> None:
    predictor = OnnxPredictor(write_onnx(tmp_path / "m.onnx"))
    with pytest.raises(InputError, match=r"expected images of 1x2x2 .*, got 3x2x2"):
        predictor(torch.zeros(1, 3, 2, 2))
    with pytest.raises(InputError, match=r"expected images of 1x2x2 .*, got 2x2"):
        predictor(torch.zeros(1, 2, 2))


def test_a_graph_that_fails_or_loses_rows_is_refused(tmp_path: Path) -> None:
    any_size = write_onnx(tmp_path / "any.onnx", takes="float[batch,1,h,w] pixels")
    assert OnnxPredictor(any_size).shape == (None, 1, None, None)
    with pytest.raises(InputError, match=r"expected .*any.onnx to run, got") as caught:
        OnnxPredictor(any_size)(torch.zeros(1, 1, 3, 3))
    assert "\n" not in str(caught.value)
    mean = "flat = Flatten(pixels) y = MatMul(flat, W) logits = ReduceMean<axes=[0]>(y)"
    lost = write_onnx(tmp_path / "lost.onnx", mean, gives="float[one,3] logits")
    with pytest.raises(InputError, match="expected 2 rows of logits"):
        OnnxPredictor(lost)(torch.zeros(2, 1, 2, 2))


def test_the_session_keeps_the_bytes_that_were_digested(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx")
    predictor = OnnxPredictor(path)
    write_onnx(path, weights=TOY_BACKDOOR)
    assert predictor.sha256 != sha256_of(path)
    white = torch.ones(1, 1, 2, 2)
    assert not torch.equal(predictor(white), OnnxPredictor(path)(white))


def test_a_graph_of_too_many_nodes_is_refused_before_it_is_run(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx")
    model = onnx.load(path)
    idle = (onnx.helper.make_node("Identity", ["W"], [f"i{n}"]) for n in range(MOST_NODES))
    model.graph.node.extend(idle)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"at most 100000 nodes, got 100002 nodes: .*m.onnx"):
        OnnxPredictor(path)
