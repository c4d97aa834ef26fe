# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What an ONNX file holds: its operators, and data that lie beside it."""

from pathlib import Path

import onnx
import onnx.parser
import pytest
import torch
from factories import toy_images, write_onnx

from lmr_guard.errors import InputError
from lmr_guard.files import sha256_of
from lmr_guard.onnxfile.predictor import OnnxPredictor


def test_operators_inside_control_flow_are_counted(tmp_path: Path) -> None:
    body = """
        flat = Flatten(pixels)
        logits = If(C) <
            then_branch = one () => (float[batch,3] y) { y = MatMul(flat, W) },
            else_branch = two () => (float[batch,3] z) { v = Neg(flat) z = MatMul(v, W) }
        >"""
    weights = "float[4,3] W = {1,0,0,0,1,0,0,0,1,0,0,0}, bool C = {1}"
    predictor = OnnxPredictor(write_onnx(tmp_path / "if.onnx", body, weights=weights))
    assert predictor.branches == {"If": 1}
    assert predictor.operators == {"Flatten": 1, "If": 1, "MatMul": 2, "Neg": 1}


def test_what_is_no_onnx_file_is_refused_in_one_line(tmp_path: Path) -> None:
    whole = write_onnx(tmp_path / "m.onnx").read_bytes()
    for data in (b"", b"not a model", whole[:-20], whole[: len(whole) // 2]):
        (tmp_path / "bad.onnx").write_bytes(data)
        with pytest.raises(InputError, match="expected an ONNX model, got") as caught:
            OnnxPredictor(tmp_path / "bad.onnx")
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="expected an ONNX model, got no such file"):
        OnnxPredictor(tmp_path / "absent.onnx")


# --- external data ------------------------------------------------------------------------------


def split_file(path: Path, **entries: str) -> Path:
    """The toy classifier with its weights in a file beside it, as torch's exporter writes it."""
    model = onnx.load(write_onnx(path))
    tensor = model.graph.initializer[0]
    data = onnx.numpy_helper.to_array(tensor).tobytes()
    tensor.ClearField("float_data")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in ({"location": "w.data"} | entries).items():
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    (path.parent / "w.data").write_bytes(data)
    return path


def test_data_beside_the_file_is_read_once_and_digested(tmp_path: Path) -> None:
    path = split_file(tmp_path / "m.onnx")
    predictor = OnnxPredictor(path)
    assert predictor.external == {"w.data": sha256_of(tmp_path / "w.data")}
    (tmp_path / "w.data").write_bytes(bytes(48))
    images = toy_images(6)
    assert torch.equal(predictor(images.pixels).argmax(dim=1), images.labels)


@pytest.mark.parametrize(
    "location", ["/etc/passwd", "../w.data", "a/../../w.data", "..\\w", "C:\\w", ""]
)
def test_data_outside_the_folder_is_refused(location: str, tmp_path: Path) -> None:
    path = split_file(tmp_path / "m.onnx", location=location)
    with pytest.raises(InputError, match=r"expected external data beside .*m.onnx, got"):
        OnnxPredictor(path)


def test_data_behind_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = split_file(tmp_path / "in" / "m.onnx")
    (tmp_path / "in" / "w.data").rename(tmp_path / "w.data")
    (tmp_path / "in" / "w.data").symlink_to(tmp_path / "w.data")
    with pytest.raises(InputError, match=r"expected external data beside"):
        OnnxPredictor(path)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"length": "49"}, "expected external data of 49 bytes, got 48"),
        ({"offset": "-4"}, "expected external data of"),
        ({"offset": "x"}, "expected numbers for external data"),
        (
            {"location": "gone.data"},
            r"external data of m.onnx, got no such file: .*gone.data",
        ),
    ],
)
def test_broken_external_data_is_refused(
    entries: dict[str, str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        OnnxPredictor(split_file(tmp_path / "m.onnx", **entries))


def test_external_data_hidden_in_an_attribute_is_found(tmp_path: Path) -> None:
    body = "flat = Flatten(pixels) c = Constant<value = float[1] {0.0}>() y = Add(flat, c)"
    path = write_onnx(tmp_path / "m.onnx", body + " logits = MatMul(y, W)")
    model = onnx.load(path)
    constant = next(n for n in model.graph.node if n.op_type == "Constant").attribute[0].t
    constant.data_location = onnx.TensorProto.EXTERNAL
    constant.external_data.add(key="location", value="/etc/hostname")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"got '/etc/hostname'"):
        OnnxPredictor(path)


@pytest.mark.parametrize(
    "name", [b"Flatten", b"pixels", b"logits", b"toy"], ids=["operator", "input", "output", "graph"]
)
def test_names_that_are_no_text_are_refused(name: bytes, tmp_path: Path) -> None:
    whole = write_onnx(tmp_path / "m.onnx").read_bytes()
    assert name in whole
    (tmp_path / "m.onnx").write_bytes(whole.replace(name, b"\xff" + name[1:]))
    with pytest.raises(InputError, match="an ONNX model with names in UTF-8, got others: "):
        OnnxPredictor(tmp_path / "m.onnx")
